"""What this node puts at risk with providers, under the same rule as what peers may owe it (spec 05, section 7).

At risk is the price of a contract while it is open, and what was promised for one that did not end with a receipt
of a complete answer. Answers that did end so raise the provider's limit, as a settled sum does on the other side.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count

from node.config import MarketSection
from node.ledger.standing import Standings
from node.market.exposures import Exposures, forgive_s, spend_rule
from node.market.purchase import AnswerLog, AttemptFailedError
from protocol.units import MessageId, Microcredits, PeerId

_KEY_BYTES = 8


class Spending:
    """Refuses a contract whose price the provider's limit does not cover. ``clock`` is trio's."""

    def __init__(self, market: MarketSection, *, clock: Callable[[], float]) -> None:
        self._exposures = Exposures(spend_rule(market), forgive_s=forgive_s(market))
        self._clock = clock
        self._keys = count()

    def remember(self, standings: Standings) -> None:
        """Take over what was at risk before the last stop."""
        self._exposures.remember(standings.bought, standings.read_at_ms, now=self._clock())

    def reconfigure(self, market: MarketSection) -> None:
        """Follow other limits from now on."""
        self._exposures.change_rule(spend_rule(market))

    def room(self, peer_id: PeerId) -> Microcredits:
        """Return what may be put at risk with a provider now."""
        return self._exposures.room(peer_id, self._clock())

    @contextmanager
    def at_risk(self, peer_id: PeerId, price_max: Microcredits, answer_log: AnswerLog) -> Iterator[None]:
        """Count one contract: its price while the block runs, then what was promised unless the block ends well.

        Raises: AttemptFailedError (the provider's limit does not cover the price).
        """
        made_at, promised_before = self._clock(), answer_log.spent
        if price_max > self._exposures.room(peer_id, made_at):
            raise AttemptFailedError(
                "spend_limit",
                f"the job may cost {price_max} µc, too much to put at risk with this provider:"
                f" {self._exposures.describe(peer_id, made_at)}; see market.spend_new_peer",
            )
        # The contract has no id yet, and nobody else needs to name this reserve.
        key = MessageId(next(self._keys).to_bytes(_KEY_BYTES))
        self._exposures.reserve(key, peer_id, price_max)
        try:
            yield
        except BaseException:
            self._exposures.release(key)
            if answer_log.spent > promised_before:
                self._exposures.owe(peer_id, answer_log.spent - promised_before, at=made_at)
            raise
        self._exposures.release(key)
        self._exposures.earn(peer_id, answer_log.spent - promised_before)
