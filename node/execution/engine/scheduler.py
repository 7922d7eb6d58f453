"""Which tokens go into the next forward pass. Pure bookkeeping, without torch.

Every pass takes one token of each decoding sequence and shares the rest of a token budget among the prompts
that are being read, so that a long prompt delays the others' next token by one chunk and not by all of it.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from protocol.task import Sampling

NO_SLOT: Final = -1


@dataclass(slots=True, kw_only=True)
class Sequence:
    """A job inside the engine: ``tokens`` is prompt then answer, ``cached`` how many are in its slot."""

    request: int
    tokens: list[int]
    prompt_tokens: int
    tokens_out_max: int
    sampling: Sampling
    stop_tokens: frozenset[int]
    first_position: int = 0
    """Answer tokens at the end of the prompt: this answer goes on where another worker's was cut."""
    scope: bytes = b""
    """The customer; a prefix in the cache is used again within one scope only, and never in the empty one."""
    cached: int = 0
    slot: int = NO_SLOT

    @property
    def prefilling(self) -> bool:
        return self.cached < self.prompt_tokens

    @property
    def answer_tokens(self) -> int:
        """Tokens chosen here."""
        return len(self.tokens) - self.prompt_tokens

    @property
    def position(self) -> int:
        """Position of the next token in the whole answer; the sampling noise depends on it."""
        return self.first_position + self.answer_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One pass: the decoding sequences by slot, and (sequence, prompt tokens to read now)."""

    decodes: tuple[Sequence, ...]
    chunks: tuple[tuple[Sequence, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A sequence changes its slot; its first ``tokens`` must be copied before the next pass."""

    source: int
    target: int
    tokens: int


@dataclass(slots=True, kw_only=True)
class Scheduler:
    """Sequences in order of arrival: ``running`` hold the slots 0 to n-1, ``waiting`` none."""

    slots: int
    prefill_tokens: int
    running: list[Sequence] = field(default_factory=list)
    waiting: deque[Sequence] = field(default_factory=deque)

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, sequence: Sequence) -> None:
        """Queue ``sequence``; it gets a slot in the order of arrival."""
        self.waiting.append(sequence)

    def plan(self) -> Plan:
        """Give free slots to those who wait longest, and return the next pass."""
        while self.waiting and len(self.running) < self.slots:
            sequence = self.waiting.popleft()
            sequence.slot = len(self.running)
            self.running.append(sequence)
        decodes = tuple(sequence for sequence in self.running if not sequence.prefilling)
        reading = [sequence for sequence in self.running if sequence.prefilling]
        return Plan(decodes=decodes, chunks=_share(reading, max(1, self.prefill_tokens - len(decodes))))

    def remove(self, request: int) -> Move | None:
        """Forget ``request`` wherever it is; the last running sequence takes over its slot."""
        for sequence in self.waiting:
            if sequence.request == request:
                self.waiting.remove(sequence)
                return None
        for sequence in self.running:
            if sequence.request == request:
                return self._vacate(sequence.slot)
        return None

    def _vacate(self, slot: int) -> Move | None:
        last = self.running.pop()
        if last.slot == slot:
            return None
        move = Move(source=last.slot, target=slot, tokens=last.cached)
        last.slot = slot
        self.running[slot] = last
        return move


def _share(reading: list[Sequence], budget: int) -> tuple[tuple[Sequence, int], ...]:
    """Split ``budget`` evenly; what a short prompt does not need goes to the longer ones."""
    chunks = []
    shortest_first = sorted(reading, key=lambda sequence: sequence.prompt_tokens - sequence.cached)
    for i, sequence in enumerate(shortest_first):
        # Rounded up: with a budget below the number of readers, the shortest go first.
        fair = -(-budget // (len(shortest_first) - i))
        tokens = min(sequence.prompt_tokens - sequence.cached, fair)
        if tokens:
            chunks.append((sequence, tokens))
        budget -= tokens
    return tuple(chunks)
