"""What is found of a peer in real rooms, and what the owner can do with it."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from node.api.errors import ApiError
from node.api.peer_desk import PeerDesk
from node.errors import TransportError
from node.net.memory import MemoryFabric
from protocol.identity import peer_id_to_text
from tests.api.test_daemon_view import view_of
from tests.fakes import ScriptedExecutor, signer_of
from tests.market.world import Node, World, buy, order


def desk_of(node: Node) -> PeerDesk:
    view = view_of(node)
    return PeerDesk(view._rooms, view)


@pytest.fixture
async def world(nursery: trio.Nursery, tmp_path: Path) -> World:
    fabric = MemoryFabric(seed=1)
    await nursery.start(fabric.run)
    return World(nursery, fabric, tmp_path)


async def test_peer_is_known_by_advert_connection_and_account(world: World, autojump_clock: MockClock) -> None:
    seller, buyer = await world.node("seller", executor=ScriptedExecutor()), await world.node("buyer")
    desk = desk_of(buyer)
    assert await desk.find(seller.peer_id) is None
    world.introduce(buyer, seller)
    found = await desk.find(seller.peer_id)
    assert found is not None and found.peer.name == "seller" and not found.peer.connected
    assert found.addresses == seller.network.addresses and not found.connections and found.account is None
    await buy(buyer, order())
    await trio.sleep(10)
    found = await desk.find(seller.peer_id)
    assert found is not None and found.peer.connected and len(found.connections) == 1 and found.versions == (1,)
    assert found.account is not None and found.account.spent_microcredits > 0
    # The seller has heard no advert: a name without one, and what it earned.
    found = await desk_of(seller).find(buyer.peer_id)
    assert found is not None and found.peer.name is None and found.peer.connected and found.connections[0].inbound
    assert found.account is not None and found.account.earned_microcredits > 0 and found.versions == ()


async def test_peer_is_pinged_disconnected_banned_and_let_in_again(
    world: World, autojump_clock: MockClock
) -> None:
    one, two = await world.node("one"), await world.node("two")
    desk, other = desk_of(one), two.peer_id
    await one.network.dial(two.network.addresses[0])
    assert 0 < await desk.ping(other) < 1
    assert await desk.disconnect(other) and not await desk.disconnect(other)
    assert await desk.ping(other) > 0, "it may come back"
    ban = await desk.ban(other, "no reason")
    assert ban.since_ms == one.party.now_ms() and not one.network.connected_peers()
    (shown,) = view_of(one).peers()
    assert shown.ban == ban and shown.peer_id == peer_id_to_text(other) and not shown.connected
    found = await desk.find(other)
    assert found is not None and found.peer.ban == ban
    with pytest.raises(TransportError, match="refused by this node"):
        await desk.ping(other)
    assert await desk.unban(other) and not view_of(one).peers()
    assert await desk.ping(other) > 0


async def test_stranger_can_be_banned_and_the_node_itself_cannot(world: World, autojump_clock: MockClock) -> None:
    one, stranger = await world.node("one"), signer_of("stranger").peer_id
    await desk_of(one).ban(stranger, "")
    assert await desk_of(one).find(stranger) is not None
    with pytest.raises(ApiError, match="the node itself"):
        await desk_of(one).ban(one.peer_id, "")
    assert one.peer_id not in one.bans
