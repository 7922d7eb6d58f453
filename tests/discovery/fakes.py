"""Adverts as a small node would sign them, and nodes that only advertise."""

from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from node.discovery.directory import Directory
from node.discovery.discovery import AdvertLife, Discovery
from node.net.memory import MemoryFabric, MemoryNetwork
from protocol.advert import Advert, Offer
from protocol.price import Prices
from protocol.signed import Signed, sign
from protocol.units import NetworkId, PeerId, UnixMs
from tests.fakes import EPOCH_MS, served_model, signer_of, virtual_wall_clock

NETWORK = NetworkId(b"n" * 32)
FREE = Prices(fixed=0, tokens_in=0, tokens_out=0, per_s=0)


def offer(model: str = "tiny") -> Offer:
    served = served_model(model)
    return Offer(
        model_id=served.model_id,
        name=served.name,
        task="generate",
        dtype=served.dtype,
        context_tokens=served.context_tokens,
        prices=FREE,
        tokens_per_s_milli=1,
    )


def advert(
    name: str = "p",
    *,
    now_ms: int = EPOCH_MS,
    life_ms: int = 60_000,
    network: NetworkId = NETWORK,
    **changes: Any,  # any field of an advert
) -> Signed[Advert]:
    message = Advert(
        sequence=now_ms,
        issued_at_ms=now_ms,
        expires_at_ms=now_ms + life_ms,
        versions=(1,),
        name=name,
        addresses=(),
        devices=(),
        offers=(offer(),),
        slots_total=8,
        slots_free=8,
        queue_ms=0,
        credit=0,
    )
    return sign(msgspec.structs.replace(message, **changes), network=network, signer=signer_of(name))


@dataclass
class Adverting:
    """A node that does nothing but tell and hear adverts."""

    network: MemoryNetwork
    directory: Directory
    discovery: Discovery
    composed: list[tuple[float, AdvertLife]]
    scope: trio.CancelScope
    draining: bool = False
    clock_ms: int = 0
    """How far its wall clock is off."""

    @property
    def peer_id(self) -> PeerId:
        return self.network.peer_id

    def knows(self) -> set[str]:
        now_ms = UnixMs(virtual_wall_clock() + self.clock_ms)
        return {listing.advert.name for listing in self.directory.listings(now_ms)}


def make(fabric: MemoryFabric, name: str, *, model: str | None = "tiny") -> Adverting:
    """Return a node that is not running yet; without a model it has nothing to advertise."""
    signer = signer_of(name)
    network = fabric.network(name, signer.peer_id)
    directory = Directory(NETWORK, signer.peer_id)
    composed: list[tuple[float, AdvertLife]] = []

    def compose(life: AdvertLife) -> Signed[Advert] | None:
        composed.append((trio.current_time(), life))
        if model is None or node.draining:
            return None
        return advert(
            name,
            sequence=life.sequence,
            issued_at_ms=life.issued_at_ms,
            expires_at_ms=life.expires_at_ms,
            addresses=network.addresses,
            offers=(offer(model),),
        )

    discovery = Discovery(
        network,
        directory,
        network_id=NETWORK,
        compose=compose,
        wall_clock=lambda: UnixMs(virtual_wall_clock() + node.clock_ms),
    )
    node = Adverting(network, directory, discovery, composed, trio.CancelScope())
    discovery.attach()
    return node


async def start(nursery: trio.Nursery, node: Adverting, *bootstrap: Adverting | str) -> Adverting:
    addresses = tuple(it if isinstance(it, str) else it.network.addresses[0] for it in bootstrap)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with node.scope:
            async with trio.open_nursery() as inner:
                await inner.start(node.network.run)
                await inner.start(node.discovery.run, addresses)
                task_status.started()

    await nursery.start(run)
    return node
