"""A real daemon under bytes that no honest peer sends: it refuses, counts, tells its log, and serves on.

Node 1 sells with the real model, node 2 buys; the hostile peer speaks the same libp2p with a key of its own.
"""

import contextlib
import http.client
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from itertools import count as counting
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from node.errors import TransportError
from node.home import Home
from node.keystore import Ed25519Signer
from node.testnet.interrupts import Interrupts
from node.testnet.network import Network, Node, Plan, spawn, stop, wait_ready
from protocol.advert import Advert
from protocol.encoding import decode_untrusted, encode
from protocol.framing import ADVERT_PROTOCOL, FRAME_BYTES_MAX, JOB_PROTOCOL, QUOTE_PROTOCOL
from protocol.identity import peer_id_to_text
from protocol.schema import to_plain
from protocol.signed import Signed, sign
from scripts.spec import examples
from tests.integration.hostile_peer import NETWORK, RESET, Bought, HostilePeer, envelope, now_ms
from tests.protocol.mutants import MsgpackMutator
from tests.test_metrics import Samples, parse

MODEL = "smollm2-135m-instruct"
STORE = Path(sys.prefix) / "share" / "models"
CONFIG = (Path(__file__).parents[2] / "configs" / "testnet.toml").read_text("utf-8")
ANSWER_WAIT_S = 240.0
SECRET = b"MARKED-PAYLOAD-5c1d"
MIB = 1 << 20

Figure = Callable[[str, str], None]

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.real_model,
    pytest.mark.skipif(not STORE.is_dir(), reason="scripts/models has not imported the chat model"),
]
_numbers = counting()


class World:
    """The two nodes, and how to look at them; every call blocks."""

    def __init__(self, network: Network, plan: Plan) -> None:
        self.network = network
        self._plan = plan

    @property
    def provider(self) -> Node:
        return self.network.nodes[0]

    def call(self, node: Node, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=ANSWER_WAIT_S)
        token = Home(Path(node.home)).read_token()
        headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        found = answer.read()
        connection.close()
        return answer.status, found

    def metrics(self) -> Samples:
        status, page = self.call(self.provider, "GET", "/metrics")
        assert status == 200
        return parse(page)

    def buy(self) -> None:
        """Have node 2 buy an answer of node 1: a good job, whatever happened before."""
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Still there?"}],
            "max_tokens": 8,
            "souk": {"on": self.provider.peer_id},
        }
        status, answer = self.call(self.network.nodes[1], "POST", "/v1/chat/completions", body)
        assert status == 200, answer

    def receipts(self) -> dict[str, dict[str, Any]]:
        _status, answer = self.call(self.provider, "GET", "/api/v1/receipts?limit=1000")
        return {row["contract_id"]: row for row in json.loads(answer)["receipts"]}

    def log(self) -> str:
        return Home(Path(self.provider.home)).log_path.read_text("utf-8", "replace")

    def process(self) -> psutil.Process:
        process = self.provider.process()
        assert process is not None
        return process

    def restart(self) -> None:
        """Stop node 1 and start it again in its old place."""
        old = self.provider
        assert stop([old]) == []
        listen = (old.addresses[0].partition("/p2p/")[0],)
        node = spawn(self._plan, old.name, "worker", bootstrap=(), listen=listen)
        self.network.nodes[0] = node
        info = wait_ready(node)
        self.network.nodes[0] = replace(node, url=info.url, peer_id=info.peer_id, addresses=info.addresses)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("hostile")
    network = Network(folder)
    plan = Plan(folder=folder, nodes=2, providers=1, models_dir=STORE, base_config=CONFIG)
    network.up(plan, Interrupts())
    try:
        yield World(network, plan)
    finally:
        network.down()


@asynccontextmanager
async def hostile(
    nursery: trio.Nursery, world: World, *served: bytes, seed: bytes = b""
) -> AsyncIterator[tuple[HostilePeer, Signed[Advert]]]:
    """Run a hostile peer that has met node 1; give it and the advert of node 1."""
    peer = HostilePeer(seed or f"hostile {next(_numbers)}".encode().ljust(32), served=list(served))
    scope = await nursery.start(run_until_cancelled, peer)
    try:
        found = await peer.network.dial(world.provider.addresses[0])
        yield peer, await peer.advert_of(found)
    finally:
        scope.cancel()


async def run_until_cancelled(peer: HostilePeer, *, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.network.run)
            task_status.started(scope)


def rejected(samples: Samples) -> dict[str, float]:
    return {labels[0]: value for (name, labels), value in samples.items() if name == "souk_p2p_rejected_total"}


def total(samples: Samples, name: str) -> float:
    return sum(value for (found, _labels), value in samples.items() if found == name)


def resealed(raw: bytes, **changes: Any) -> bytes:  # Any: values of the envelope's fields
    """Return an envelope frame with fields exchanged and the old signature."""
    fields: Any = decode_untrusted(raw, size_max=1 << 16)
    names = ("version", "kind", "network", "signer", "body", "signature")
    return b"\x01" + encode([changes.get(name, value) for name, value in zip(names, fields, strict=True)])


def first_words(peer: HostilePeer, advert: Signed[Advert]) -> list[tuple[str, str, str, list[bytes]]]:
    """Return (name, protocol, the reason that is counted, frames) of what no honest peer says first."""
    stranger = Ed25519Signer(b"another".ljust(32))
    long_ago = now_ms() - 3_600_000
    made = {QUOTE_PROTOCOL: peer.ask(advert), JOB_PROTOCOL: peer.contract(advert)}
    found = []
    for protocol, message in made.items():
        good: Signed[Any] = peer.sign(message)
        raw = good.envelope.raw
        hidden = encode({**to_plain(message), "tip": SECRET.decode()})
        found += [
            ("no frame kind", protocol, "type", [b"\x09" + SECRET]),
            ("empty frame", protocol, "encoding", [b""]),
            ("garbage", protocol, "encoding", [b"\x01" + SECRET * 9]),
            ("oversized envelope", protocol, "size", [b"\x01" + bytes(20_000)]),
            ("oversized frame", protocol, "size", [b"\x01" * (FRAME_BYTES_MAX + 1)]),
            ("data before words", protocol, "order", [b"\x02" + bytes(4) + SECRET]),
            ("end mark alone", protocol, "order", []),
            ("other version", protocol, "envelope", [resealed(raw, version=2)]),
            ("other network", protocol, "network", [envelope(peer.sign(message, network=examples.OTHER_NETWORK))]),
            ("other type", protocol, "type", [resealed(raw, kind="voucher")]),
            ("other signer's name", protocol, "signature", [resealed(raw, signer=stranger.peer_id)]),
            ("no key", protocol, "signer", [resealed(raw, signer=bytes(32))]),
            ("changed body", protocol, "signature", [resealed(raw, body=hidden)]),
            ("of another peer", protocol, "signer", [envelope(sign(message, network=NETWORK, signer=stranger))]),
            ("unknown field", protocol, "schema", [signed_body(peer, message.kind, hidden)]),
        ]
    found += [
        ("put to another", QUOTE_PROTOCOL, "signer", [envelope(peer.sign(peer.ask(advert, provider=bytes(32))))]),
        ("contract version 2", JOB_PROTOCOL, "meaning", [envelope(peer.sign(peer.contract(advert, version=2)))]),
        (
            "lapsed contract",
            JOB_PROTOCOL,
            "time",
            [envelope(peer.sign(peer.contract(advert, made_at_ms=long_ago, accept_by_ms=long_ago + 9)))],
        ),
        (
            "input of another hash",
            JOB_PROTOCOL,
            "meaning",
            opening(peer, advert, b"\x02\x00\x00\x00\x01" + SECRET),
        ),
    ]
    return found


def opening(peer: HostilePeer, advert: Signed[Advert], data_frame: bytes) -> list[bytes]:
    contract = peer.contract(advert, input_bytes=len(data_frame) - 5)
    return [envelope(peer.sign(contract)), b"\x02" + bytes(4) + b"s" * 16, data_frame]


def signed_body(peer: HostilePeer, kind: str, body: bytes) -> bytes:
    """Return an envelope frame whose signature holds, around any body."""
    name = kind.encode()
    text = b"souk.sig.v1\x00" + bytes([len(name)]) + name + NETWORK + sha256(body).digest()
    return b"\x01" + encode([1, kind, NETWORK, peer.signer.peer_id, body, peer.signer.sign(text)])


async def back_to(process: psutil.Process, *, fds: int) -> int:
    """Wait until the node holds no more files than before; return how many it holds."""
    with trio.fail_after(30):
        while (now := process.num_fds()) > fds:  # noqa: ASYNC110 (another process closes them, and tells nobody)
            await trio.sleep(0.1)
    return now


async def test_first_word_is_refused_and_counted_and_logged_without_its_payload(
    world: World, nursery: trio.Nursery, figure: Figure
) -> None:
    counted: Counter[str] = Counter()
    async with hostile(nursery, world) as (peer, advert):
        words = first_words(peer, advert)
        before = await trio.to_thread.run_sync(world.metrics)
        for name, protocol, reason, frames in words:
            known = await trio.to_thread.run_sync(world.metrics)
            assert await peer.say(advert.signer, protocol, *frames) == RESET, (name, protocol)
            grown = rejected(await trio.to_thread.run_sync(world.metrics))
            assert grown[reason] == rejected(known)[reason] + 1, (name, protocol, reason)
            counted[reason] += 1
        late = peer.ask(advert, sent_at_ms=now_ms() - 3_600_000)
        assert await peer.say(advert.signer, QUOTE_PROTOCOL, envelope(peer.sign(late))) == "decline"
        after = await trio.to_thread.run_sync(world.metrics)
    assert sum(rejected(after).values()) - sum(rejected(before).values()) == len(words)
    log = world.log()
    for marked in (SECRET.decode(), SECRET.hex(), str(SECRET)):
        assert marked not in log
    assert log.count("conversation broken") >= len(words)
    await trio.to_thread.run_sync(world.buy)
    figure(
        "live, bad first words on each stream protocol",
        f"{len(words)} refused, each counted under its reason ({dict(counted)}), 0 payloads in the log",
    )


async def test_node_serves_on_when_adverts_that_it_asks_for_hears_and_keeps_are_garbage(
    world: World, nursery: trio.Nursery, figure: Figure
) -> None:
    async with hostile(nursery, world) as (peer, advert):
        mutator = MsgpackMutator("live adverts", advert.envelope.raw)
        mutants = [mutator.on_bytes()[:8_000] for _ in range(60)]
    known = await trio.to_thread.run_sync(world.metrics)
    # Asked by the node itself, when the peer connects.
    for frames in ([b"\x01" + raw for raw in mutants], [b"\x09"], [b""], [b"\x02" * 70_000]):
        async with hostile(nursery, world, *frames) as (peer, advert):
            for raw in mutants[:20]:
                await peer.network.publish(peer.topic, raw)
            with contextlib.suppress(TransportError):
                await peer.network.put_record(f"/cap/{peer_id_to_text(peer.network.peer_id)}", mutants[0])
            assert await peer.say(advert.signer, ADVERT_PROTOCOL, *mutants[:3]) == "advert"
    found = await trio.to_thread.run_sync(world.metrics)
    refusals = sum(rejected(found).values()) - sum(rejected(known).values())
    assert refusals >= 60
    await trio.to_thread.run_sync(world.buy)
    figure("live, adverts", f"{refusals:.0f} garbage adverts refused and counted, the node sells on")


@pytest.mark.parametrize(
    ("run", "count"),
    [pytest.param("gate", 500), pytest.param("deep", 20_000, marks=pytest.mark.deep)],
    ids=["gate", "deep"],
)
async def test_node_answers_or_refuses_every_mutated_frame_and_is_as_before(
    world: World, nursery: trio.Nursery, figure: Figure, *, run: str, count: int
) -> None:
    # The first peer and the first refusals fill caches: libraries, metrics, the log.
    async with hostile(nursery, world) as (peer, advert):
        await storm(peer, advert, f"warm/{run}", 100)
    process = world.process()
    fds, rss, threads = process.num_fds(), process.memory_info().rss, process.num_threads()
    known = await trio.to_thread.run_sync(world.metrics)
    began = time.monotonic()
    async with hostile(nursery, world) as (peer, advert):
        answers = await storm(peer, advert, f"storm/{run}", count)
    took_s = time.monotonic() - began
    found = await trio.to_thread.run_sync(world.metrics)
    refused = sum(rejected(found).values()) - sum(rejected(known).values())
    said = sum(total(found, name) - total(known, name) for name in ("souk_declines_total", "souk_quotes_total"))
    assert answers.total() == count == refused + said, (answers, refused, said)
    left_fds = await back_to(process, fds=fds)
    grown = process.memory_info().rss - rss
    assert grown <= 32 * MIB and process.num_threads() <= threads + 8
    await trio.to_thread.run_sync(world.buy)
    figure(
        f"live, mutated frames ({run})",
        f"{count} in {took_s:.0f} s: {refused:.0f} refused, {said:.0f} answered; files {fds} -> {left_fds},"
        f" RSS {grown / MIB:+.1f} MiB, then a good job",
    )


async def storm(peer: HostilePeer, advert: Signed[Advert], seed: str, count: int) -> "Counter[str]":
    """Open ``count`` streams, eight at a time, each with one or two mutated frames; return what came back."""
    rng, answers = random.Random(seed), Counter[str]()
    asks, contracts = ({}, {})  # type: tuple[dict[str, MsgpackMutator], dict[str, MsgpackMutator]]
    makers = {QUOTE_PROTOCOL: (peer.ask, asks), JOB_PROTOCOL: (peer.contract, contracts)}

    async def one(number: int) -> None:
        protocol = (QUOTE_PROTOCOL, JOB_PROTOCOL)[number % 2]
        make, mutators = makers[protocol]
        # Made anew now and then: an hour-old mutant would be refused for its time alone.
        if number % 200 < 2 or not mutators:
            signed = peer.sign(make(advert))
            mutators["raw"] = MsgpackMutator(f"{seed}/{number}/raw", signed.envelope.raw)
            mutators["body"] = MsgpackMutator(f"{seed}/{number}/body", signed.envelope.body)
        kind = "ask" if protocol == QUOTE_PROTOCOL else "contract"
        first = (
            b"\x01" + mutators["raw"].on_bytes()
            if rng.random() < 0.3
            else signed_body(peer, kind, mutators["body"].on_values())
        )
        # Never the whole input: what is refused here is no job.
        second = b"\x02" + rng.randbytes(rng.randrange(60))
        frames = [first] if protocol == QUOTE_PROTOCOL else [first, second]
        answers[await peer.say(advert.signer, protocol, *frames)] += 1

    async def work(numbers: Iterator[int]) -> None:
        for number in numbers:
            await one(number)

    numbers = iter(range(count))
    async with trio.open_nursery() as workers:
        for _ in range(8):
            workers.start_soon(work, numbers)
    return answers


async def test_captured_messages_take_effect_once_when_they_are_sent_again_and_again(
    world: World, nursery: trio.Nursery, figure: Figure
) -> None:
    answers: Counter[str] = Counter()
    async with hostile(nursery, world) as (peer, advert):
        bought = await peer.buy(advert)
        assert bought.outputs > 0
        contract_id = bought.contract.message_id.hex()
        rows = await trio.to_thread.run_sync(world.receipts)
        assert rows[contract_id]["state"] == "closed"
        await replay(peer, advert, bought, answers)
        async with hostile(nursery, world) as (stranger, _advert):
            assert await stranger.say(advert.signer, JOB_PROTOCOL, *bought.opening) == RESET
        seed = peer.seed
    await trio.to_thread.run_sync(world.restart)
    async with hostile(nursery, world, seed=seed) as (peer, advert):
        await replay(peer, advert, bought, answers)
    after = await trio.to_thread.run_sync(world.receipts)
    assert {key: after[key] for key in rows} == rows
    assert not [row for key, row in after.items() if key not in rows]
    jobs = await trio.to_thread.run_sync(world.metrics)
    assert total(jobs, "souk_jobs_total") == 0, "a replay was run after the restart"
    await trio.to_thread.run_sync(world.buy)
    assert set(answers) <= {"decline", RESET}
    figure(
        "live, replays",
        f"{answers.total()} of one job's messages, half of them after a restart: {dict(answers)}, effect once",
    )


async def replay(peer: HostilePeer, advert: Signed[Advert], bought: Bought, answers: "Counter[str]") -> None:
    """Send the contract with its input 300 times, and every later message as a first word, 500 times in all."""
    for _ in range(300):
        answers[await peer.say(advert.signer, JOB_PROTOCOL, *bought.opening)] += 1
    for frame, _ in zip(cycle(bought.later), range(200), strict=False):
        answers[await peer.say(advert.signer, JOB_PROTOCOL, frame)] += 1
