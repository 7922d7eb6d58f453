"""Errors of the protocol and the closed list of reasons that travel with them (spec 00, section 3).

Whose fault it is decides the class: ``LocalProtocolError`` is ours, ``RemoteProtocolError`` is the peer's.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why bytes or a move were refused; the value is what metrics, logs and the wire show."""

    SIZE = "size"
    ENCODING = "encoding"
    ENVELOPE = "envelope"
    NETWORK = "network"
    TYPE = "type"
    SIGNER = "signer"
    TIME = "time"
    RATE = "rate"
    SIGNATURE = "signature"
    SCHEMA = "schema"
    MEANING = "meaning"
    ORDER = "order"
    PRICE = "price"


class DeclineCode(StrEnum):
    """Why a provider will not take a job: the closed list of spec 03, section 4."""

    BUSY = "busy"
    MODEL_UNKNOWN = "model_unknown"
    TASK_UNKNOWN = "task_unknown"
    PROFILE = "profile"
    CONTEXT_EXCEEDED = "context_exceeded"
    MEMORY = "memory"
    PRICE = "price"
    CREDIT = "credit"
    EXPIRED = "expired"
    INPUT = "input"
    DRAINING = "draining"
    FAILED = "failed"


class ProtocolError(Exception):
    """Base of both: a message for a person, and the ``reason`` for machines."""

    def __init__(self, message: str, *, reason: Reason) -> None:
        super().__init__(message)
        self.reason = reason


class LocalProtocolError(ProtocolError):
    """We tried to make an illegal value or move: our bug, whatever the peer sent."""


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the specification forbids: refuse, count, keep serving."""
