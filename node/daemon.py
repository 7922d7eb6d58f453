"""How it all starts: one function, one nursery, every room.

What runs where: libp2p, the HTTP API and the market in this process on trio; torch in a worker process per device;
SQLite on one thread. ``node.cli.serve`` calls this with the home locked, and cancels it to stop.
"""

import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Protocol

import trio

from node.api.app import make_app
from node.api.daemon_view import OK, DaemonView, Rooms
from node.api.detached import DetachedJobs
from node.api.feed import Feed
from node.api.job_events import publish_step
from node.api.peer_desk import PeerDesk
from node.api.scrape import Scrape
from node.api.server import serve_app
from node.api.services import Services
from node.api.shelf import Shelf
from node.api.spans import JobSpans, otlp_processor
from node.bans import BanList
from node.clock import local_time, system_entropy, system_time
from node.config import Config
from node.discovery.directory import Directory
from node.discovery.discovery import AdvertLife, Discovery
from node.execution.gpu_readings import GpuReader
from node.execution.pool import WorkerPool
from node.home import ApiInfo, Home
from node.keystore import Ed25519Signer, KeyFile
from node.ledger.ledger import Ledger
from node.logs import LogRing
from node.market.admission import Admission
from node.market.journal import JOBS_MAX
from node.market.own_advert import OwnAdvert
from node.market.party import Party
from node.market.provider import Provider
from node.market.quotes import Quotes
from node.market.requester import Requester
from node.market.restored import orders_of, sale_of
from node.market.settlement import means_of
from node.market.settlement_exchange import Settler
from node.models.holding import Holds
from node.models.store import ModelStore
from node.net.interface import Network
from node.net.libp2p.network import LibP2pNetwork
from node.operating import Operating
from node.owner.gate import Gate
from node.owner.sensors import Sensors
from node.reload import LiveConfig
from protocol.advert import Advert
from protocol.envelope import network_id
from protocol.identity import peer_id_to_text
from protocol.signed import Signed
from protocol.units import NetworkId

log = logging.getLogger(__name__)

TRACES_S_MAX: Final = 2.0
"""A collector that does not answer must not keep the daemon from ending."""


class Service(Protocol):
    """A room's ``run``."""

    async def __call__(self, *, task_status: trio.TaskStatus[None]) -> None: ...


async def serve(
    home: Home, live: LiveConfig, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run one node until cancelled; started when it is ready for work and ``api.json`` says where.

    Raises:
        NodeError: a fault of the world on the way up: key, ledger, port, configuration.
    """
    signer = await trio.to_thread.run_sync(KeyFile(home.key_path).read_or_create)
    config = live.config
    token = await trio.to_thread.run_sync(home.ensure_token)
    network = network_id({"name": config.p2p.network})
    party = _party(home, signer, network)
    net = LibP2pNetwork(signer.seed, listen=config.p2p.listen, network=network, metrics=party.metrics)
    bans = BanList(home.bans_path)
    await trio.to_thread.run_sync(bans.read)
    log_lines = LogRing()

    async def with_network() -> None:
        daemon = _Daemon(home, live, party, net, bans=bans)
        await daemon.prepare()
        await _outlast(net.run, lambda: with_rooms(daemon))

    async def with_rooms(daemon: _Daemon) -> None:
        async with trio.open_nursery() as nursery:
            await daemon.start(nursery, token, log_lines)
            log.info("ready", extra={"peer": peer_id_to_text(signer.peer_id), "addresses": net.addresses})
            task_status.started()

    # Stopped from the top down: a job that is cut still tells its peer and pays. When all stopped at once, it
    # found the ledger closed, and neither its cancel nor its last voucher went out.
    with log_lines.listening():
        await _outlast(party.ledger.run, with_network)


async def _outlast(service: Service, work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` on top of ``service``: a cancellation reaches the service once the work has ended."""
    scope = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await service(task_status=task_status)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        # Not before: a start that is cancelled would wait for ever for a service that is shielded.
        scope.shield = True
        try:
            await work()
        finally:
            scope.cancel()


def _party(home: Home, signer: Ed25519Signer, network: NetworkId) -> Party:
    return Party(
        signer=signer,
        network=network,
        ledger=Ledger(home.ledger_path),
        wall_clock=system_time,
        entropy=system_entropy,
    )


def _feed(party: Party) -> Feed:
    """Return what follows every step of every job from now on."""
    feed = Feed(run=f"{party.now_ms():x}")
    party.journal.follow(partial(publish_step, feed))
    return feed


class _Daemon:
    """The rooms, made and tied together; nothing runs before ``start``."""

    def __init__(self, home: Home, live: LiveConfig, party: Party, net: Network, *, bans: BanList) -> None:
        config = live.config
        self._home, self._config, self._party, self._net = home, config, party, net
        store = ModelStore(home.models_folder(config.models.dir))
        serve_models = config.models.serve if config.node.role == "worker" else ()
        self._pool = WorkerPool(
            config.worker,
            store,
            serve_models,
            metrics=party.metrics,
            home=home,
        )
        self._shelf = Shelf(self._pool, store, Holds(store.root))
        self._served = False
        self._admission = Admission(config.market, banned=bans)
        self._provider = Provider(
            party, self._pool, self._admission, config=config.market, on_change=self._advert_changed
        )
        self._advert = OwnAdvert(party, self._provider, self._pool, self._admission, network=net, config=config)
        self._directory = Directory(party.network, party.peer_id, banned=bans)
        self._discovery = Discovery(
            net,
            self._directory,
            network_id=party.network,
            compose=self._compose,
            wall_clock=party.wall_clock,
            metrics=party.metrics,
        )
        self._requester = Requester(
            party, net, self._directory, self._pool, config=config.market, look_up=self._discovery.look_up
        )
        self._quotes = Quotes(party, net, self._directory, config=config.market, look_up=self._discovery.look_up)
        self._settler = Settler(
            party,
            net,
            means_of(config.market),
            every_s=config.market.settle_every_s,
            on_settled=self._admission.settled,
        )
        gpus = GpuReader()
        self._gate = Gate(
            self._admission,
            self._provider,
            config.owner,
            read=partial(trio.to_thread.run_sync, Sensors(gpus.read, self._is_at_work).read),
            local_time=local_time,
            on_change=self._advert_changed,
        )
        self._operating = Operating(live, self._gate, self._admission)
        live.subscribe(self._follow_config)
        rooms = Rooms(
            config=config,
            party=party,
            network=net,
            directory=self._directory,
            bans=bans,
            executor=self._pool,
            admission=self._admission,
            provider=self._provider,
            requester=self._requester,
            own_advert=lambda: self._discovery.own_advert,
            gate=self._operating.gate,
        )
        self._view = DaemonView(rooms, started_at=trio.current_time())
        self._peers = PeerDesk(rooms, self._view)
        net.refuse(bans.__contains__)
        self._feed = _feed(party)
        self._scrape = Scrape(rooms, self._view.checks, read_gpus=gpus.read)

    async def prepare(self) -> None:
        """Do what has to be done while the ledger runs and before the network does."""
        forgive_after_days = self._config.market.forgive_after_days
        standings = await self._party.ledger.standings(self._party.now_ms(), forgive_after_days=forgive_after_days)
        self._admission.remember(standings, now=trio.current_time())
        self._requester.spending.remember(standings)
        ledger = self._party.ledger
        self._party.journal.restore(
            orders_of(await ledger.timelines("requester", JOBS_MAX)),
            map(sale_of, await ledger.timelines("provider", JOBS_MAX)),
        )
        self._discovery.attach()
        self._provider.attach(self._net)
        self._settler.attach()

    async def start(self, nursery: trio.Nursery, token: str, log_lines: LogRing) -> None:
        """Start the other rooms in ``nursery``; return when all are ready. The API answers long before that."""
        services = Services(
            config=self._config.api,
            token=token,
            token_file=str(self._home.token_path),
            rotate_token=partial(
                trio.to_thread.run_sync, self._home.rotate_token, limiter=trio.CapacityLimiter(1)
            ),
            market=self._requester,
            view=self._view,
            connect=self._net.dial,
            quotes=self._quotes.ask,
            settle=self._settler.settle,
            peers=self._peers,
            operator=self._operating,
            shelf=self._shelf,
            bench=self._pool.bench,
            shutdown=nursery.cancel_scope.cancel,
            feed=self._feed,
            metrics=self._party.metrics,
            scrape=self._scrape,
            log_lines=log_lines,
        )
        if self._config.traces.otlp_url:
            nursery.start_soon(self._trace, JobSpans(otlp_processor(self._config.traces.otlp_url)))
        nursery.start_soon(self._party.metrics.measure_lag)
        nursery.start_soon(self._settler.run)
        nursery.start_soon(self._follow_ledger)
        await nursery.start(self._gate.run)
        detached = DetachedJobs(self._requester, self._config.api)
        nursery.start_soon(detached.run)
        url = await nursery.start(serve_app, make_app(services, detached), self._config.api.bind)
        async with trio.open_nursery() as starting:
            starting.start_soon(self._start_discovery, nursery)
            starting.start_soon(self._start_pool, nursery)
        nursery.start_soon(self._requester.run)
        self._advert_changed()
        info = ApiInfo(
            url=url,
            token_file=str(self._home.token_path),
            pid=os.getpid(),
            peer_id=peer_id_to_text(self._party.peer_id),
            addresses=self._net.addresses,
        )
        await trio.to_thread.run_sync(self._home.write_api, info)

    async def _trace(self, spans: JobSpans) -> None:
        """Have jobs traced until cancelled; what waits then is sent."""
        self._party.journal.follow(spans.follow)
        try:
            await trio.sleep_forever()
        finally:
            with trio.move_on_after(TRACES_S_MAX, shield=True):
                await trio.to_thread.run_sync(spans.close, abandon_on_cancel=True)

    async def _start_discovery(self, nursery: trio.Nursery) -> None:
        await nursery.start(self._discovery.run, self._config.p2p.bootstrap)
        self._view.checks["network"] = OK

    async def _start_pool(self, nursery: trio.Nursery) -> None:
        await nursery.start(self._pool.run)
        self._served = bool(self._pool.models())
        self._count_places()
        nursery.start_soon(self._follow_pool)
        nursery.start_soon(self._follow_served)

    async def _follow_pool(self) -> None:
        """Keep places and advert true when a worker dies, or serves again."""
        while True:
            await self._pool.wait_change()
            self._count_places()
            self._advert_changed()

    async def _follow_served(self) -> None:
        """Keep what is served in the store."""
        while True:
            await self._shelf.hold_served()
            await self._pool.wait_change()

    async def _follow_ledger(self) -> None:
        """Show when the ledger's disk refuses, and when it is back: nothing new is begun meanwhile."""
        health = self._party.ledger.health
        while True:
            await health.wait_change()
            self._view.checks["ledger"] = health.fault or OK
            self._advert_changed()

    def _follow_config(self, config: Config) -> None:
        self._config = config
        self._provider.reconfigure(config.market)
        self._requester.reconfigure(config.market)
        self._quotes.reconfigure(config.market)
        self._advert.market = config.market
        self._gate.obey(config.owner)
        # Not counted anew: while the workers start, that would show them as ready.
        if self._admission.slots:
            self._admission.queue_max = config.market.queue_max
        self._advert_changed()

    def _is_at_work(self) -> bool:
        return bool(self._admission.running or self._requester.jobs_here)

    def _count_places(self) -> None:
        by_device: dict[str, int] = {}
        for model in self._pool.models():
            # What is served keeps its label, whatever else the network has.
            self._party.metrics.models.label(model.name)
            by_device[model.device] = max(by_device.get(model.device, 0), model.slots)
        # A node that never had a model is ready to buy; one that lost its own is not what it says.
        lost = self._served and not by_device
        self._view.checks["worker"] = self._why_lost() if lost else OK
        self._admission.slots = sum(by_device.values())
        self._admission.queue_max = self._config.market.queue_max if by_device else 0

    def _why_lost(self) -> str:
        if any(worker.life == "quarantined" for worker in self._pool.workers()):
            return "no model answers: the device is in quarantine, its worker died three times in ten minutes"
        return "no model answers: the worker is being restarted"

    def _compose(self, life: AdvertLife) -> Signed[Advert] | None:
        return self._advert.compose(life)

    def _advert_changed(self) -> None:
        self._discovery.changed()
