"""Which tokens go into the next forward pass, and into which slot. Pure bookkeeping, without torch.

Every pass takes one token of each decoding sequence and shares a budget of prompt tokens (``pace.py``) among the
prompts that are being read, so that a long prompt delays the others' next token by one chunk and not by all of it.
A slot keeps what it held after its sequence has ended, until somebody else needs it: a later prompt of the same
customer that begins alike goes on from there. Never another customer's: a fast first token would tell him that
somebody had sent this text before.
"""

from collections import deque
from collections.abc import Iterator
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Final

from node.execution.engine.pace import PrefillPace
from protocol.task import Sampling

NO_SLOT: Final = -1
REUSED_TOKENS_MIN: Final = 16
"""Below this, to compute is as fast as to copy."""


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
class Move:
    """Copy the first ``tokens`` of a slot, and the first ``back`` that the target held the other way."""

    source: int
    target: int
    tokens: int
    back: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One pass: the decoding sequences by slot, and (sequence, prompt tokens to read now), after the moves."""

    decodes: tuple[Sequence, ...]
    chunks: tuple[tuple[Sequence, int], ...]
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, slots=True)
class _Remains:
    """What a free slot still holds."""

    scope: bytes
    tokens: list[int]


@dataclass(slots=True, kw_only=True)
class Scheduler:
    """Sequences in order of arrival: ``running`` hold the slots 0 to n-1, ``waiting`` none."""

    slots: int
    pace: PrefillPace
    running: list[Sequence] = field(default_factory=list)
    waiting: deque[Sequence] = field(default_factory=deque)
    reused_tokens: int = 0
    """Prompt tokens that were not computed again."""
    _remains: dict[int, _Remains] = field(default_factory=dict)
    """By slot, the oldest first."""

    @property
    def idle(self) -> bool:
        return not self.running and not self.waiting

    def add(self, sequence: Sequence) -> None:
        """Queue ``sequence``; it gets a slot in the order of arrival."""
        self.waiting.append(sequence)

    def plan(self) -> Plan:
        """Give free slots to those who wait longest, and return the next pass."""
        moves: list[Move] = []
        while self.waiting and len(self.running) < self.slots:
            moves += self._seat(self.waiting.popleft())
        decodes = tuple(sequence for sequence in self.running if not sequence.prefilling)
        reading = [sequence for sequence in self.running if sequence.prefilling]
        chunks = _share(reading, self.pace.budget(len(decodes)))
        return Plan(decodes=decodes, chunks=chunks, moves=tuple(moves))

    def remove(self, request: int) -> Move | None:
        """Forget ``request`` wherever it is; the last running sequence takes over its slot."""
        for sequence in self.waiting:
            if sequence.request == request:
                self.waiting.remove(sequence)
                return None
        for sequence in self.running:
            if sequence.request == request:
                return self._vacate(sequence)
        return None

    def _seat(self, sequence: Sequence) -> Iterator[Move]:
        """Give ``sequence`` the next slot, with the longest prefix of it that any slot holds."""
        slot = sequence.slot = len(self.running)
        source, sequence.cached = self._longest_prefix(sequence)
        self.running.append(sequence)
        self.reused_tokens += sequence.cached
        displaced = self._remains.pop(slot, None)
        if source == slot:
            return
        if source in self._remains:
            # Its owner has ended, and whoever comes later finds the same prefix here: the two change places.
            del self._remains[source]
            back = len(displaced.tokens) if displaced else 0
            yield Move(source=source, target=slot, tokens=sequence.cached, back=back)
            if displaced:
                self._remains[source] = displaced
            return
        if displaced and (spare := self._spare_slot()) is not None:
            yield Move(source=slot, target=spare, tokens=len(displaced.tokens))
            self._remains.pop(spare, None)
            self._remains[spare] = displaced
        if source != NO_SLOT:
            yield Move(source=source, target=slot, tokens=sequence.cached)

    def _longest_prefix(self, sequence: Sequence) -> tuple[int, int]:
        """Return the slot that holds most of the prompt's beginning, and how many tokens of it."""
        best = (NO_SLOT, 0)
        if not sequence.scope:
            return best
        held = [
            (slot, remains.scope, remains.tokens, len(remains.tokens)) for slot, remains in self._remains.items()
        ]
        held += [(other.slot, other.scope, other.tokens, other.cached) for other in self.running]
        for slot, scope, tokens, count in held:
            if scope != sequence.scope:
                continue
            # The last token of a prompt is always read: its row predicts the answer.
            common = _common(tokens, sequence.tokens, min(count, sequence.prompt_tokens - 1))
            if common >= max(REUSED_TOKENS_MIN, best[1] + 1):
                best = (slot, common)
        return best

    def _spare_slot(self) -> int | None:
        """Return a free slot that holds nothing, else the one that has been free longest."""
        free = range(len(self.running), self.slots)
        empty = next((slot for slot in free if slot not in self._remains), None)
        return empty if empty is not None else next(iter(self._remains), None)

    def _vacate(self, sequence: Sequence) -> Move | None:
        last = self.running.pop()
        left = sequence.slot if last is sequence else last.slot
        back = 0
        if sequence.scope and sequence.cached >= REUSED_TOKENS_MIN:
            back = sequence.cached
            self._remains[left] = _Remains(sequence.scope, sequence.tokens[: sequence.cached])
        if last is sequence:
            return None
        move = Move(source=left, target=sequence.slot, tokens=last.cached, back=back)
        last.slot = sequence.slot
        self.running[last.slot] = last
        return move


def decode_inputs(decodes: Items[Sequence], context_tokens: int) -> tuple[list[int], list[int], list[int]]:
    """Return each sequence's newest token, its position, and the cache's row where it is written."""
    tokens = [sequence.tokens[-1] for sequence in decodes]
    positions = [sequence.cached for sequence in decodes]
    return tokens, positions, [sequence.slot * context_tokens + sequence.cached for sequence in decodes]


def _common(first: Items[int], second: Items[int], count_max: int) -> int:
    """Return how many tokens both begin with, at most ``count_max``."""
    if first[:count_max] == second[:count_max]:
        return count_max
    return next(i for i in range(count_max) if first[i] != second[i])


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
