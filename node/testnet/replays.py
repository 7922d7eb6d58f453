"""A peer that says things again: old contracts to their providers, and other peers' adverts after their time."""

import random
from typing import TYPE_CHECKING, Final

import trio

from node.errors import NodeError
from node.net.interface import Stream
from node.testnet.witness import SeenMessage, Witness
from protocol.errors import ProtocolError
from protocol.framing import JOB_PROTOCOL, EnvelopeFrame, InputFrame, encode_frame
from protocol.units import PeerId

if TYPE_CHECKING:
    from node.testnet.world import Rooms

PERIOD_S: Final = (0.5, 6.0)
PATIENCE_S: Final = 5.0
FRAME_BYTES_MAX: Final = 1 << 17


class Replays:
    """Works beside a liar's node, with its network, until ``ends_at``."""

    def __init__(self, witness: Witness, rng: random.Random, *, ends_at: float) -> None:
        self._witness = witness
        self._rng = rng
        self._ends_at = ends_at

    async def run(self, rooms: "Rooms") -> None:
        while trio.current_time() < self._ends_at:
            await trio.sleep(self._rng.uniform(*PERIOD_S))
            known = list(self._witness.by_id.values())
            contracts = [it for it in known if it.kind == "contract" and it.signer == rooms.life.peer_id]
            adverts = [it for it in known if it.kind == "advert" and it.signer != rooms.life.peer_id]
            try:
                if contracts:
                    with trio.move_on_after(PATIENCE_S):
                        await self._tell_again(rooms, self._rng.choice(contracts))
                if adverts:
                    topic = next(iter(rooms.network.topics))
                    await rooms.network.publish(topic, self._rng.choice(adverts).raw)
            except (NodeError, ProtocolError):
                continue

    async def _tell_again(self, rooms: "Rooms", contract: SeenMessage) -> None:
        provider = PeerId(contract.body["provider"])
        stream: Stream = await rooms.network.open_stream(provider, JOB_PROTOCOL)
        async with stream:
            await stream.send_frame(encode_frame(EnvelopeFrame(contract.raw)))
            for sequence, data in enumerate(self._witness.inputs.get(contract.message_id, ())):
                await stream.send_frame(encode_frame(InputFrame(sequence, data)))
            while await stream.receive_frame(FRAME_BYTES_MAX) is not None:
                pass
