"""A line keeps frames in order, takes only its peer's own messages, and gives up on who takes nothing."""

import pytest
import trio
import trio.testing

from node.errors import StreamLostError
from node.market.party import SEND_WAIT_S, Line
from node.net.interface import Stream
from node.net.limits import STREAM_WINDOW_BYTES
from protocol.errors import Reason, RemoteProtocolError
from protocol.framing import AliveFrame, EnvelopeFrame, OutputFrame
from protocol.offer import Ask, Decline
from protocol.signed import sign
from protocol.units import NetworkId
from tests.fakes import signer_of
from tests.market.world import NETWORK, Node, World

ECHO = "/test/1"
NO = Decline(refers_to=bytes(32), code="busy", message="no")  # type: ignore[arg-type]  # as the wire says it


async def make_line(world: World) -> tuple[Line, list[Stream], Node]:
    """Return a line, the list that the other end's stream goes into, and the node at that end."""
    near = await world.node("near")
    inner = world.fabric.network("far", signer_of("far").peer_id)
    ends: list[Stream] = []

    async def keep(stream: Stream) -> None:
        ends.append(stream)
        await trio.sleep_forever()

    inner.serve(ECHO, keep)
    await world.nursery.start(inner.run)
    await near.network.inner.dial(inner.addresses[0])
    line = Line(await near.network.inner.open_stream(inner.peer_id, ECHO), near.party)
    return line, ends, near


async def test_line_gives_up_when_the_peer_takes_nothing(world: World) -> None:
    line, _ends, _near = await make_line(world)
    frame = OutputFrame(0, b"x" * 60_000)
    with pytest.raises(StreamLostError, match="took nothing"):  # noqa: PT012 - the last of many is stuck
        for _ in range(2 * STREAM_WINDOW_BYTES // 60_000):
            await line.send(frame)
    assert SEND_WAIT_S <= trio.current_time() <= SEND_WAIT_S + 1


async def test_frame_behind_the_last_word_is_not_sent(world: World) -> None:
    line, ends, _near = await make_line(world)
    refused: list[str] = []

    async def show_life() -> None:
        try:
            await line.send(AliveFrame())
        except StreamLostError as exc:
            refused.append(str(exc))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.finish)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(show_life)
    assert refused
    assert await ends[0].receive_frame(10) is None


@pytest.mark.parametrize(
    ("network", "signer", "reason"),
    [
        (NetworkId(b"x" * 32), "far", Reason.NETWORK),
        (NETWORK, "thief", Reason.SIGNER),
    ],
)
async def test_message_is_refused_when_it_is_not_the_peers_own(
    world: World, network: NetworkId, signer: str, reason: Reason
) -> None:
    line, _ends, _near = await make_line(world)
    raw = sign(NO, network=network, signer=signer_of(signer)).envelope.raw
    with pytest.raises(RemoteProtocolError) as caught:
        line.read_untrusted(EnvelopeFrame(raw), Decline)
    assert caught.value.reason is reason


async def test_message_is_refused_when_its_type_is_not_expected_here(world: World) -> None:
    line, _ends, _near = await make_line(world)
    raw = sign(NO, network=NETWORK, signer=signer_of("far")).envelope.raw
    with pytest.raises(RemoteProtocolError) as caught:
        line.read_untrusted(EnvelopeFrame(raw), Ask)
    assert caught.value.reason is Reason.TYPE
