"""Asking one provider for a binding quote (spec 03, sections 2 to 4 and 13)."""

from typing import Final

import trio

from node.market.party import Line, Party
from node.market.purchase import AttemptFailedError
from node.market.terms import Deal
from node.net.interface import Stream
from protocol.errors import Reason, RemoteProtocolError
from protocol.offer import Decline, Quote
from protocol.signed import Signed, SignedMessage

ANSWER_WAIT_S: Final = 5.0


async def ask(party: Party, deal: Deal, stream: Stream, *, life_ms: int) -> Signed[Quote]:
    """Return the provider's quote; whether it suits is the caller's to judge.

    Raises: AttemptFailedError (declined), RemoteProtocolError, StreamLostError, TooSlowError, LedgerError.
    """
    line = Line(stream, party)
    with trio.fail_after(ANSWER_WAIT_S):
        question = party.sign(deal.ask(now_ms=party.now_ms(), life_ms=life_ms))
        await party.ledger.post(
            party.entry(question, deal.purchase.job_id, deal.candidate.peer_id, contract_id=None)
        )
        await line.tell(question)
        await line.finish()
        answer: Signed[SignedMessage] = await line.hear_untrusted(Quote, Decline)
    match answer.message:
        case Decline() as decline if decline.refers_to == question.message_id:
            raise AttemptFailedError.declined(decline)
        case Quote() as quote if quote.ask_id == question.message_id:
            return Signed(quote, answer.envelope)
        case _:
            raise RemoteProtocolError("the answer is to another ask", reason=Reason.MEANING)
