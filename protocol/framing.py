"""Frames inside a stream: one kind byte, then an envelope or a piece of data (spec 02, section 3).

The stream itself puts a 32-bit big-endian length before each frame and ends with ``END_MARK``; that part is
done by whoever owns the stream. Data frames are not signed: the channel authenticates them, and the hash chain
over them stands in the next signed meter.
"""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypeAlias

from protocol import limits
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError

QUOTE_PROTOCOL: Final = "/souk/quote/1"
JOB_PROTOCOL: Final = "/souk/job/1"
CONTROL_PROTOCOL: Final = "/souk/control/1"
ADVERT_PROTOCOL: Final = "/souk/advert/1"

LENGTH_BYTES: Final = 4
END_MARK: Final = 0xFFFF_FFFF
"""A length that no frame has: the sender has said everything."""

ENVELOPE_FRAME_BYTES_MAX: Final = 1 + limits.BODY_BYTES_MAX + limits.ENVELOPE_OVERHEAD_BYTES_MAX
FRAME_BYTES_MAX: Final = limits.FRAME_HEADER_BYTES + limits.DATA_FRAME_BYTES_MAX
SEQUENCE_BYTES: Final = 4


class FrameKind(IntEnum):
    ENVELOPE = 1
    INPUT = 2
    OUTPUT = 3
    ALIVE = 4


@dataclass(frozen=True, slots=True)
class EnvelopeFrame:
    raw: bytes


@dataclass(frozen=True, slots=True)
class InputFrame:
    sequence: int
    data: bytes


@dataclass(frozen=True, slots=True)
class OutputFrame:
    sequence: int
    data: bytes


@dataclass(frozen=True, slots=True)
class AliveFrame:
    """Says only that the sender still works on the job."""


Frame: TypeAlias = EnvelopeFrame | InputFrame | OutputFrame | AliveFrame


def encode_frame(frame: Frame) -> bytes:
    """Return the frame's bytes. Raises: LocalProtocolError (its data is longer than a frame may be)."""
    match frame:
        case EnvelopeFrame(raw):
            data = bytes([FrameKind.ENVELOPE]) + raw
            bound = ENVELOPE_FRAME_BYTES_MAX
        case InputFrame(sequence, payload):
            data = bytes([FrameKind.INPUT]) + sequence.to_bytes(SEQUENCE_BYTES, "big") + payload
            bound = FRAME_BYTES_MAX
        case OutputFrame(sequence, payload):
            data = bytes([FrameKind.OUTPUT]) + sequence.to_bytes(SEQUENCE_BYTES, "big") + payload
            bound = FRAME_BYTES_MAX
        case AliveFrame():
            return bytes([FrameKind.ALIVE])
    if len(data) > bound:
        raise LocalProtocolError(f"a frame of {len(data)} bytes, at most {bound}", reason=Reason.SIZE)
    return data


def decode_frame_untrusted(data: bytes) -> Frame:
    """Return the frame that a peer sent; raises nothing but ``RemoteProtocolError``."""
    if not data:
        raise RemoteProtocolError("an empty frame", reason=Reason.ENCODING)
    match data[0]:
        case FrameKind.ENVELOPE:
            if len(data) > ENVELOPE_FRAME_BYTES_MAX:
                raise RemoteProtocolError(f"an envelope of {len(data)} bytes", reason=Reason.SIZE)
            return EnvelopeFrame(data[1:])
        case FrameKind.INPUT:
            return InputFrame(*_data_untrusted(data))
        case FrameKind.OUTPUT:
            return OutputFrame(*_data_untrusted(data))
        case FrameKind.ALIVE:
            if len(data) != 1:
                raise RemoteProtocolError("a sign of life carries nothing", reason=Reason.ENCODING)
            return AliveFrame()
        case kind:
            raise RemoteProtocolError(f"frame kind {kind} is unknown", reason=Reason.TYPE)


def split_input(salt: bytes, data: bytes) -> list[InputFrame]:
    """Return the input frames of a job: the salt alone first, then the input in pieces."""
    step = limits.DATA_FRAME_BYTES_MAX
    pieces = [salt, *(data[at : at + step] for at in range(0, len(data), step))]
    return [InputFrame(sequence, piece) for sequence, piece in enumerate(pieces)]


def _data_untrusted(data: bytes) -> tuple[int, bytes]:
    """Return (sequence, payload); raises nothing but ``RemoteProtocolError``."""
    if not limits.FRAME_HEADER_BYTES <= len(data) <= FRAME_BYTES_MAX:
        raise RemoteProtocolError(f"a data frame of {len(data)} bytes", reason=Reason.SIZE)
    header = limits.FRAME_HEADER_BYTES
    return int.from_bytes(data[1:header], "big"), data[header:]
