import trio
from trio.testing import MockClock

from node.net.memory import MemoryFabric
from protocol.errors import Reason
from tests.discovery.fakes import NETWORK, advert, make, start
from tests.fakes import EPOCH_MS, signer_of
from tests.test_metrics import samples

TOPIC = f"souk/{NETWORK.hex()[:16]}/adverts/1"


async def test_node_counts_adverts_by_what_became_of_them(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    fabric = MemoryFabric(seed=1)
    await nursery.start(fabric.run)
    hub = await start(nursery, make(fabric, "hub", model=None))
    rogue = fabric.network("rogue", signer_of("rogue").peer_id)
    rogue.subscribe(TOPIC, lambda _peer, _data: True)
    await nursery.start(rogue.run)
    await rogue.dial(hub.network.addresses[0])
    await trio.sleep(5)
    good = advert("rogue", now_ms=EPOCH_MS + 10_000).envelope.raw
    for data in (good, good[:-1] + bytes([good[-1] ^ 1]), b"\xff" * 40):
        await rogue.publish(TOPIC, data)
        await trio.sleep(2)
    await rogue.publish(TOPIC, advert("rogue", now_ms=EPOCH_MS + 5_000).envelope.raw)
    await trio.sleep(2)
    found = samples(hub.discovery.metrics)
    results = {
        labels[0]: value for (name, labels), value in found.items() if name == "souk_adverts_total" and value
    }
    assert results["accepted"] == results["stale"] == 1
    assert results.keys() & {reason.value for reason in Reason}
    rejected = {labels: value for (name, labels), value in found.items() if name == "souk_p2p_rejected_total"}
    assert sum(rejected.values()) == 2
