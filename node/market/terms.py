"""What one order and one candidate make together: the ask, the terms, and the contract (spec 03).

Values only; ``requester_job.py`` signs, stores and sends them.
"""

from dataclasses import dataclass
from typing import Final

from node.discovery.directory import Candidate
from node.market.purchase import AttemptFailedError, Purchase, Terms
from protocol import limits
from protocol.advert import PROTOCOL_VERSION
from protocol.contract import Contract, hash_input
from protocol.errors import DeclineCode
from protocol.offer import Ask, Quote
from protocol.price import Prices, price_bound
from protocol.units import MessageId, Microcredits, PeerId, UnixMs

VOUCHER_WINDOW_TOKENS: Final = 32
"""Proposed on the fast path; a provider with a smaller window declines, and can be asked for a quote."""
PROVIDER_WINDOW_TOKENS_MAX: Final = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """An order put to a candidate. ``life_ms`` is what is left of the order's deadline, everywhere."""

    purchase: Purchase
    candidate: Candidate

    @property
    def tokens_in_max(self) -> int:
        return max(min(self.purchase.tokens_in_max, self.candidate.offer.context_tokens), 1)

    def ask(self, *, now_ms: UnixMs, life_ms: int) -> Ask:
        purchase = self.purchase
        return Ask(
            job_id=purchase.job_id,
            provider=self.candidate.peer_id,
            sent_at_ms=now_ms,
            end_by_ms=now_ms + life_ms,
            task=purchase.task,
            model_id=self.candidate.offer.model_id,
            input_bytes=len(purchase.data),
            tokens_in_max=self.tokens_in_max,
            tokens_out_max=purchase.tokens_out_max,
            price_max=purchase.price_max,
        )

    def quoted(self, quote: Quote, quote_id: MessageId, *, life_ms: int) -> Terms:
        """Return the terms of a quote. Raises: AttemptFailedError (they do not suit)."""
        wanted_dtype = self.purchase.log.dtype
        if wanted_dtype is not None and quote.dtype != wanted_dtype:
            raise AttemptFailedError(
                DeclineCode.PROFILE, f"quoted in {quote.dtype}, the answer so far is in {wanted_dtype}"
            )
        if quote.voucher_window_tokens > PROVIDER_WINDOW_TOKENS_MAX:
            raise AttemptFailedError(
                DeclineCode.CREDIT,
                f"wants vouchers every {quote.voucher_window_tokens} tokens, at most"
                f" {PROVIDER_WINDOW_TOKENS_MAX} are awaited",
            )
        return Terms(
            answers=quote_id,
            dtype=quote.dtype,
            prices=quote.prices,
            price_max=self._bound(quote.prices, life_ms),
            credit=quote.credit,
            voucher_window_tokens=quote.voucher_window_tokens,
        )

    def standing(self, *, life_ms: int) -> Terms:
        """Return the terms of the advert's standing offer. Raises: AttemptFailedError (it costs too much)."""
        listing, offer = self.candidate.listing, self.candidate.offer
        bound = self._bound(offer.prices, life_ms)
        return Terms(
            answers=listing.signed.message_id,
            dtype=offer.dtype,
            prices=offer.prices,
            price_max=bound,
            credit=min(bound, listing.advert.credit),
            voucher_window_tokens=VOUCHER_WINDOW_TOKENS,
        )

    def contract(self, terms: Terms, *, requester: PeerId, salt: bytes, now_ms: UnixMs, life_ms: int) -> Contract:
        purchase = self.purchase
        accept_ms = min(limits.ACCEPT_WAIT_MS_MAX, life_ms)
        return Contract(
            version=PROTOCOL_VERSION,
            job_id=purchase.job_id,
            requester=requester,
            provider=self.candidate.peer_id,
            answers=terms.answers,
            made_at_ms=now_ms,
            accept_by_ms=now_ms + accept_ms,
            start_by_ms=now_ms + max(life_ms // 2, accept_ms),
            end_by_ms=now_ms + life_ms,
            task=purchase.task,
            model_id=self.candidate.offer.model_id,
            dtype=terms.dtype,
            sampling=purchase.order.sampling,
            input_hash=hash_input(salt, purchase.data),
            input_bytes=len(purchase.data),
            tokens_held=purchase.tokens_held,
            tokens_in_max=self.tokens_in_max,
            tokens_out_max=purchase.tokens_out_max,
            prices=terms.prices,
            price_max=terms.price_max,
            credit=terms.credit,
            voucher_window_tokens=terms.voucher_window_tokens,
        )

    def _bound(self, prices: Prices, life_ms: int) -> Microcredits:
        """Return the most the job may cost at these prices. Raises: AttemptFailedError (that is too much)."""
        bound = price_bound(
            prices,
            tokens_in_max=self.tokens_in_max,
            tokens_out_max=self.purchase.tokens_out_max,
            duration_ms_max=life_ms,
        )
        if bound > self.purchase.price_max:
            raise AttemptFailedError(
                DeclineCode.PRICE, f"may cost {bound} µc, at most {self.purchase.price_max} may be paid"
            )
        return bound
