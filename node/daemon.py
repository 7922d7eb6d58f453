"""How it all starts: one function, one nursery, every room.

What runs where: libp2p, the HTTP API and the market in this process on trio; torch in a worker process per device;
SQLite on one thread. ``node.cli.serve`` calls this with the home locked, and cancels it to stop.
"""

import logging
import os
from pathlib import Path

import trio

from node.api.app import make_app
from node.api.daemon_view import OK, DaemonView, Rooms
from node.api.server import serve_app
from node.api.services import Services
from node.clock import system_entropy, system_time
from node.config import Config
from node.discovery.directory import Directory
from node.discovery.discovery import AdvertLife, Discovery
from node.execution.pool import WorkerPool
from node.home import ApiInfo, Home
from node.keystore import Ed25519Signer, KeyFile
from node.ledger.ledger import Ledger
from node.market.admission import Admission
from node.market.own_advert import OwnAdvert
from node.market.party import Party
from node.market.provider import Provider
from node.market.requester import Requester
from node.models.store import ModelStore
from node.net.interface import Network
from node.net.libp2p.network import LibP2pNetwork
from protocol.advert import Advert
from protocol.envelope import network_id
from protocol.identity import peer_id_to_text
from protocol.signed import Signed
from protocol.units import NetworkId

log = logging.getLogger(__name__)


async def serve(
    home: Home, config: Config, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run one node until cancelled; started when it is ready for work and ``api.json`` says where.

    Raises:
        NodeError: a fault of the world on the way up: key, ledger, port, configuration.
    """
    signer = await trio.to_thread.run_sync(KeyFile(home.key_path).read_or_create)
    token = await trio.to_thread.run_sync(home.ensure_token)
    network = network_id({"name": config.p2p.network})
    net = LibP2pNetwork(signer.seed, listen=config.p2p.listen, network=network)
    daemon = _Daemon(home, config, _party(home, signer, network), net)
    async with trio.open_nursery() as nursery:
        await daemon.start(nursery, token)
        log.info("ready", extra={"peer": peer_id_to_text(signer.peer_id), "addresses": net.addresses})
        task_status.started()


def _party(home: Home, signer: Ed25519Signer, network: NetworkId) -> Party:
    return Party(
        signer=signer,
        network=network,
        ledger=Ledger(home.ledger_path),
        wall_clock=system_time,
        entropy=system_entropy,
    )


class _Daemon:
    """The rooms, made and tied together; nothing runs before ``start``."""

    def __init__(self, home: Home, config: Config, party: Party, net: Network) -> None:
        self._home, self._config, self._party, self._net = home, config, party, net
        store = ModelStore(Path(config.models.dir) if config.models.dir else home.models_path)
        serve_models = config.models.serve if config.node.role == "worker" else ()
        self._pool = WorkerPool(config.worker, store, serve_models)
        self._admission = Admission(
            credit_per_peer=config.market.credit_new_peer, credit_pool=config.market.credit_pool_new
        )
        self._provider = Provider(
            party, self._pool, self._admission, config=config.market, on_change=self._advert_changed
        )
        self._advert = OwnAdvert(party, self._provider, self._pool, self._admission, network=net, config=config)
        self._directory = Directory(party.network, party.peer_id)
        self._discovery = Discovery(
            net,
            self._directory,
            network_id=party.network,
            compose=self._compose,
            wall_clock=party.wall_clock,
        )
        self._requester = Requester(
            party,
            net,
            self._directory,
            self._pool,
            config=config.market,
            look_up=self._discovery.look_up,
        )
        self._view = DaemonView(
            Rooms(
                config=config,
                party=party,
                network=net,
                directory=self._directory,
                executor=self._pool,
                admission=self._admission,
                provider=self._provider,
                requester=self._requester,
                own_advert=lambda: self._discovery.own_advert,
            ),
            started_at=trio.current_time(),
        )

    async def start(self, nursery: trio.Nursery, token: str) -> None:
        """Start every room in ``nursery``; return when all are ready. The API answers long before that."""
        await nursery.start(self._party.ledger.run)
        self._admission.remember_debts(await self._party.ledger.debts())
        self._discovery.attach()
        self._provider.attach(self._net)
        services = Services(
            config=self._config.api,
            token=token,
            market=self._requester,
            view=self._view,
            connect=self._net.dial,
            shutdown=nursery.cancel_scope.cancel,
        )
        url = await nursery.start(serve_app, make_app(services), self._config.api.bind)
        async with trio.open_nursery() as starting:
            starting.start_soon(self._start_network, nursery)
            starting.start_soon(self._start_pool, nursery)
        self._advert_changed()
        info = ApiInfo(
            url=url,
            token_file=str(self._home.token_path),
            pid=os.getpid(),
            peer_id=peer_id_to_text(self._party.peer_id),
            addresses=self._net.addresses,
        )
        await trio.to_thread.run_sync(self._home.write_api, info)

    async def _start_network(self, nursery: trio.Nursery) -> None:
        await nursery.start(self._net.run)
        await nursery.start(self._discovery.run, self._config.p2p.bootstrap)
        self._view.checks["network"] = OK

    async def _start_pool(self, nursery: trio.Nursery) -> None:
        await nursery.start(self._pool.run)
        by_device: dict[str, int] = {}
        for model in self._pool.models():
            by_device[model.device] = max(by_device.get(model.device, 0), model.slots)
        self._admission.slots = sum(by_device.values())
        self._admission.queue_max = self._config.market.queue_max if by_device else 0
        self._view.checks["worker"] = OK

    def _compose(self, life: AdvertLife) -> Signed[Advert] | None:
        return self._advert.compose(life)

    def _advert_changed(self) -> None:
        self._discovery.changed()
