"""What is made of the refusals when nobody is left to try: a shorter answer is bought, or the order fails."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from node.market.order import (
    InputRefusedError,
    JobFailedError,
    NobodyWillingError,
    OrderError,
    PassedOver,
    PromptTooLongError,
    UnfitInputError,
)
from node.market.purchase import AnswerLog, Purchase
from protocol.errors import DeclineCode
from protocol.task import GENERATE
from protocol.units import PeerId

_UNFIT: Final[dict[str, type[UnfitInputError]]] = {
    DeclineCode.CONTEXT_EXCEEDED: PromptTooLongError,
    DeclineCode.INPUT: InputRefusedError,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CounterOffer:
    """A provider without room for the whole answer would take a shorter one on."""

    peer_id: PeerId
    tokens_out_max: int


def counter_offer(purchase: Purchase, refusals: Iterable[PassedOver]) -> CounterOffer | None:
    """Return the longest answer that somebody without memory for all of it offers, ``None`` where nobody does.

    ``max_tokens`` is a bound and no length: an answer that ends before it as ``length`` is one that was asked
    for. Not so with a prompt that is too long for the model itself, which its user has to hear of.
    """
    if purchase.task != GENERATE:
        return None
    offers = [
        CounterOffer(peer_id=passed.peer_id, tokens_out_max=passed.tokens_max)
        for passed in refusals
        if passed.code == DeclineCode.MEMORY
        # Less than was wanted each time: this ends, whatever a stranger says.
        and passed.tokens_max is not None
        and 0 < passed.tokens_max < purchase.tokens_out_max
    ]
    return max(offers, key=lambda offer: offer.tokens_out_max, default=None)


def refusal(code: str, message: str) -> OrderError:
    """Return how an order ends that our own device refuses."""
    unfit = _UNFIT.get(code)
    return JobFailedError(message, code=code) if unfit is None else unfit(message)


def nobody(answer_log: AnswerLog, refusals: tuple[PassedOver, ...]) -> OrderError:
    """Name the failure: the answer was cut, the input is at fault, or nobody wanted the job.

    One provider's word that the input is at fault does not count against another that only had no time for it.
    """
    if answer_log.units:
        last = refusals[-1]
        return JobFailedError(
            f"the answer was cut after {answer_log.units} tokens, nobody is left to go on: {last.message}",
            code=str(last.code),
        )
    if refusals and all(passed.code == "broke_protocol" for passed in refusals):
        # They took it, so to say: what they sent cannot be used.
        return JobFailedError(
            f"all of {len(refusals)} peers broke the protocol: {refusals[0].message}",
            code="broke_protocol",
        )
    if refusals and all(passed.code in _UNFIT for passed in refusals):
        return _UNFIT[refusals[0].code](refusals[0].message)
    return NobodyWillingError(refusals)
