"""How long a worker may be silent about what it owes, and how much memory it holds. No tasks, no clock.

A worker has two threads. Its reader tokenises; its engine loads, measures and steps. Each is watched by its own
signs of life: a reader that goes on answering must not hide an engine that hangs. Design: reliability.md, 2.8.
"""

import math
from dataclasses import dataclass
from typing import Final, Literal

import psutil

# Ten times the slowest pass of its kind is no slow pass any more; below five seconds the cause may as well be a
# machine that was busy for a moment.
HANG_FACTOR: Final = 10
HANG_S_MIN: Final = 5.0
# What was slow once is forgotten by half after 140 passes.
_FADES: Final = 0.995
MEMORY_PERIOD_S: Final = 0.1
"""While a worker has work: two system calls, 40 µs."""

Phase = Literal["reading", "task", "prompt", "answer", "held"]


@dataclass(slots=True)
class _Owed:
    phase: Phase
    silence_s_max: float


class Patience:
    """What one worker owes, and until when it may be silent. Times are the caller's, in seconds."""

    def __init__(self, silence_s_max: float) -> None:
        """``silence_s_max`` bounds every wait for which nothing shorter is known."""
        self._silence_s_max = silence_s_max
        self._owed: dict[int, _Owed] = {}
        self._reader_sign = self._engine_sign = 0.0
        self._slowest_s: dict[Phase, float] = {}

    @property
    def owes(self) -> bool:
        """Whether there is something to wait for; a prompt that is only held is nothing."""
        return any(it.phase != "held" for it in self._owed.values())

    def asked(self, request: int, phase: Phase, now: float, *, silence_s_max: float | None = None) -> None:
        """Note that the worker was asked for something; ``silence_s_max`` is for a long task."""
        if phase == "reading":
            if not self._in("reading"):
                self._reader_sign = now
        elif not self._in("task", "prompt", "answer"):
            self._engine_sign = now
        self._owed[request] = _Owed(phase, silence_s_max or self._silence_s_max)

    def over(self, request: int) -> None:
        """Forget a request that has ended or was cancelled."""
        self._owed.pop(request, None)

    def read(self, request: int, now: float) -> None:
        """Note an answer of the reader: its prompt is held now."""
        self._reader_sign = now
        if (owed := self._owed.get(request)) is not None:
            owed.phase = "held"

    def worked(self, now: float) -> None:
        """Note an answer of the engine other than a step."""
        self._engine_sign = now

    def failed(self, request: int, now: float) -> None:
        """Note a refusal: of the reader's or of the engine's, whichever had the request."""
        if (owed := self._owed.get(request)) is not None and owed.phase == "reading":
            self._reader_sign = now
        else:
            self._engine_sign = now

    def stepped(self, now: float) -> None:
        """Note one pass of the engine, and how long it took."""
        if (kind := self._pass_kind()) is not None:
            took_s = now - self._engine_sign
            self._slowest_s[kind] = max(took_s, self._slowest_s.get(kind, 0.0) * _FADES)
        self._engine_sign = now

    def began(self, request: int) -> None:
        """Note the first token of a request: its prompt has been read."""
        if (owed := self._owed.get(request)) is not None:
            owed.phase = "answer"

    def ends_at(self) -> float:
        """Return when it has been silent for too long; infinity while nothing is owed."""
        ends_at = math.inf
        if reading := self._in("reading"):
            ends_at = self._reader_sign + max(it.silence_s_max for it in reading)
        if working := self._in("task", "prompt", "answer"):
            allowed = max(it.silence_s_max if it.phase == "task" else self._pass_s_max() for it in working)
            ends_at = min(ends_at, self._engine_sign + allowed)
        return ends_at

    def describe(self, now: float) -> str:
        """Return what has been waited for, for a log."""
        if self._in("task", "prompt", "answer"):
            kind = self._pass_kind()
            slowest = self._slowest_s.get(kind) if kind else None
            known = "" if slowest is None else f", the slowest of its kind took {slowest:.3f} s"
            return f"its engine was silent for {now - self._engine_sign:.1f} s{known}"
        return f"it was silent for {now - self._reader_sign:.1f} s about a prompt"

    def _pass_s_max(self) -> float:
        kind = self._pass_kind()
        if kind is None or kind not in self._slowest_s:
            return self._silence_s_max
        return min(max(HANG_FACTOR * self._slowest_s[kind], HANG_S_MIN), self._silence_s_max)

    def _pass_kind(self) -> Phase | None:
        """Return what the pass is about that runs now: prompts take many times as long as tokens."""
        if self._in("prompt"):
            return "prompt"
        return "answer" if self._in("answer") else None

    def _in(self, *phases: Phase) -> list[_Owed]:
        return [it for it in self._owed.values() if it.phase in phases]


def resident_bytes(pid: int) -> int | None:
    """Return what a process holds of the memory for itself; None once it is gone.

    Pages of files, such as weights that several processes map, are not counted: the kernel takes them back before
    it swaps.
    """
    try:
        info = psutil.Process(pid).memory_info()
    except (psutil.Error, OSError):
        return None
    return int(info.rss - getattr(info, "shared", 0))
