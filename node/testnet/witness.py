"""The god's-eye log of a simulated world: what left a node, what arrived, what became durable, what was computed.

It reads frames by itself, with msgpack alone, so that a fault of our own decoders cannot hide from it. It judges
nothing; ``node.testnet.checks`` does.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final, Protocol, TypeAlias

import msgpack
import trio

from node.net.interface import StreamHandler
from node.net.memory import MemoryFabric, MemoryNetwork
from node.net.memory_link import MemoryStream, Wire
from protocol.units import PeerId

Body: TypeAlias = dict[str, Any]  # a decoded body: whatever a peer put there

_ENVELOPE, _INPUT, _OUTPUT = 1, 2, 3
_HEADER_BYTES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenMessage:
    """A signed message as the witness read it."""

    kind: str
    signer: PeerId
    message_id: bytes
    body: Body
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenOutput:
    """An output frame as the witness read it, at one end of a stream."""

    contract_id: bytes
    sequence: int
    due: int
    """What has to come next on this stream: it begins with 0, or where its resume says."""
    data: bytes
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of history."""

    at: float
    node: str
    what: str
    job: str = ""
    contract: str = ""
    detail: str = ""

    def __str__(self) -> str:
        ids = f"{self.job[:8] or '-':8} {self.contract[:8] or '-':8}"
        return f"{self.at:9.3f} {self.node:6} {ids} {self.what} {self.detail}".rstrip()


@dataclass(slots=True)
class Life:
    """One incarnation of a node."""

    name: str
    number: int
    peer_id: PeerId
    alive: bool = True


class Observer(Protocol):
    """What is told of each thing that the witness sees."""

    def sent(self, life: Life, message: SeenMessage, conversation: bytes) -> None: ...

    def received(self, life: Life, message: SeenMessage, conversation: bytes) -> None: ...

    def output(self, life: Life, output: SeenOutput, *, is_sent: bool) -> None: ...

    def ended(self, life: Life, heard: list[SeenMessage]) -> None: ...

    def published(self, life: Life, advert: SeenMessage) -> None: ...


@dataclass
class Witness:
    """Keeps the history and its hash; tells the observer."""

    observer: Observer | None = None
    history: list[Event] = field(default_factory=list)
    jobs: dict[str, str] = field(default_factory=dict)
    """The job of each contract, in hex."""
    by_id: dict[bytes, SeenMessage] = field(default_factory=dict)
    inputs: dict[bytes, list[bytes]] = field(default_factory=dict)
    """The input frames sent under each contract, salt first."""
    resumes: Counter[bytes] = field(default_factory=Counter)
    """How often the requester of each contract wanted the rest on another stream."""
    _trace: Any = field(default_factory=sha256)  # hashlib gives its objects no public type
    _seen: dict[bytes, SeenMessage] = field(default_factory=dict)

    def note(self, node: str, what: str, *, job: str = "", contract: str = "", detail: str = "") -> None:
        event = Event(
            at=trio.current_time(),
            node=node,
            what=what,
            job=job or self.jobs.get(contract, ""),
            contract=contract,
            detail=detail,
        )
        self.history.append(event)
        self._trace.update(f"{event}\n".encode())

    @property
    def trace(self) -> str:
        """The hash of everything so far: equal runs have equal traces."""
        return str(self._trace.hexdigest())

    def about(self, *, job: str = "", contract: str = "") -> list[Event]:
        """Return the history of one job or contract, and the faults meanwhile."""
        lines = [it for it in self.history if (job and it.job == job) or (contract and it.contract == contract)]
        if not lines:
            return self.history[-40:]
        faults = [
            it
            for it in self.history
            if it.what.startswith("fault ") and lines[0].at - 1 <= it.at <= lines[-1].at + 1
        ]
        return sorted({id(it): it for it in lines + faults}.values(), key=lambda it: it.at)

    def read(self, raw: bytes) -> SeenMessage | None:
        """Return the message in an envelope; None if a liar sent no envelope at all."""
        if raw not in self._seen:
            try:
                _version, kind, network, signer, body, _signature = msgpack.unpackb(raw)
                signed = b"souk.sig.v1\x00" + bytes([len(kind)]) + kind.encode() + network + sha256(body).digest()
                plain = msgpack.unpackb(body)
            except (ValueError, TypeError, msgpack.UnpackException):
                return None
            self._seen[raw] = SeenMessage(
                kind=kind,
                signer=PeerId(signer),
                message_id=sha256(signed + signer).digest(),
                body=plain,
                raw=raw,
            )
            self.by_id[self._seen[raw].message_id] = self._seen[raw]
        return self._seen[raw]

    def frame(self, life: Life, stream: "WatchedStream", frame: bytes, *, is_sent: bool) -> None:
        """Take in one frame of a live node."""
        if not life.alive or self.observer is None:
            return
        if frame[0] == _OUTPUT:
            self._trace.update(frame)
            output = SeenOutput(
                contract_id=stream.contract_id,
                sequence=int.from_bytes(frame[1:_HEADER_BYTES], "big"),
                due=stream.output_due,
                data=frame[_HEADER_BYTES:],
                tokens=tuple(msgpack.unpackb(frame[_HEADER_BYTES:])["tokens"]),
            )
            stream.output_due = output.sequence + 1
            self.observer.output(life, output, is_sent=is_sent)
        if frame[0] == _INPUT and is_sent:
            frames = self.inputs.setdefault(stream.contract_id, [])
            if int.from_bytes(frame[1:_HEADER_BYTES], "big") == len(frames):
                frames.append(frame[_HEADER_BYTES:])
        if frame[0] != _ENVELOPE or (message := self.read(frame[1:])) is None:
            return
        if message.kind == "contract":
            stream.contract_id = message.message_id
            self.jobs[message.message_id.hex()] = message.body["job_id"].hex()
        if message.kind == "resume" and not stream.contract_id:
            # The requester's: the answer to it comes on a stream that has its contract.
            stream.contract_id, stream.output_due = message.body["contract_id"], message.body["frames"]
            wants_rest = message.body["standing"] != "over"
            self.resumes[stream.contract_id] += wants_rest and is_sent
            stream.resumes = self.resumes[stream.contract_id] if wants_rest else -1
        if message.kind != "advert":
            contract = stream.contract_id.hex()
            detail = describe(message)
            self.note(
                life.name,
                f"{'sends' if is_sent else 'hears'} {message.kind}",
                contract=contract,
                detail=detail,
            )
        if not is_sent:
            stream.heard.append(message)
        tell = self.observer.sent if is_sent else self.observer.received
        tell(life, message, stream.contract_id)

    def end_mark(self, life: Life, stream: "WatchedStream", *, is_sent: bool) -> None:
        """Take in an end mark of a live node: the second one says that all before the first has been seen to."""
        if not is_sent:
            stream.has_peer_ended = True
        elif life.alive and self.observer is not None and stream.has_peer_ended:
            self.observer.ended(life, stream.heard)

    def gossip(self, life: Life, data: bytes) -> None:
        if life.alive and self.observer is not None and (advert := self.read(data)) is not None:
            self._trace.update(data)
            self.observer.published(life, advert)


def describe(message: SeenMessage) -> str:
    """Return the numbers of a message that a reader of a history looks for."""
    shown = "number meter voucher frames tokens_held tokens_in tokens_out cumulative standing status code final"
    fields = [f"{name}={message.body[name]}" for name in shown.split() if name in message.body]
    return " ".join([*fields, f"id={message.message_id.hex()[:8]}"])


class WatchedStream(MemoryStream):
    """A stream whose frames the witness sees."""

    def __init__(
        self,
        wire: Wire,
        *,
        own: PeerId,
        peer_id: PeerId,
        on_gone: Callable[[MemoryStream], None],
        watch: Callable[["WatchedStream", bytes | None, bool], None],
    ) -> None:
        """``watch`` sees every frame, None for an end mark, and whether it is sent."""
        super().__init__(wire, own=own, peer_id=peer_id, on_gone=on_gone)
        self._watch = watch
        self.contract_id = b""
        self.output_due = 0
        self.resumes = 0
        """How often its contract had been resumed when this stream began; -1 when it only brings last words."""
        self.opened_at = trio.current_time()
        self.heard: list[SeenMessage] = []
        self.has_peer_ended = False

    async def send_frame(self, frame: bytes) -> None:
        # Output counts when it is handed over: a provider cannot know what a stream that breaks now still carries.
        if not self.is_lost or frame[0] == _OUTPUT:
            self._watch(self, frame, True)
        await super().send_frame(frame)

    async def receive_frame(self, size_max: int) -> bytes | None:
        frame = await super().receive_frame(size_max)
        self._watch(self, frame, False)
        return frame

    async def finish(self) -> None:
        self._watch(self, None, True)
        await super().finish()


class WatchedNetwork(MemoryNetwork):
    """A node's place in the simulated network, seen by the witness."""

    def __init__(self, fabric: MemoryFabric, life: Life, witness: Witness) -> None:
        super().__init__(fabric, life.name, life.peer_id)
        self._life, self._witness = life, witness

    def new_stream(self, peer_id: PeerId, on_gone: Callable[[MemoryStream], None]) -> MemoryStream:
        return WatchedStream(
            self._wire,
            own=self.peer_id,
            peer_id=peer_id,
            on_gone=on_gone,
            watch=self._see,
        )

    def _see(self, stream: WatchedStream, frame: bytes | None, is_sent: bool) -> None:
        if frame is None:
            self._witness.end_mark(self._life, stream, is_sent=is_sent)
        else:
            self._witness.frame(self._life, stream, frame, is_sent=is_sent)

    def serve(self, protocol: str, handler: StreamHandler) -> None:
        async def watched(stream: Any) -> None:  # the interface's Stream, as the handler takes it
            try:
                await handler(stream)
            except Exception as exc:  # noted here and raised on: the network survives it and would only log it
                if self._life.alive:
                    self._witness.note(self._life.name, "handler failed", detail=f"{protocol}: {exc!r}")
                raise

        super().serve(protocol, watched)

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(self._topics)

    @property
    def streams(self) -> list[WatchedStream]:
        return [stream for stream in self._streams if isinstance(stream, WatchedStream)]

    async def publish(self, topic: str, data: bytes) -> None:
        self._witness.gossip(self._life, data)
        await super().publish(topic, data)
