"""A desk that knows one peer, and notes what it is told."""

import math
from dataclasses import dataclass, field

import trio
from nacl.signing import SigningKey

from node.api.ledger_views import PeerAccountView
from node.api.peer_routes import ConnectionView, PeerAnswer
from node.api.views import BanView, PeerView
from node.bans import BanListError
from node.errors import TransportError
from protocol.identity import peer_id_to_text
from protocol.units import PeerId

KNOWN = PeerId(bytes(SigningKey(bytes(32)).verify_key))


@dataclass
class FakePeers:
    """Implements ``node.api.peer_routes.Peers``."""

    rtt_s: float | None = 0.0125
    """``inf``: it never answers; None: it cannot be reached."""
    connected: bool = True
    full: bool = False
    bans: dict[PeerId, BanView] = field(default_factory=dict)

    async def find(self, peer_id: PeerId) -> PeerAnswer | None:
        if peer_id != KNOWN and peer_id not in self.bans:
            return None
        text = peer_id_to_text(peer_id)
        return PeerAnswer(
            peer=PeerView(
                peer_id=text,
                name="gpu-2",
                connected=self.connected,
                advert_age_ms=5,
                slots_free=1,
                slots_total=2,
                queue_ms=0,
                ban=self.bans.get(peer_id),
            ),
            addresses=("/ip4/192.0.2.1/tcp/11501",),
            connections=(ConnectionView(address="/ip4/192.0.2.1/tcp/50000", inbound=True, rtt_ms=None),),
            protocols=("/souk/job/1",),
            versions=(1,),
            account=PeerAccountView(
                peer_id=text,
                earned_microcredits=5,
                spent_microcredits=0,
                unpaid_by_them_microcredits=0,
                unpaid_by_us_microcredits=0,
                sold={"closed": 1},
                bought={},
                last_ms=9,
            ),
        )

    async def ping(self, peer_id: PeerId) -> float:
        if self.rtt_s is None:
            raise TransportError("no way there")
        await trio.sleep(self.rtt_s)
        return self.rtt_s if self.rtt_s < math.inf else 0.0

    async def disconnect(self, peer_id: PeerId) -> bool:
        was, self.connected = self.connected, False
        return was

    async def ban(self, peer_id: PeerId, reason: str) -> BanView:
        if self.full:
            raise BanListError("the list is full")
        self.bans[peer_id] = BanView(since_ms=7, reason=reason)
        return self.bans[peer_id]

    async def unban(self, peer_id: PeerId) -> bool:
        if self.full:
            raise BanListError("the list is full")
        return self.bans.pop(peer_id, None) is not None
