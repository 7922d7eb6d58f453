"""A contract's input as it comes off the stream: bounded, in order, the one that the contract names (spec 03)."""

from node.market.party import Line
from protocol.contract import SALT_BYTES, Contract, hash_input
from protocol.errors import Reason, RemoteProtocolError
from protocol.framing import InputFrame
from protocol.task import TOKEN_BYTES, GenerateInput, decode_input_untrusted


async def read_input_untrusted(line: Line, terms: Contract) -> tuple[bytes, GenerateInput]:
    """Return (salt, input) as the contract's hash names them.

    Raises: RemoteProtocolError (anything else came), StreamLostError.
    """
    data = bytearray()
    salt = b""
    expected = 0
    while expected == 0 or len(data) < terms.input_bytes:
        frame = await line.receive_untrusted()
        if not isinstance(frame, InputFrame) or frame.sequence != expected:
            raise RemoteProtocolError(f"expected input frame {expected}", reason=Reason.ORDER)
        if expected == 0:
            salt = frame.data
        else:
            data += frame.data
        if len(salt) != SALT_BYTES or not (expected == 0 or frame.data) or len(data) > terms.input_bytes:
            raise RemoteProtocolError(f"input frame {expected} has a wrong length", reason=Reason.SIZE)
        expected += 1
    if hash_input(salt, bytes(data)) != terms.input_hash:
        raise RemoteProtocolError("the input is not the one that the contract names", reason=Reason.MEANING)
    task_input = decode_input_untrusted(bytes(data))
    if len(task_input.held) != terms.tokens_held * TOKEN_BYTES:
        raise RemoteProtocolError(
            f"the contract speaks of {terms.tokens_held} held tokens, the input of another number",
            reason=Reason.MEANING,
        )
    return salt, task_input
