"""Clients without manners, many at once: whatever they do, the server is afterwards what it was before.

Short here; the deep suite goes on for ten seconds.
"""

import contextlib
import gc
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from node.api.job_events import PATH
from node.api.server import HEAD_BYTES_MAX
from tests.api.fakes import TOKEN, EndlessMarket, Node, serve_node

SIDE_BY_SIDE = 24
PATIENCE_S = 0.05
"""How long a client waits for what it does not really want."""
AFTERWARDS_S_MAX = 5.0
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"

pytestmark = [pytest.mark.integration, pytest.mark.slow]

Rude = Callable[[Node, random.Random], Awaitable[None]]
Figure = Callable[[str, str], None]


async def leave(client: trio.SocketStream, rng: random.Random) -> None:
    if rng.random() < 0.5:  # a reset instead of an end
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.aclose()


async def wait_a_little(client: trio.SocketStream, rng: random.Random) -> None:
    with trio.move_on_after(rng.random() * PATIENCE_S):
        await client.receive_some()


async def cut(node: Node, rng: random.Random) -> None:
    """Go away in the middle of a stream."""
    client = await node.open_chat(stream=rng.random() < 0.5)
    await wait_a_little(client, rng)
    await leave(client, rng)


async def stall(node: Node, rng: random.Random) -> None:
    """Ask for a stream and read none of it."""
    client = await node.open_chat(stream=True)
    await trio.sleep(rng.random() * PATIENCE_S)
    await leave(client, rng)


async def garbage(node: Node, rng: random.Random) -> None:
    client = await node.open(rng.randbytes(rng.randrange(1, 4096)))
    await wait_a_little(client, rng)
    await leave(client, rng)


async def slowloris(node: Node, rng: random.Random) -> None:
    """Send a head byte by byte, and never end it."""
    client = await node.open(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
    for number in range(rng.randrange(1, 8)):
        await client.send_all(b"x-%d: y\r\n" % number)
        await trio.sleep(PATIENCE_S / 8)
    await leave(client, rng)


async def half_open(node: Node, rng: random.Random) -> None:
    """Say that nothing more comes, before the request is complete or while it is answered."""
    client = await (
        node.open(GET[: rng.randrange(len(GET))]) if rng.random() < 0.5 else node.open_chat(stream=True)
    )
    await client.send_eof()
    await wait_a_little(client, rng)
    await leave(client, rng)


async def big_head(node: Node, rng: random.Random) -> None:
    client = await node.open(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nx-big: ")
    for _ in range(2 * HEAD_BYTES_MAX // 8192):
        await client.send_all(b"a" * 8192)
    await wait_a_little(client, rng)
    await leave(client, rng)


async def pipeline(node: Node, rng: random.Random) -> None:
    client = await node.open(GET * rng.randrange(2, 12))
    await wait_a_little(client, rng)
    await leave(client, rng)


async def subscribe(node: Node, rng: random.Random) -> None:
    """Follow the node, and vanish."""
    path = rng.choice((PATH, "/api/v1/events"))
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    client = await node.open(head.encode())
    await wait_a_little(client, rng)
    await leave(client, rng)


async def short_body(node: Node, rng: random.Random) -> None:
    """Announce more than is sent."""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {TOKEN}\r\n"
    client = await node.open(f"{head}Content-Length: 5000\r\n\r\n{{".encode())
    await wait_a_little(client, rng)
    await leave(client, rng)


RUDE: tuple[Rude, ...] = (
    cut, stall, garbage, slowloris, half_open, big_head, pipeline, subscribe, short_body,
)  # fmt: skip


class CountingMarket(EndlessMarket):
    """Counts the orders that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open = 0

    async def submit(self, order: object, sink: trio.MemorySendChannel[object]) -> None:  # type: ignore[override]
        self.open += 1
        try:
            await super().submit(order, sink)  # type: ignore[arg-type]
        finally:
            self.open -= 1


def count() -> tuple[int, int]:
    """Return (file descriptors, tasks) of this process: the server's, once all clients have gone."""
    return len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living


async def be_rude(node: Node, rude_s: float, seed: int) -> Counter[str]:
    """Let clients come and go for ``rude_s``; return how many of each kind did."""
    rng, done = random.Random(seed), Counter[str]()

    async def visit(until: float) -> None:
        while trio.current_time() < until:
            kind = rng.choice(RUDE)
            # They are thrown out in the middle of it.
            with contextlib.suppress(OSError, trio.BrokenResourceError):
                await kind(node, rng)
            done[kind.__name__] += 1

    async with trio.open_nursery() as visitors:
        for _ in range(SIDE_BY_SIDE):
            visitors.start_soon(visit, trio.current_time() + rude_s)
    return done


async def hold_out(nursery: trio.Nursery, rude_s: float, figure: Figure) -> None:
    market = CountingMarket()
    node = await serve_node(nursery, market)
    assert (await node.call("GET", "/healthz")).status == 200
    await trio.testing.wait_all_tasks_blocked(0.05)
    # What earlier tests of this process left to the collector is not ours to count.
    gc.collect()
    before = count()
    done = await be_rude(node, rude_s, seed=7)
    assert set(done) == {kind.__name__ for kind in RUDE}
    assert (await node.call("GET", "/healthz")).status == 200
    left_at = trio.current_time()
    with trio.fail_after(AFTERWARDS_S_MAX):
        while (
            any(now > then for now, then in zip(count(), before, strict=True)) or market.open or node.feed.readers
        ):
            await trio.testing.wait_all_tasks_blocked(0.01)
    took_s = trio.current_time() - left_at
    figure(
        f"{done.total()} rude clients in {rude_s:g} s",
        f"fds, tasks {before} -> {count()}, open orders {market.open}, readers {node.feed.readers},"
        f" {took_s * 1000:.0f} ms after the last",
    )
    node.scope.cancel()
    with trio.fail_after(1):
        await node.ended.wait()


async def test_nothing_is_left_of_rude_clients(nursery: trio.Nursery, figure: Figure) -> None:
    await hold_out(nursery, 1.5, figure)


@pytest.mark.deep
async def test_nothing_is_left_of_ten_seconds_of_rude_clients(nursery: trio.Nursery, figure: Figure) -> None:
    await hold_out(nursery, 10, figure)
