"""What one job got of its device: the speed it was given, and the energy that it took."""

import trio

from node.execution.energy import EnergyBook
from node.execution.measurements import Delivered


class JobMeter:
    """Follows one job from its start; made where the job starts."""

    def __init__(self, energy: EnergyBook, delivered: Delivered, tokens_in: int) -> None:
        self._energy, self._delivered = energy, delivered
        self._waiting_tokens = tokens_in
        """The prompt, until the first token says that it was read."""
        self._job: int | None = energy.start()
        self.began_at = trio.current_time()
        self.tokens_held = 0
        """Prompt and answer so far; nothing before the first token, which says that the prompt was read."""
        self._first_at: float | None = None
        self._last_at = 0.0
        self._tokens = 0

    def note(self, tokens: int) -> None:
        """Note tokens that arrived."""
        assert self._job is not None
        self._energy.add_tokens(self._job, tokens + self._waiting_tokens)
        self.tokens_held += tokens + self._waiting_tokens
        self._waiting_tokens = 0
        self._last_at = trio.current_time()
        if self._first_at is None:
            self._first_at = self._last_at
        else:
            self._tokens += tokens

    def end(self) -> int | None:
        """Return the job's energy in millijoules, ``None`` where it is unknown; a second call does nothing."""
        job, self._job = self._job, None
        if job is None:
            return None
        if self._first_at is not None:
            self._delivered.add(self._tokens, self._last_at - self._first_at)
        return self._energy.end(job)
