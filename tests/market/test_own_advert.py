"""What a node says of itself: what it serves now, at its prices, in as many bytes as an advert may have."""

from node.discovery.discovery import AdvertLife
from node.execution.interface import DeviceReport
from node.market.admission import Closed
from protocol import limits
from protocol.advert import Advert
from protocol.signed import read_untrusted
from protocol.units import UnixMs
from tests.fakes import EPOCH_MS, ScriptedExecutor, served_model
from tests.market.world import NETWORK, World

NOW = UnixMs(EPOCH_MS)
LIFE = AdvertLife(sequence=NOW, issued_at_ms=NOW, expires_at_ms=UnixMs(NOW + 60_000))


class WithDevice(ScriptedExecutor):
    def devices(self) -> tuple[DeviceReport, ...]:
        return (
            DeviceReport(
                kind="cpu",
                index=0,
                name="x" * 200,
                architecture="avx512",
                memory_total_bytes=(5 << 30) + 12_345,
                memory_free_bytes=(3 << 30) + 12_345,
                dtypes=("fp32",),
                driver=None,
                matmul_gflops=100,
                read_mb_per_s=1_000,
            ),
        )


async def test_advert_tells_models_prices_and_free_slots(world: World) -> None:
    node = await world.node("p", executor=WithDevice())
    signed = node.own_advert.compose(LIFE)
    assert signed is not None
    advert = read_untrusted(signed.envelope.raw, network=NETWORK, allowed=(Advert,)).message
    assert [it.name for it in advert.offers] == ["tiny"] and advert.offers[0].prices == node.provider.prices
    assert (advert.slots_total, advert.slots_free, advert.queue_ms) == (8, 8, 0)
    assert advert.addresses == node.network.addresses and advert.credit == 100_000


async def test_advert_tells_strangers_only_roughly_how_much_memory_is_free(world: World) -> None:
    node = await world.node("p", executor=WithDevice())
    signed = node.own_advert.compose(LIFE)
    assert signed is not None
    (device,) = signed.message.devices
    assert device.memory_free_bytes == 3 << 30 and device.memory_total_bytes == 5 << 30
    assert len(device.name) == limits.NAME_BYTES_MAX


async def test_node_advertises_nothing_when_it_serves_nothing_or_drains(world: World) -> None:
    client, node = await world.node("r"), await world.node("p", executor=ScriptedExecutor())
    assert client.own_advert.compose(LIFE) is None
    node.admission.closed = Closed(message="not now", retry_after_ms=7)
    assert node.own_advert.compose(LIFE) is None


async def test_node_takes_its_offers_back_when_it_serves_nothing_any_more(world: World) -> None:
    executor = WithDevice()
    node = await world.node("p", executor=executor)
    assert node.own_advert.compose(LIFE) is not None
    executor.served = ()
    taken_back = node.own_advert.compose(LIFE)
    # An advert that is merely not renewed holds for its lifetime: peers would ask until then.
    assert taken_back is not None and taken_back.message.offers == ()
    assert read_untrusted(taken_back.envelope.raw, network=NETWORK, allowed=(Advert,)).message.slots_free == 8


async def test_models_are_left_out_when_the_advert_is_full(world: World) -> None:
    served = tuple(served_model("m" * 60 + str(number)) for number in range(20))
    node = await world.node("p", executor=ScriptedExecutor(served=served))
    signed = node.own_advert.compose(LIFE)
    assert signed is not None
    names = [it.name for it in signed.message.offers]
    assert 1 <= len(names) <= limits.MODELS_MAX and names == [it.name for it in served[: len(names)]]
    assert len(signed.envelope.body) <= limits.ADVERT_BYTES_MAX
