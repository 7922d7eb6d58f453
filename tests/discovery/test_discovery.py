"""Adverts reach those who were there, those who come later, and those whom nobody near us knows."""

from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from node.discovery.discovery import CHANGE_GAP_S, HEARTBEAT_S_MIN
from node.errors import TransportError
from node.net.interface import Stream
from node.net.memory import MemoryFabric
from protocol.framing import ADVERT_PROTOCOL
from protocol.identity import peer_id_to_text
from tests.discovery.fakes import Adverting, advert, make, start
from tests.fakes import EPOCH_MS, served_model, signer_of, virtual_wall_clock


@pytest.fixture
async def fabric(nursery: trio.Nursery) -> MemoryFabric:
    made = MemoryFabric(seed=1)
    await nursery.start(made.run)
    return made


async def test_latecomer_learns_of_everybody_by_exchange(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    hub = await start(nursery, make(fabric, "hub"))
    for name in ("a", "b", "c"):
        await start(nursery, make(fabric, name), hub)
    await trio.sleep(5)
    late = await start(nursery, make(fabric, "late", model=None), hub)
    # Ready means: it knows what its first neighbour knows.
    assert late.knows() == {"hub", "a", "b", "c"}


async def test_news_spread_by_gossip_beyond_direct_neighbours(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    chain = [await start(nursery, make(fabric, "n0"))]
    for number in range(1, 5):
        chain.append(await start(nursery, make(fabric, f"n{number}"), chain[-1]))
    await trio.sleep(HEARTBEAT_S_MIN + 5)
    for number, node in enumerate(chain):
        assert node.knows() == {f"n{other}" for other in range(5)} - {f"n{number}"}


async def test_advert_is_renewed_before_it_expires(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    one = await start(nursery, make(fabric, "one"))
    two = await start(nursery, make(fabric, "two"), one)
    for _ in range(40):
        await trio.sleep(7)
        assert one.knows() == {"two"} and two.knows() == {"one"}
    gaps = differences(one)
    assert min(gaps[1:]) >= 20 and len(gaps) < 20


async def test_change_is_told_soon_but_not_twice_at_once(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    one = await start(nursery, make(fabric, "one"))
    two = await start(nursery, make(fabric, "two"), one)
    await trio.sleep(5)
    before, gossiped = len(one.composed), fabric.messages
    for _ in range(50):
        one.discovery.changed()
        await trio.sleep(0.1)
    await trio.sleep(CHANGE_GAP_S + 1)
    assert 2 <= len(one.composed) - before <= 8
    assert 2 <= fabric.messages - gossiped <= 4
    (listing,) = two.directory.listings(virtual_wall_clock())
    assert listing.advert.sequence == one.composed[-1][1].sequence


async def test_own_advert_is_withdrawn_when_the_node_drains(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    one = await start(nursery, make(fabric, "one"))
    await trio.sleep(5)
    one.draining = True
    one.discovery.changed()
    assert one.discovery.own_advert is None
    late = await start(nursery, make(fabric, "late"), one)
    await trio.sleep(30)
    assert late.knows() == set()
    one.draining = False
    one.discovery.changed()
    await trio.sleep(5)
    assert late.knows() == {"one"}


async def test_adverts_go_on_when_the_wall_clock_is_set_back(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    one = await start(nursery, make(fabric, "one"))
    two = await start(nursery, make(fabric, "two"), one)
    await trio.sleep(30)
    one.clock_ms = -20_000
    for _ in range(20):
        await trio.sleep(10)
        assert two.knows() == {"one"}


async def test_provider_is_found_in_the_dht_when_nobody_near_has_heard_of_it(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    hub = await start(nursery, make(fabric, "hub", model=None))
    far = await start(nursery, make(fabric, "far"), hub)
    await trio.sleep(HEARTBEAT_S_MIN + 10)
    near = await start(nursery, make(fabric, "near", model=None), hub)
    for wanted in ("tiny", served_model("tiny").model_id.hex()):
        forget(near, far)
        assert await near.discovery.look_up(wanted) == 1
        assert near.knows() == {"far"}
    forget(near, far)
    assert await near.discovery.look_up("", served_model("tiny").model_id) == 1
    assert await near.discovery.look_up("unheard-of") == 0
    # And it can be dialled by what the record says.
    stream = await near.network.open_stream(far.peer_id, ADVERT_PROTOCOL)
    await stream.reset()


def forget(node: Adverting, other: Adverting) -> None:
    """As if the advert had expired: waiting for that would let gossip bring the next one."""
    del node.directory._listings[other.peer_id]


async def test_look_up_finds_nothing_when_the_network_fails(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    one = await start(nursery, make(fabric, "one"))
    fabric.crash("one")
    assert await one.discovery.look_up("tiny") == 0


async def test_record_is_kept_under_its_signers_key_only(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    one = await start(nursery, make(fabric, "one"))
    await start(nursery, make(fabric, "two"), one)
    good = advert("p", now_ms=EPOCH_MS).envelope.raw
    mine = f"/cap/{peer_id_to_text(signer_of('p').peer_id)}"
    await one.network.put_record(mine, good)
    assert await one.network.get_record(mine) == good
    refused = [
        (f"/cap/{peer_id_to_text(signer_of('q').peer_id)}", good),
        ("/cap/nobody", good),
        (mine, b"garbage"),
        (mine, advert("p", now_ms=EPOCH_MS - 70_000).envelope.raw),
    ]
    for key, value in refused:
        with pytest.raises(TransportError):
            await one.network.put_record(key, value)
    newer = advert("p", now_ms=EPOCH_MS + 2_000).envelope.raw
    await one.network.put_record(mine, newer)
    await one.network.put_record(mine, good)
    assert await one.network.get_record(mine) == newer
    await trio.sleep(70)
    assert await one.network.get_record(mine) is None


async def test_bootstrap_peer_is_dialled_again_until_it_is_there(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    hub = make(fabric, "hub")
    address = f"/memory/hub/p2p/{peer_id_to_text(hub.peer_id)}"
    early = await start(nursery, make(fabric, "early"), address)
    assert trio.current_time() < 5, "an unreachable bootstrap peer holds nobody up"
    await trio.sleep(20)
    await start(nursery, hub)
    await trio.sleep(35)
    assert early.knows() == {"hub"}
    # And again after everybody was lost.
    fabric.crash("hub")
    hub.scope.cancel()
    await trio.sleep(200)
    assert early.knows() == set()
    await start(nursery, make(fabric, "hub"))
    await trio.sleep(35)
    assert early.knows() == {"hub"}


async def test_node_waits_for_the_living_bootstrap_peer_when_another_is_dead(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    hub = await start(nursery, make(fabric, "hub"))
    dead = f"/memory/dead/p2p/{peer_id_to_text(signer_of('dead').peer_id)}"
    late = await start(nursery, make(fabric, "late"), dead, hub)
    assert late.knows() == {"hub"}


async def test_newcomer_that_never_answers_keeps_nobody_waiting(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    async def never(_stream: Stream) -> None:
        await trio.sleep_forever()

    hub = await start(nursery, make(fabric, "hub"))
    for number in range(3):
        silent = fabric.network(f"silent{number}", signer_of(f"silent{number}").peer_id)
        silent.serve(ADVERT_PROTOCOL, never)
        await nursery.start(silent.run)
        await silent.dial(hub.network.addresses[0])
    await start(nursery, make(fabric, "honest"), hub)
    await trio.sleep(1)
    assert hub.knows() == {"honest"}


@pytest.mark.parametrize("frame", [b"\x01garbage", b"\xff", b""])
async def test_exchange_survives_garbage(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric, frame: bytes
) -> None:
    async def garbage(stream: Stream) -> None:
        await stream.send_frame(frame)
        await stream.finish()

    hub = await start(nursery, make(fabric, "hub"))
    rogue = fabric.network("rogue", signer_of("rogue").peer_id)
    rogue.serve(ADVERT_PROTOCOL, garbage)
    await nursery.start(rogue.run)
    await rogue.dial(hub.network.addresses[0])
    await trio.sleep(1)
    await start(nursery, make(fabric, "honest"), hub)
    await trio.sleep(1)
    assert hub.knows() == {"honest"}


async def test_nothing_is_left_when_discovery_is_cancelled_at_work(
    autojump_clock: MockClock, nursery: trio.Nursery, fabric: MemoryFabric
) -> None:
    hub = await start(nursery, make(fabric, "hub"))
    before = len(nursery.child_tasks)
    two = await start(nursery, make(fabric, "two"), hub)
    two.scope.cancel()
    await trio.sleep(1)
    assert len(nursery.child_tasks) == before and not hub.network.connected_peers()


def differences(node: Adverting) -> list[float]:
    times = [at for at, _life in node.composed]
    return [later - earlier for earlier, later in pairwise(times)]
