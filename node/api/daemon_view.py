"""The API's view of a running daemon: gathers facts from the rooms and puts them into ``views.py``'s forms."""

import importlib.metadata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from node.api.device_views import own_device, peer_device, tokens_per_s
from node.api.job_views import JobTrace, job_trace, job_view
from node.api.views import (
    BanView,
    BundleMessage,
    BundleView,
    DeviceView,
    GateView,
    JobCounts,
    JobView,
    Json,
    ModelView,
    OfferedModelView,
    PeerView,
    ReceiptView,
    StatusView,
    WorkerView,
)
from node.api.why_node import NodeFacts
from node.bans import Ban, BanList
from node.config import Config
from node.discovery.directory import Directory, Listing
from node.execution.interface import Executor
from node.execution.worker_state import WorkerState
from node.ledger.ledger import Ledger
from node.market.admission import Admission
from node.market.journal import JobRecord
from node.market.party import Party
from node.market.provider import Provider
from node.market.requester import Requester
from node.net.interface import Network
from protocol.advert import PROTOCOL_VERSION, Advert, Offer
from protocol.evidence import Readable, readable
from protocol.identity import peer_id_to_text
from protocol.schema import to_plain
from protocol.signed import Signed
from protocol.units import ModelId, PeerId

MILLI: Final = 1_000
STARTING: Final = "starting"
OK: Final = "ok"
_STRANGER: Final = PeerId(bytes(32))
"""Nobody's key: it stands for a peer that we have never dealt with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What the view looks into."""

    config: Config
    party: Party
    network: Network
    directory: Directory
    bans: BanList
    executor: Executor
    admission: Admission
    provider: Provider
    requester: Requester
    own_advert: Callable[[], Signed[Advert] | None]
    gate: Callable[[], GateView]


class DaemonView:
    """Implements ``node.api.services.View``. ``checks`` is what readiness shows; the daemon fills it in."""

    def __init__(self, rooms: Rooms, *, started_at: float) -> None:
        """``started_at`` is in trio time."""
        self._rooms = rooms
        self._started_at = started_at
        self.checks: dict[str, str] = {"network": STARTING, "worker": STARTING, "ledger": OK}

    async def status(self) -> StatusView:
        rooms = self._rooms
        totals = await rooms.party.ledger.totals()
        running = rooms.admission.running
        return StatusView(
            name=rooms.config.node.name,
            peer_id=peer_id_to_text(rooms.party.peer_id),
            version=importlib.metadata.version("souk"),
            network=rooms.config.p2p.network,
            role=rooms.config.node.role,
            ready=all(check == OK for check in self.checks.values()),
            problems={name: check for name, check in self.checks.items() if check != OK},
            uptime_s=trio.current_time() - self._started_at,
            addresses=rooms.network.addresses,
            peers_connected=len(rooms.network.connected_peers()),
            models=tuple(model.name for model in rooms.executor.models()),
            devices=tuple(self.devices()),
            workers=tuple(_worker(state) for state in rooms.executor.workers()),
            jobs=JobCounts(
                running=min(running, rooms.admission.slots) + len(rooms.requester.jobs),
                waiting=max(running - rooms.admission.slots, 0),
            ),
            gate=rooms.gate(),
            earned_microcredits=totals.earned,
            spent_microcredits=totals.spent,
        )

    def peers(self) -> Sequence[PeerView]:
        """Return every peer that is connected, advertises or is banned."""
        now_ms = self._rooms.party.now_ms()
        connected, bans = self._rooms.network.connected_peers(), self._rooms.bans
        listed = {listing.peer_id: listing for listing in self._rooms.directory.listings(now_ms)}
        shown = [_peer(listing, peer in connected, now_ms) for peer, listing in listed.items()]
        others = (connected | {ban.peer_id for ban in bans.all()}) - listed.keys()
        shown += [_stranger(peer_id, peer_id in connected, bans.find(peer_id)) for peer_id in others]
        return sorted(shown, key=lambda peer: (peer.name is None, peer.name or "", peer.peer_id))

    def peer(self, peer_id: PeerId) -> tuple[PeerView, Listing | None]:
        """Return one peer, known or not, and what it advertises."""
        now_ms = self._rooms.party.now_ms()
        is_connected = peer_id in self._rooms.network.connected_peers()
        for listing in self._rooms.directory.listings(now_ms):
            if listing.peer_id == peer_id:
                return _peer(listing, is_connected, now_ms), listing
        return _stranger(peer_id, is_connected, self._rooms.bans.find(peer_id)), None

    def models(self) -> Sequence[ModelView]:
        """Return each model once, with the lowest prices and the highest speed on offer."""
        offers: dict[bytes, list[Offer]] = {}
        for listing in self._rooms.directory.listings(self._rooms.party.now_ms()):
            for offer in listing.advert.offers:
                offers.setdefault(offer.model_id, []).append(offer)
        peers = {model_id: len(found) for model_id, found in offers.items()}
        own = self._rooms.own_advert()
        local = {offer.model_id: offer for offer in own.message.offers} if own is not None else {}
        for model_id, offer in local.items():
            offers.setdefault(model_id, []).append(offer)
        delivered = {it.model_id: it.delivered_tokens_per_s_milli for it in self._rooms.executor.models()}
        return sorted(
            (
                ModelView(
                    delivered_tokens_per_s=tokens_per_s(delivered.get(ModelId(model_id))),
                    name=found[0].name,
                    model_id=model_id.hex(),
                    local=model_id in local,
                    tasks=tuple(sorted({offer.task for offer in found})),
                    peers=peers.get(model_id, 0),
                    context_tokens=max(offer.context_tokens for offer in found),
                    price_in=min(offer.prices.tokens_in for offer in found),
                    price_out=min(offer.prices.tokens_out for offer in found),
                    tokens_per_s=max(offer.tokens_per_s_milli for offer in found) / MILLI,
                )
                for model_id, found in offers.items()
            ),
            key=lambda model: (model.name, model.model_id),
        )

    def devices(self) -> Sequence[DeviceView]:
        executor = self._rooms.executor
        return [own_device(report, executor.models()) for report in executor.devices()]

    def advert(self) -> dict[str, Json] | None:
        own = self._rooms.own_advert()
        if own is None:
            return None
        return {key: _json(readable(value)) for key, value in to_plain(own.message).items()}

    def jobs(self) -> Sequence[JobView]:
        """Return the newest jobs, bought, sold and our own, those that began last first."""
        return [job_view(it, tokens_out=self._tokens_now(it)) for it in self._rooms.party.journal.records()]

    def find_jobs(self, prefix: str) -> Sequence[JobTrace]:
        found = self._rooms.party.journal.find(prefix)
        return [job_trace(record, tokens_out=self._tokens_now(record)) for record in found]

    def _tokens_now(self, record: JobRecord) -> int | None:
        """Return how far a contract of a peer's is: its record hears of changes of its state only."""
        job = None if record.contract_id is None else self._rooms.provider.jobs.get(record.contract_id)
        return None if job is None else job.tokens_out

    def facts(self) -> NodeFacts:
        rooms, now, gate = self._rooms, trio.current_time(), self._rooms.gate()
        listings = rooms.directory.listings(rooms.party.now_ms())
        own = rooms.own_advert()
        ours = [it for it in listings if it.advert.offers and PROTOCOL_VERSION in it.advert.versions]
        return NodeFacts(
            role=rooms.config.node.role,
            problems={name: check for name, check in self.checks.items() if check != OK},
            peers_connected=len(rooms.network.connected_peers()),
            models=len(rooms.executor.models()),
            is_advertised=own is not None and bool(own.message.offers),
            is_draining=gate.drained,
            closed=() if gate.drained else gate.reasons,
            opens_at_ms=gate.opens_at_ms,
            unread=gate.unread,
            slots=rooms.admission.slots,
            slots_free=rooms.admission.slots_free(now),
            credit_stranger=rooms.admission.credit_left(_STRANGER, now),
            spend_stranger=rooms.requester.spending.room(_STRANGER),
            offering=len(ours),
            offering_free=sum(it.advert.slots_free > 0 for it in ours),
            doubted=len(rooms.directory.doubted() & {it.peer_id for it in ours}),
            other_versions=sum(PROTOCOL_VERSION not in it.advert.versions for it in listings),
            declines=dict(rooms.party.metrics.declines),
            workers=rooms.executor.workers(),
        )

    def readiness(self) -> dict[str, str]:
        return dict(self.checks)

    def books(self) -> Ledger:
        return self._rooms.party.ledger

    async def receipts(self, limit: int) -> Sequence[ReceiptView]:
        return [
            ReceiptView(
                contract_id=row.contract_id.hex(),
                job_id=row.job_id.hex(),
                role=row.role,
                peer_id=peer_id_to_text(row.peer_id),
                model=row.model,
                state=str(row.state),
                tokens_in=row.tokens_in,
                tokens_out=row.tokens_out,
                cost_microcredits=row.vouchered,
                at_ms=row.at_ms,
                energy_millijoules=row.energy_millijoules,
            )
            for row in await self._rooms.party.ledger.contracts(limit)
        ]

    async def bundle(self, contract_id_prefix: str) -> BundleView | None:
        found = await self._rooms.party.ledger.messages(contract_id_prefix)
        if found is None:
            return None
        return BundleView(
            network=self._rooms.party.network.hex(),
            messages=tuple(
                BundleMessage(type=it.kind, sender=it.sender, at_ms=it.at_ms, envelope=it.raw.hex())
                for it in found[1]
            ),
        )


def _peer(listing: Listing, connected: bool, now_ms: int) -> PeerView:
    advert = listing.advert
    return PeerView(
        peer_id=peer_id_to_text(listing.peer_id),
        name=advert.name,
        connected=connected,
        advert_age_ms=max(now_ms - listing.heard_at_ms, 0),
        models=tuple(
            OfferedModelView(
                name=offer.name,
                model_id=offer.model_id.hex(),
                context_tokens=offer.context_tokens,
                price_in=offer.prices.tokens_in,
                price_out=offer.prices.tokens_out,
                tokens_per_s=offer.tokens_per_s_milli / MILLI,
            )
            for offer in advert.offers
        ),
        slots_free=advert.slots_free,
        slots_total=advert.slots_total,
        queue_ms=advert.queue_ms,
        devices=tuple(peer_device(claim) for claim in advert.devices),
    )


def _stranger(peer_id: PeerId, connected: bool, ban: Ban | None) -> PeerView:
    """A peer without an advert: a client, one that has only just come, or one that is not listened to."""
    return PeerView(
        peer_id=peer_id_to_text(peer_id),
        name=None,
        connected=connected,
        ban=None if ban is None else BanView(since_ms=ban.since_ms, reason=ban.reason),
        advert_age_ms=None,
        slots_free=None,
        slots_total=None,
        queue_ms=None,
    )


def _json(value: Readable) -> Json:
    if isinstance(value, list):
        return [_json(item) for item in value]
    if isinstance(value, dict):
        return {key: _json(item) for key, item in value.items()}
    return value


def _worker(state: WorkerState) -> WorkerView:
    return WorkerView(
        device=state.device,
        state=state.life,
        jail=state.jail,
        spare=state.spare,
        deaths=state.deaths,
        cause=state.cause,
        probe_in_s=state.probe_in_s,
    )
