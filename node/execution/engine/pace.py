"""How many prompt tokens the next pass may read, so that running answers go on in time. Pure.

Derived from what recent passes took: a pass costs what its decodes cost, plus so much for each prompt token.
"""

import statistics
from collections import deque
from collections.abc import Iterable
from typing import Final

INTER_TOKEN_S: Final = 0.2
"""The longest that a running answer should wait for its next token while prompts arrive."""
TOKENS_MIN: Final = 16
"""Prompts go on however slow the machine is, and a chunk below this says little about the cost of a token."""
# Before anything was measured: 32 tokens of a model of 135 million weights take 50 ms on one core.
_TOKENS_FIRST: Final = 32
# Of the promise, what is planned: passes of one size differ by a tenth on a quiet machine, and by a third where
# others use the memory beside.
_SHARE: Final = 0.6
# Few enough to follow a prompt whose later tokens cost more.
_PASSES: Final = 5


class PrefillPace:
    """The budget of prompt tokens for a promise of at most ``inter_token_s`` between two tokens of an answer."""

    def __init__(self, *, tokens_max: int, inter_token_s: float = INTER_TOKEN_S) -> None:
        self.tokens_max = tokens_max
        self._planned_s = inter_token_s * _SHARE
        self._decode_s: deque[float] = deque(maxlen=_PASSES)
        self._token_s: deque[float] = deque(maxlen=_PASSES)
        self._last_tokens = _TOKENS_FIRST // 2

    def budget(self, decodes: int) -> int:
        """Return the prompt tokens of a pass beside so many decodes: without any, nobody waits for it."""
        if decodes == 0:
            return self.tokens_max
        # What was measured with few tokens is no promise for many: at most twice as many at once.
        tokens = 2 * self._last_tokens
        if self._token_s:
            spare_s = self._planned_s - self._base_s(decodes)
            tokens = min(tokens, int(spare_s / _second_largest(self._token_s)))
        return min(self.tokens_max, max(TOKENS_MIN, tokens))

    def note(self, decodes: int, prompt_tokens: int, seconds: float) -> None:
        """Learn from a pass that took ``seconds``."""
        if prompt_tokens == 0:
            self._decode_s.append(seconds)
        elif prompt_tokens >= TOKENS_MIN:
            # A base from slower days must not make tokens look free.
            share_s = max(seconds - self._base_s(decodes), seconds / 4)
            self._token_s.append(share_s / prompt_tokens)
            self._last_tokens = prompt_tokens

    def _base_s(self, decodes: int) -> float:
        """Return what a pass takes without prompts."""
        return statistics.median(self._decode_s) if decodes and self._decode_s else 0.0


def _second_largest(values: Iterable[float]) -> float:
    """Return what all but one of the values keep: one pass that something disturbed says nothing."""
    largest = sorted(values)
    return largest[-2] if len(largest) > 2 else largest[-1]
