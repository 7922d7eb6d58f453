"""The directory: the newest advert of each peer, until it expires (spec 06).

Everything in it is a hint by its author about itself. It is bounded, and it forgets.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Final

from node.model_names import names_model
from protocol import limits
from protocol.advert import PROTOCOL_VERSION, Advert, Offer, check_life_untrusted
from protocol.errors import Reason, RemoteProtocolError
from protocol.framing import ENVELOPE_FRAME_BYTES_MAX
from protocol.signed import Signed, read_untrusted
from protocol.units import MS_PER_S, ModelId, NetworkId, PeerId, UnixMs

# About 2 KiB each: 8 MiB at the most.
PEERS_MAX: Final = 4096
# An honest node adverts on a change and every 20 s or more; faster than this is flooding.
ADVERT_GAP_MS_MIN: Final = 1 * MS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A peer's newest advert and when we heard it."""

    signed: Signed[Advert]
    heard_at_ms: UnixMs

    @property
    def peer_id(self) -> PeerId:
        return self.signed.signer

    @property
    def advert(self) -> Advert:
        return self.signed.message


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A peer that says it serves a wanted model, and the offer that says so."""

    listing: Listing
    offer: Offer
    is_doubted: bool = False
    """It failed somebody here since it last said so."""

    @property
    def peer_id(self) -> PeerId:
        return self.listing.peer_id


class Directory:
    """The newest valid advert of every peer heard of. Time is an argument everywhere."""

    def __init__(self, network: NetworkId, own_id: PeerId, *, banned: Container[PeerId] = frozenset()) -> None:
        """``banned`` peers are not listed; it may change at any time."""
        self._banned = banned
        self._network = network
        self._own_id = own_id
        self._listings: dict[PeerId, Listing] = {}
        self._doubted: set[PeerId] = set()

    def hear_untrusted(self, raw: bytes, now_ms: UnixMs) -> Listing | None:
        """Take an advert in and return its listing; None for our own, a banned peer's, and one that is not newer.

        Raises nothing but ``RemoteProtocolError``: it is broken, expired, or comes too fast after the last.
        """
        if len(raw) > min(ENVELOPE_FRAME_BYTES_MAX, limits.ADVERT_BYTES_MAX + limits.ENVELOPE_OVERHEAD_BYTES_MAX):
            raise RemoteProtocolError(f"an advert of {len(raw)} bytes", reason=Reason.SIZE)
        signed = read_untrusted(raw, network=self._network, allowed=(Advert,))
        check_life_untrusted(signed.message, now_ms)
        if signed.message.sequence > now_ms + limits.CLOCK_SKEW_MS_MAX:
            # Without it the gap below would be kept by counting in seconds, at any speed.
            raise RemoteProtocolError("advert: its sequence is a time in the future", reason=Reason.TIME)
        if signed.signer == self._own_id or signed.signer in self._banned:
            return None
        known = self._listings.get(signed.signer)
        if known is not None:
            if signed.message.sequence <= known.advert.sequence:
                return None
            if signed.message.sequence - known.advert.sequence < ADVERT_GAP_MS_MIN:
                raise RemoteProtocolError("adverts of one peer come faster than one a second", reason=Reason.RATE)
        listing = Listing(signed=signed, heard_at_ms=now_ms)
        self._listings[signed.signer] = listing
        self._doubted.discard(signed.signer)
        if len(self._listings) > PEERS_MAX:
            del self._listings[min(self._listings, key=lambda peer: self._listings[peer].advert.expires_at_ms)]
        return listing

    def doubt(self, peer_id: PeerId) -> None:
        """Note that a peer did not keep what it said, until it says something new: it is tried last.

        Not dropped: where it was the only one, "silent" is a better answer than "no such model".
        """
        if peer_id in self._listings:
            self._doubted.add(peer_id)

    def listings(self, now_ms: UnixMs) -> list[Listing]:
        """Return what has not expired, and drop the rest."""
        for peer_id, listing in list(self._listings.items()):
            if listing.advert.expires_at_ms <= now_ms or peer_id in self._banned:
                del self._listings[peer_id]
        self._doubted &= self._listings.keys()
        return list(self._listings.values())

    def doubted(self) -> frozenset[PeerId]:
        """Return the peers that failed somebody here since they last said something."""
        return frozenset(self._doubted)

    def candidates(self, model: str, now_ms: UnixMs) -> list[Candidate]:
        """Return who serves the model of this name or hex id prefix and speaks our version, in no order."""
        return [
            Candidate(listing=listing, offer=offer, is_doubted=listing.peer_id in self._doubted)
            for listing in self.listings(now_ms)
            if PROTOCOL_VERSION in listing.advert.versions
            for offer in listing.advert.offers
            if names_model(model, offer.name, ModelId(offer.model_id))
        ]

    def model_names(self, now_ms: UnixMs) -> Iterator[str]:
        """Yield the names of all models on offer, sorted, each once."""
        yield from sorted({offer.name for it in self.listings(now_ms) for offer in it.advert.offers})
