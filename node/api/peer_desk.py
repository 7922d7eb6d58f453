"""What is known of single peers, gathered from the rooms, and what the owner may do with them."""

from node.api.daemon_view import DaemonView, Rooms
from node.api.errors import bad_request
from node.api.ledger_views import peer_account_view
from node.api.peer_routes import ConnectionView, PeerAnswer
from node.api.views import BanView
from node.bans import Ban
from node.market.banning import Doorkeeper
from protocol.units import MS_PER_S, PeerId


class PeerDesk:
    """Implements ``node.api.peer_routes.Peers``."""

    def __init__(self, rooms: Rooms, view: DaemonView) -> None:
        self._rooms, self._view = rooms, view
        self._doorkeeper = Doorkeeper(rooms.bans, rooms.network, rooms.provider, rooms.requester)

    async def find(self, peer_id: PeerId) -> PeerAnswer | None:
        """Return what is known of a peer, None if nothing is. Raises: LedgerError."""
        accounts = {it.peer_id: it for it in await self._rooms.party.ledger.peer_accounts()}
        contact = self._rooms.network.contact(peer_id)
        peer, listing = self._view.peer(peer_id)
        if not (peer.connected or listing or peer.ban or contact.addresses or peer_id in accounts):
            return None
        account = accounts.get(peer_id)
        return PeerAnswer(
            peer=peer,
            addresses=contact.addresses,
            connections=tuple(
                ConnectionView(
                    address=it.address,
                    inbound=it.is_inbound,
                    rtt_ms=None if it.rtt_s is None else it.rtt_s * MS_PER_S,
                )
                for it in contact.connections
            ),
            protocols=contact.protocols,
            versions=() if listing is None else tuple(listing.advert.versions),
            account=None if account is None else peer_account_view(account),
        )

    async def ping(self, peer_id: PeerId) -> float:
        """Return how many seconds a peer takes to answer. Raises: TransportError."""
        return await self._rooms.network.ping(peer_id)

    async def disconnect(self, peer_id: PeerId) -> bool:
        """Close all connections with a peer; return whether there was one."""
        was_connected = peer_id in self._rooms.network.connected_peers()
        await self._rooms.network.disconnect(peer_id)
        return was_connected

    async def ban(self, peer_id: PeerId, reason: str) -> BanView:
        """Have nothing to do with a peer any more. Raises: BanListError, ApiError (it is this node)."""
        if peer_id == self._rooms.party.peer_id:
            raise bad_request("this is the node itself, which cannot be banned", param="peer")
        ban = Ban(peer_id=peer_id, since_ms=self._rooms.party.now_ms(), reason=reason)
        await self._doorkeeper.ban(ban)
        return BanView(since_ms=ban.since_ms, reason=ban.reason)

    async def unban(self, peer_id: PeerId) -> bool:
        """Lift a ban and return whether there was one. Raises: BanListError."""
        return await self._doorkeeper.unban(peer_id)
