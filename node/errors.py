"""The world's faults, as the rooms of the daemon tell them to each other.

A ``NodeError`` is something a caller is expected to handle: a disk, a network, a device, a peer that is gone.
Errors of the wire format live in ``protocol/errors.py``.
"""


class NodeError(Exception):
    """Base of all; the message says what was expected, what came, and what to do."""


class ConfigError(NodeError):
    """The configuration cannot be used; ``problems`` has one line for each fault."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class AlreadyRunningError(NodeError):
    """Another daemon holds this home."""


class KeyFileError(NodeError):
    """The key file is missing, readable by others, or not a key."""


class TransportError(NodeError):
    """A peer could not be reached, or a stream to it broke."""


class StreamLostError(TransportError):
    """The stream broke before the peer ended it: nothing is known about what it did not say."""


class LedgerError(NodeError):
    """The ledger could not write or read; nothing was acknowledged."""


class KnownContractError(LedgerError):
    """The ledger has this contract already: it is taken once."""


class LedgerDiskError(LedgerError):
    """The ledger's disk takes nothing now: full, read-only or failing. It is tried again by itself."""


class ModelError(NodeError):
    """A model file or manifest was refused."""


class ModelKeptError(ModelError):
    """A model stays in the store: it is pinned, or a daemon serves it."""


class ExecutionError(NodeError):
    """A job could not run; ``code`` is a fixed word for machines."""

    def __init__(self, message: str, *, code: str) -> None:
        super().__init__(message)
        self.code = code


class JobRefusedError(ExecutionError):
    """The job can never run here as asked (``model_unknown``, ``context_exceeded``, ``input``).

    Where it does not fit: ``tokens_out_max`` is the longest answer that fits beside this prompt, ``tokens_in_max``
    the longest prompt that fits beside this answer; either would be taken.
    """

    def __init__(
        self, message: str, *, code: str, tokens_out_max: int | None = None, tokens_in_max: int | None = None
    ) -> None:
        super().__init__(message, code=code)
        self.tokens_out_max = tokens_out_max
        self.tokens_in_max = tokens_in_max


class WorkerDiedError(ExecutionError):
    """The worker process ended while it held the job."""
