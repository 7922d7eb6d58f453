"""A scripted market and view behind the real server, and a client that speaks plain HTTP."""

import http.client
import itertools
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio
from nacl.signing import SigningKey

from node.api.app import make_app
from node.api.detached import DetachedJobs
from node.api.feed import Feed
from node.api.job_views import JobTrace, job_trace, job_view
from node.api.server import serve_app
from node.api.services import Services
from node.api.views import (
    BundleMessage,
    BundleView,
    DeviceView,
    JobCounts,
    JobView,
    Json,
    ModelView,
    OfferedModelView,
    PeerView,
    ReceiptView,
    StatusView,
)
from node.api.why_node import NodeFacts
from node.config import ApiSection
from node.errors import TransportError
from node.logs import LogRing
from node.market.journal import JobRecord
from node.market.order import (
    Asking,
    Contracted,
    Finished,
    JobEvent,
    Order,
    Output,
    PassedOver,
    Quoted,
    UnknownModelError,
)
from node.market.quotes import Enquiry, Offered, QuoteReply
from node.market.settlement import SettlementError
from node.market.settlement_exchange import Outcome
from node.metrics import Metrics
from protocol.identity import peer_id_to_text
from protocol.price import Prices
from protocol.units import JobId, MessageId, Microcredits, PeerId, UnixMs
from tests.api.fake_operator import FakeOperator, scripted_bench
from tests.api.fake_peers import FakePeers
from tests.api.fake_shelf import OneModel
from tests.api.reply import Reply

TOKEN = "the-token-of-the-home"
NEW_TOKEN = "another-token-of-the-home"
"""After a rotation."""
PEER = PeerId(bytes(SigningKey(bytes(32)).verify_key))
PEER_TEXT = peer_id_to_text(PEER)
JOB = JobId(b"j" * 16)
CONTRACT = MessageId(b"c" * 32)
RECEIPT = MessageId(b"r" * 32)

ASKING = Asking(job_id=JOB, peer_ids=(PEER,))
QUOTED = Quoted(peer_id=PEER, price_max_microcredits=Microcredits(9), queue_ms=0)
CONTRACTED = Contracted(peer_id=PEER, contract_id=CONTRACT, price_max_microcredits=Microcredits(9), tokens_in=3)
FINISHED = Finished(
    job_id=JOB,
    peer_id=PEER,
    contract_id=CONTRACT,
    receipt_id=RECEIPT,
    finish="stop",
    tokens_in=3,
    tokens_out=2,
    cost_microcredits=Microcredits(7),
    first_token_ms=11,
    duration_ms=12,
)
ANSWERED: "tuple[Step, ...]" = (
    ASKING,
    QUOTED,
    CONTRACTED,
    Output(tokens=(1,), text="Hel"),
    Output(tokens=(2,), text="lo"),
    FINISHED,
)

Step = JobEvent | Exception | trio.Event
"""An event to send, an error to raise, or something to wait for."""


class ScriptedMarket:
    """Plays its script for every order and notes what it was asked and how it ended."""

    def __init__(self, script: Sequence[Step] = ANSWERED) -> None:
        self.script = script
        self.orders: list[Order] = []
        self.cancels: list[JobId] = []
        self.taken = trio.Event()
        self.cancelled = trio.Event()

    async def submit(self, order: Order, sink: trio.MemorySendChannel[JobEvent]) -> None:
        self.orders.append(order)
        self.taken.set()
        try:
            for step in self.script:
                if isinstance(step, trio.Event):
                    await step.wait()
                elif isinstance(step, Exception):
                    raise step
                else:
                    await sink.send(step)
        except trio.Cancelled:
            self.cancelled.set()
            raise

    async def cancel(self, job_id: JobId) -> bool:
        self.cancels.append(job_id)
        return job_id == JOB


class EndlessMarket(ScriptedMarket):
    """Sends output until somebody stops it."""

    async def submit(self, order: Order, sink: trio.MemorySendChannel[JobEvent]) -> None:
        try:
            await sink.send(CONTRACTED)
            self.taken.set()
            while True:
                await sink.send(Output(tokens=(1,), text="x" * 4096))
        except trio.Cancelled:
            self.cancelled.set()
            raise


DEVICE = DeviceView(
    kind="cpu",
    index=0,
    name="a processor",
    architecture="avx2",
    memory_total_bytes=8,
    memory_free_bytes=4,
    dtypes=("fp32",),
    driver=None,
    matmul_gflops=50,
    read_mb_per_s=None,
)


FACTS = NodeFacts(
    role="worker",
    problems={},
    peers_connected=2,
    models=1,
    is_advertised=True,
    is_draining=False,
    slots=8,
    slots_free=8,
    credit_stranger=100,
    spend_stranger=100,
    offering=2,
    offering_free=2,
    doubted=0,
    other_versions=0,
)
"""Of a node that can do everything."""


def sale() -> JobRecord:
    """Return the record of a job that is sold and runs."""
    return JobRecord(
        role="worker",
        job_id=JOB,
        peer_id=PEER,
        model="tiny",
        state="running",
        tokens_out=3,
        started_ms=UnixMs(4),
    )


@dataclass
class FixedView:
    checks: dict[str, str] = field(default_factory=lambda: {"p2p": "ok"})
    own_advert: dict[str, Json] | None = None
    limits: list[int] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    records: list[JobRecord] = field(default_factory=lambda: [sale()])
    node_facts: NodeFacts = FACTS

    async def status(self) -> StatusView:
        return StatusView(
            name="gpu-1",
            peer_id=PEER_TEXT,
            version="0.1.0",
            network="main",
            role="worker",
            ready=True,
            uptime_s=1.5,
            addresses=("/ip4/127.0.0.1/tcp/11501",),
            peers_connected=1,
            models=("tiny",),
            devices=(DEVICE,),
            jobs=JobCounts(running=0, waiting=0),
            earned_microcredits=0,
            spent_microcredits=0,
        )

    def peers(self) -> list[PeerView]:
        offered = OfferedModelView(
            name="tiny", model_id="ab" * 32, context_tokens=64, price_in=1, price_out=2, tokens_per_s=3.5
        )
        return [
            PeerView(
                peer_id=PEER_TEXT,
                name="gpu-2",
                connected=True,
                advert_age_ms=5,
                models=(offered,),
                slots_free=1,
                slots_total=2,
                queue_ms=0,
                devices=(DEVICE,),
            )
        ]

    def models(self) -> list[ModelView]:
        return [
            ModelView(
                name="org/tiny",
                model_id="ab" * 32,
                local=True,
                peers=2,
                context_tokens=64,
                price_in=1,
                price_out=2,
                tasks=("generate",),
                tokens_per_s=3.5,
            )
        ]

    def devices(self) -> list[DeviceView]:
        return [DEVICE]

    def advert(self) -> dict[str, Json] | None:
        return self.own_advert

    def jobs(self) -> list[JobView]:
        return [job_view(record) for record in self.records]

    def find_jobs(self, prefix: str) -> list[JobTrace]:
        return [job_trace(it) for it in self.records if it.job_id.hex().startswith(prefix)]

    def facts(self) -> NodeFacts:
        return self.node_facts

    def readiness(self) -> dict[str, str]:
        return self.checks

    async def receipts(self, limit: int) -> list[ReceiptView]:
        self.limits.append(limit)
        return [
            ReceiptView(
                contract_id=CONTRACT.hex(),
                job_id=JOB.hex(),
                role="requester",
                peer_id=PEER_TEXT,
                model="tiny",
                state="closed",
                tokens_in=3,
                tokens_out=2,
                cost_microcredits=7,
                at_ms=1,
            )
        ]

    async def bundle(self, contract_id_prefix: str) -> BundleView | None:
        self.prefixes.append(contract_id_prefix)
        if not CONTRACT.hex().startswith(contract_id_prefix):
            return None
        message = BundleMessage(type="quote", sender="provider", at_ms=1, envelope="00ff")
        return BundleView(network="aa", messages=(message,))


@dataclass
class Dialler:
    """Connects to nobody but ``/good``; notes that it was asked to stop."""

    stopped: trio.Event = field(default_factory=trio.Event)

    async def connect(self, address: str) -> PeerId:
        if address != "/good":
            raise TransportError(f"nobody answers at {address}")
        return PEER

    async def settle(self, peer_id: PeerId, told: Microcredits) -> Outcome:
        if told == 13:
            raise SettlementError("13 µc is more than the 5 µc that this peer owes")
        return Outcome(
            peer_id=peer_id,
            number=3,
            statements=1,
            earned=Microcredits(100),
            promised=Microcredits(40),
            received=Microcredits(60 + told),
            paid=Microcredits(40),
            acknowledged=told,
        )

    async def quotes(self, enquiry: Enquiry | Order) -> list[QuoteReply]:
        if enquiry.model != "tiny":
            raise UnknownModelError(enquiry.model, ("tiny",))
        tokens_in = enquiry.tokens_in if isinstance(enquiry, Enquiry) else 1
        price = Microcredits(tokens_in + 2 * enquiry.tokens_out_max)
        prices = Prices(fixed=0, tokens_in=1, tokens_out=2, per_s=0)
        offered = Offered(
            peer_id=PEER,
            prices=prices,
            price_max_microcredits=price,
            first_token_ms=30,
            memory_bytes=5,
            hold_ms=15_000,
        )
        return [offered, PassedOver(peer_id=PEER, code="silent", message="no quote in time")]

    def shutdown(self) -> None:
        self.stopped.set()


@dataclass
class Node:
    """One served API and all that stands behind it."""

    url: str
    market: ScriptedMarket
    view: FixedView
    dialler: Dialler
    metrics: Metrics
    log_lines: LogRing
    operator: FakeOperator
    peers: FakePeers
    feed: Feed
    scope: trio.CancelScope
    """Cancel it to end the server; ``ended`` tells when it has."""
    ended: trio.Event

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def call(self, method: str, path: str, *, body: object = None, **headers: str) -> Reply:
        """Make one request with the token; ``_`` in header names stands for ``-``."""
        return await trio.to_thread.run_sync(self._call, method, path, body, headers)

    def _call(self, method: str, path: str, body: object, headers: dict[str, str]) -> Reply:
        sent = {"Authorization": f"Bearer {TOKEN}"}
        sent |= {name.replace("_", "-").title(): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        try:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, data, sent)
            response = connection.getresponse()
            return Reply(status=response.status, headers=dict(response.getheaders()), body=response.read())
        finally:
            connection.close()

    async def open(self, data: bytes) -> trio.SocketStream:
        """Open a connection and send ``data`` as it is."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        await stream.send_all(data)
        return stream

    async def open_chat(self, *, stream: bool) -> trio.SocketStream:
        body = json.dumps(chat_body(stream=stream)).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self.open(head.encode() + body)


def chat_body(**more: object) -> dict[str, object]:
    return {"model": "tiny", "messages": [{"role": "user", "content": "Say hello."}], **more}


def scrape_of(metrics: Metrics) -> Callable[[str], Awaitable[tuple[bytes, str]]]:
    """Return a scrape of counts alone, without rooms."""

    async def scrape(accept: str) -> tuple[bytes, str]:
        return metrics.page(accept)

    return scrape


async def rotate_token() -> str:
    return NEW_TOKEN


def fake_services(
    market: ScriptedMarket | None = None,
    *,
    view: FixedView | None = None,
    dialler: Dialler | None = None,
    metrics: Metrics | None = None,
    operator: FakeOperator | None = None,
    peers: FakePeers | None = None,
    feed: Feed | None = None,
    config: ApiSection | None = None,
    log_lines: LogRing | None = None,
) -> Services:
    """Return all that an API is given, made of fakes."""
    dialler, metrics = dialler or Dialler(), metrics or Metrics()
    return Services(
        config=config or ApiSection(),
        token=TOKEN,
        token_file="/home/souk/token",
        rotate_token=rotate_token,
        market=market or ScriptedMarket(),
        view=view or FixedView(),
        connect=dialler.connect,
        quotes=dialler.quotes,
        settle=dialler.settle,
        peers=peers or FakePeers(),
        operator=operator or FakeOperator(),
        shelf=OneModel(),
        bench=scripted_bench,
        shutdown=dialler.shutdown,
        draw_seed=lambda: 4242,
        draw_job_id=(JobId(bytes([number]) * 16) for number in itertools.count(1)).__next__,
        unix_s=lambda: 1_700_000_000,
        feed=feed or Feed(run="f"),
        metrics=metrics,
        scrape=scrape_of(metrics),
        log_lines=log_lines or LogRing(),
    )


async def serve_node(
    nursery: trio.Nursery, market: ScriptedMarket | None = None, *, config: ApiSection | None = None
) -> Node:
    """Start the real server on a free port, with fakes behind it."""
    market, view, dialler, metrics = market or ScriptedMarket(), FixedView(), Dialler(), Metrics()
    log_lines, operator, feed, peers = LogRing(), FakeOperator(), Feed(run="f"), FakePeers()
    given = {"view": view, "dialler": dialler, "metrics": metrics, "operator": operator, "feed": feed}
    services = fake_services(market, peers=peers, config=config, log_lines=log_lines, **given)  # type: ignore[arg-type]
    scope, ended = trio.CancelScope(), trio.Event()

    detached = DetachedJobs(market, services.config)

    async def serve(task_status: trio.TaskStatus[str]) -> None:
        try:
            with scope:
                async with trio.open_nursery() as rooms:
                    rooms.start_soon(detached.run)
                    await serve_app(make_app(services, detached), "127.0.0.1:0", task_status=task_status)
        finally:
            ended.set()

    url = await nursery.start(serve)
    return Node(
        url=url,
        market=market,
        view=view,
        dialler=dialler,
        metrics=metrics,
        log_lines=log_lines,
        operator=operator,
        peers=peers,
        feed=feed,
        scope=scope,
        ended=ended,
    )
