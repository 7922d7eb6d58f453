"""What the owner's bans do (``node/bans.py`` keeps them): the peer is parted from in order, and then kept out.

From the moment that a ban is on disk, the peer's asks and contracts are declined (``admission.py``), its adverts
are not heard (``node/discovery``), and no connection or stream to it begins (``node/net``). What runs is ended and
not run to its end: an owner who bans wants the peer gone now, and a long answer takes minutes. It is ended as the
contracts say, and before the connection closes: sold jobs are handed back, which leaves the requester no debt
beyond its vouchers, so that it goes on elsewhere; bought ones are cancelled and paid as metered, and their orders
go on at other peers. What both owe each other stays in the books, and is settled after an unban or never.
"""

import logging
from typing import Final, Protocol

import trio

from node.bans import Ban, BanList, BanNotSyncedError
from node.net.interface import Network
from protocol.identity import peer_id_to_text
from protocol.units import PeerId

log = logging.getLogger(__name__)

# A cancelled purchase has three seconds for its farewell; a peer that will not part is cut off after five.
PARTING_S: Final = 5.0


class Side(Protocol):
    """Provider or requester: whoever has contracts with the peer."""

    async def part_from(self, peer_id: PeerId) -> None:
        """End every contract with the peer in order, and return when none is left."""


class Doorkeeper:
    """Carries bans out."""

    def __init__(self, bans: BanList, network: Network, *sides: Side) -> None:
        self._bans = bans
        self._network = network
        self._sides = sides

    async def ban(self, ban: Ban) -> None:
        """Ban a peer; when this returns nothing runs with it and it is not connected.

        Raises: BanNotSyncedError (all of this was done); BanListError (nothing has changed).
        """
        try:
            await self._bans.add(ban)
        except BanNotSyncedError:
            await self._part_from(ban)
            raise
        await self._part_from(ban)

    async def _part_from(self, ban: Ban) -> None:
        log.info("peer banned", extra={"peer": peer_id_to_text(ban.peer_id)})
        with trio.move_on_after(PARTING_S) as patience:
            async with trio.open_nursery() as nursery:
                for side in self._sides:
                    nursery.start_soon(side.part_from, ban.peer_id)
        if patience.cancelled_caught:
            log.warning("contracts with a banned peer cut off", extra={"peer": peer_id_to_text(ban.peer_id)})
        await self._network.disconnect(ban.peer_id)

    async def unban(self, peer_id: PeerId) -> bool:
        """Lift a ban and return whether there was one. Raises: as ``ban``."""
        was_banned = await self._bans.remove(peer_id)
        if was_banned:
            log.info("peer unbanned", extra={"peer": peer_id_to_text(peer_id)})
        return was_banned
