"""Three real nodes and OpenAI's own client, sync and async; and what is left at the provider when a client goes.

One node serves a small model with a single slot, two buy from it.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
import trio

from node.api.job_events import PATH
from node.home import Home
from node.testnet.interrupts import Interrupts
from node.testnet.network import Network, Node, Plan
from tests.integration.paced_model import CONTEXT_TOKENS, NAME, write_paced_store

FREE_S_MAX = 1.0
STOP_S_MAX = 5.0
CONFIG = (
    (Path(__file__).parents[2] / "configs" / "testnet.toml")
    .read_text("utf-8")
    .replace("slots = 4", 'slots = 1\ndtype = "fp32"')
)
LONG = CONTEXT_TOKENS - 64

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Figure = Callable[[str, str], None]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("face")
    store = write_paced_store(folder / "store")
    running = Network(folder / "net")
    running.up(
        Plan(folder=folder / "net", nodes=3, providers=1, models_dir=store, base_config=CONFIG), Interrupts()
    )
    try:
        yield running
    finally:
        running.down()


def token(node: Node) -> str:
    return Home(Path(node.home)).read_token()


def port(node: Node) -> int:
    return int(node.url.rpartition(":")[2])


def chat(text: str = "Say something.", **more: object) -> dict[str, Any]:
    return {"model": NAME, "messages": [{"role": "user", "content": text}], "max_tokens": 12, "seed": 1, **more}


def client(node: Node) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{node.url}/v1", api_key=token(node), max_retries=0)


def test_sync_client_lists_completes_and_streams(network: Network) -> None:
    souk = client(network.nodes[1])
    assert [it.id for it in souk.models.list()] == [NAME] and souk.models.retrieve(NAME).id == NAME
    whole: Any = souk.chat.completions.create(**chat())
    assert whole.souk["peer"] == network.nodes[0].peer_id and whole.souk["receipt_id"]
    chunks: list[Any] = list(
        souk.chat.completions.create(**chat(stream=True, stream_options={"include_usage": True}))
    )
    told = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert told == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 12
    raw: Any = souk.completions.create(model=NAME, prompt="Once", max_tokens=5, seed=1)
    assert len(raw.choices[0].text) == raw.usage.completion_tokens == 5


async def test_async_client_streams_and_completes_side_by_side(network: Network) -> None:
    nodes = network.nodes[1:]
    answers: list[str] = []

    async def one(node: Node, streamed: bool) -> None:
        async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key=token(node), max_retries=0) as souk:
            if streamed:
                chunks: Any = await souk.chat.completions.create(**chat(stream=True))
                answers.append("".join([chunk.choices[0].delta.content or "" async for chunk in chunks]))
            else:
                whole: Any = await souk.chat.completions.create(**chat())
                answers.append(whole.choices[0].message.content)

    async with trio.open_nursery() as nursery:
        for node in nodes:
            for streamed in (True, False):
                nursery.start_soon(one, node, streamed)
    assert len(answers) == 4 and len(set(answers)) == 1


def test_job_runs_without_its_client_and_again_over_contracts(network: Network) -> None:
    buyer = network.nodes[1]

    def call(method: str, path: str, body: object = None) -> tuple[int, Any]:
        connection = HTTPConnection("127.0.0.1", port(buyer))
        headers = {"Authorization": f"Bearer {token(buyer)}", "Idempotency-Key": path}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())

    spec = {"task": "generate", "souk": {"on": "remote"}, **chat()}
    for _ in range(2):  # the key makes it one
        status, submitted = call("POST", "/api/v1/jobs", spec)
        assert status == 202
    job = submitted["job_id"]
    texts = []
    while len(texts) < 2:
        status, result = call("GET", f"/api/v1/jobs/{job}/result?wait_s=30")
        assert (status, result["state"]) == (200, "closed"), result
        texts.append(result["answer"]["text"])
        souk = result["answer"]["souk"]
        assert souk["job_id"] == job and souk["receipt_id"] and souk["peer"] == network.nodes[0].peer_id
        shown = call("GET", f"/api/v1/jobs/{job}")[1]
        assert shown["job"]["contract_id"] == souk["contract_id"] and shown["timeline"][-1]["step"] == "paid"
        before, job = job, call("POST", f"/api/v1/jobs/{job}/rerun")[1]["job_id"]
        assert job != before
    assert texts[0] == texts[1] and len(texts[0]) > 0
    call("GET", f"/api/v1/jobs/{job}/result?wait_s=30")


def test_client_raises_the_error_that_openai_would(network: Network) -> None:
    souk = client(network.nodes[1])
    calls: list[tuple[type[openai.APIStatusError], str, Callable[[], object]]] = [
        (
            openai.NotFoundError,
            "model_not_found",
            lambda: souk.chat.completions.create(**chat() | {"model": "huge"}),
        ),
        (openai.BadRequestError, "invalid_value", lambda: souk.chat.completions.create(**chat(temperature=9))),
        (
            openai.BadRequestError,
            "context_length_exceeded",
            lambda: souk.chat.completions.create(**chat("x" * 4 * CONTEXT_TOKENS)),
        ),
        (openai.NotFoundError, "not_found", lambda: souk.get("/nowhere", cast_to=object)),
        (openai.APIStatusError, "method_not_allowed", lambda: souk.delete("/models", cast_to=object)),
        (openai.AuthenticationError, "invalid_api_key", lambda: souk.with_options(api_key="x").models.list()),
        (
            openai.InternalServerError,
            "no_capacity",
            lambda: souk.chat.completions.create(**chat(), extra_body={"souk": {"max_price": 0, "on": "remote"}}),
        ),
    ]
    for raised, code, call in calls:
        with pytest.raises(raised) as caught:
            call()
        error = caught.value.response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"} and error["code"] == caught.value.code == code
        assert caught.value.response.headers["x-request-id"]
        assert ("retry-after" in caught.value.response.headers) == (caught.value.status_code == 503)


class Connection:
    """One HTTP exchange, line by line."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""

    @classmethod
    async def open(cls, node: Node, method: str, path: str, body: object = None) -> "Connection":
        data = b"" if body is None else json.dumps(body).encode()
        stream = await trio.open_tcp_stream("127.0.0.1", port(node))
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token(node)}\r\n"
        await stream.send_all(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        return cls(stream)

    async def line(self) -> bytes:
        while b"\n" not in self._buffer:
            more = await self._stream.receive_some()
            assert more, "the server has closed the connection"
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    async def until(self, text: bytes) -> bytes:
        while text not in (line := await self.line()):
            pass
        return line

    async def json(self) -> Any:  # Any: the test looks into it
        length = int((await self.until(b"content-length")).partition(b":")[2])
        while await self.line() != b"\r":
            pass
        while len(self._buffer) < length:
            self._buffer += await self._stream.receive_some()
        return json.loads(self._buffer)

    async def steps(self, name: str | None, *, over: bool = False) -> None:
        """Follow job events until a step of this name, or the end of a job."""
        while True:
            event = json.loads((await self.until(b'data: {"job"')).partition(b"data: ")[2])
            if over and event["job"]["ended_ms"] is not None:
                return
            if not over and event["step"]["step"] == name:
                return

    async def close(self) -> None:
        await self._stream.aclose()


async def follow(node: Node) -> Connection:
    followed = await Connection.open(node, "GET", PATH)
    await followed.until(b": waiting")
    return followed


async def running(node: Node) -> int:
    asked = await Connection.open(node, "GET", "/api/v1/status")
    found = await asked.json()
    await asked.close()
    return int(found["jobs"]["running"] + found["jobs"]["waiting"])


@contextmanager
def held_still(process: psutil.Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def engine(node: Node) -> psutil.Process:
    found = node.process()
    assert found is not None
    inside = [it for it in found.children(recursive=True) if it.name() != "bwrap"]
    return next(it for it in inside if "engine.worker" in " ".join(it.cmdline()))


async def gone_in(state: str, provider: Node, buyer: Node, other: Node) -> float:
    """Have a client leave in ``state``; return how long the provider took to have its place back."""
    steps = await follow(provider)
    body = chat(max_tokens=LONG, stream=state != "whole", souk={"on": provider.peer_id, "path": "fast"})
    blocker = None
    if state == "queued":
        blocker = await Connection.open(other, "POST", "/v1/chat/completions", {**body, "stream": True})
        await steps.steps("first_token")
    asked = await Connection.open(buyer, "POST", "/v1/chat/completions", body)
    await steps.steps({"queued": "queued"}.get(state, "first_token"))
    if state == "streamed":
        await asked.until(b"data: {")
    left_at = trio.current_time()
    await asked.close()
    await steps.steps(None, over=True)
    took_s = trio.current_time() - left_at
    if blocker is not None:
        await blocker.close()
        await steps.steps(None, over=True)
    await steps.close()
    return took_s


async def gone_while_loading(provider: Node, buyer: Node) -> float:
    """As ``gone_in``: the provider's engine does not answer yet, so no contract stands, but a place is taken."""
    mine = await follow(buyer)
    with held_still(engine(provider)):
        body = chat(max_tokens=LONG, souk={"on": provider.peer_id, "path": "fast"})
        asked = await Connection.open(buyer, "POST", "/v1/chat/completions", body)
        await mine.steps("offered")
        while await running(provider) == 0:
            pass  # each question is a request of its own: nothing tells of a place that no contract holds yet
        left_at = trio.current_time()
        await asked.close()
        while await running(provider) > 0:
            pass
        took_s = trio.current_time() - left_at
    await mine.close()
    return took_s


async def test_place_at_the_provider_is_free_within_a_second_when_the_client_goes(
    network: Network, figure: Figure
) -> None:
    provider, buyer, other = network.nodes
    with trio.fail_after(90):
        for state in ("streamed", "whole", "queued"):
            took_s = [await gone_in(state, provider, buyer, other) for _ in range(3)]
            figure(
                f"client gone -> remote slot free, {state}",
                f"{max(took_s) * 1000:.0f} ms at most of {len(took_s)}",
            )
            assert max(took_s) <= FREE_S_MAX
        took = await gone_while_loading(provider, buyer)
        figure("client gone -> remote slot free, loading", f"{took * 1000:.0f} ms")
        assert took <= FREE_S_MAX
        assert await running(provider) == 0
    # The market goes on.
    whole: Any = await trio.to_thread.run_sync(lambda: client(buyer).chat.completions.create(**chat()))
    assert whole.usage.completion_tokens == 12


async def test_daemon_ends_within_its_grace_when_clients_hang_on(network: Network, figure: Figure) -> None:
    provider, leaving, _other = network.nodes
    steps = await follow(provider)
    stalled = await Connection.open(leaving, "POST", "/v1/chat/completions", chat(max_tokens=LONG, stream=True))
    await steps.steps("first_token")
    idle = await Connection.open(leaving, "GET", "/healthz")
    half = await trio.open_tcp_stream("127.0.0.1", port(leaving))
    await half.send_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
    watching = await follow(leaving)
    process = leaving.process()
    assert process is not None
    told_at = time.monotonic()
    os.kill(leaving.pid, signal.SIGTERM)
    with trio.fail_after(STOP_S_MAX):
        await trio.to_thread.run_sync(process.wait, STOP_S_MAX, abandon_on_cancel=True)
    figure("SIGTERM with clients connected -> ended", f"{time.monotonic() - told_at:.2f} s")
    with trio.fail_after(FREE_S_MAX + 1):
        await steps.steps(None, over=True)
    for each in (stalled, idle, watching, steps):
        await each.close()
    await half.aclose()
