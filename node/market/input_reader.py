"""The input that follows a contract: read as the contract names it, or refused (spec 04).

Whether the terms suit is ``provider.py``'s to say; what the model makes of the input is its worker's.
"""

from node.market.party import Line
from protocol.contract import SALT_BYTES, Contract, hash_input
from protocol.errors import Reason, RemoteProtocolError
from protocol.framing import InputFrame
from protocol.task import GenerateInput
from protocol.tasks.registry import TaskInput, decode_task_input_untrusted


async def read_input_untrusted(line: Line, terms: Contract) -> tuple[bytes, TaskInput]:
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
    task_input = decode_task_input_untrusted(terms.task, bytes(data))
    _check_units_untrusted(task_input, terms)
    return salt, task_input


def _check_units_untrusted(task_input: TaskInput, terms: Contract) -> None:
    """Refuse, with ``RemoteProtocolError``, an input whose numbers are not the contract's."""
    held = task_input.units_held if isinstance(task_input, GenerateInput) else 0
    if held != terms.tokens_held:
        raise RemoteProtocolError(
            f"the contract speaks of {terms.tokens_held} held tokens, the input has {held}", reason=Reason.MEANING
        )
    if not isinstance(task_input, GenerateInput) and task_input.units_out != terms.tokens_out_max:
        raise RemoteProtocolError(
            f"the contract speaks of {terms.tokens_out_max} units out, the input gives {task_input.units_out}",
            reason=Reason.MEANING,
        )
