"""What a client is told when it goes wrong: OpenAI's JSON shape, whatever the status and path (ux.md, 6).

``ApiError`` is an answer in the form of an exception. Which fault of the market becomes which status is decided
here and nowhere else.
"""

from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from node.errors import (
    ExecutionError,
    JobRefusedError,
    LedgerDiskError,
    NodeError,
    TransportError,
    WorkerDiedError,
)
from node.execution import residency
from node.market.order import (
    DeadlineError,
    JobFailedError,
    NobodyWillingError,
    OrderCancelledError,
    OrderError,
    PassedOver,
    UnfitInputError,
    UnknownModelError,
    WrongTaskError,
)
from node.market.settlement import SettlementError
from protocol.identity import peer_id_to_text

CAPACITY_RETRY_S: Final = 2
"""Peers free a slot or gossip a new advert within seconds; SDKs retry a 503 by themselves and honour this."""
DISK_RETRY_S: Final = 15
"""The ledger tries its disk again about so often."""
WORKER_RETRY_S: Final = 5
"""A worker that died serves again within seconds."""

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class RefusalView(msgspec.Struct, frozen=True):
    peer: str
    code: str
    message: str


class ErrorDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What the market adds to some errors."""

    available: tuple[str, ...] | UnsetType = UNSET
    """The models that could have been asked for."""
    refusals: tuple[RefusalView, ...] | UnsetType = UNSET
    """Why each candidate did not take the job."""
    cause: str | UnsetType = UNSET
    """The provider's own word for its failure."""


class ErrorBody(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(msgspec.Struct, frozen=True):
    """The body of every error."""

    error: ErrorBody
    souk: ErrorDetail | UnsetType = UNSET


class ClientGoneError(NodeError):
    """The client closed its connection: nobody is left to be answered."""


class ApiError(NodeError):
    """An answer that is an error; ``code`` is a fixed word for machines."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        param: str | None = None,
        retry_after_s: int | None = None,
        souk: ErrorDetail | UnsetType = UNSET,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.souk = souk

    def answer(self) -> ErrorAnswer:
        """Return the body to send."""
        default_type = "server_error" if self.status >= 500 else "invalid_request_error"
        return ErrorAnswer(
            error=ErrorBody(
                message=str(self),
                type=_TYPES.get(self.status, default_type),
                param=self.param,
                code=self.code,
            ),
            souk=self.souk,
        )


def bad_request(message: str, *, param: str | None, code: str = "invalid_value") -> ApiError:
    """Return the answer to a request that is wrong in itself."""
    return ApiError(message, status=400, code=code, param=param)


def unknown_model(exc: UnknownModelError) -> ApiError:
    """Return the answer to a request for a model that nobody known has, or not this node."""
    return ApiError(
        str(exc), status=404, code="model_not_found", param="model", souk=ErrorDetail(available=exc.available)
    )


def unfit_input(exc: UnfitInputError, *, param: str | None) -> ApiError:
    """Return the answer to a request whose input the model cannot take; ``param`` is the field that it came in."""
    return bad_request(str(exc), param=param, code=exc.code)


def to_api_error(exc: NodeError) -> ApiError:
    """Return what the client is told about a fault of the market, the network or this node."""
    match exc:
        case ApiError():
            return exc
        case UnknownModelError():
            return unknown_model(exc)
        case NobodyWillingError():
            reasons = "; ".join(f"{peer_id_to_text(r.peer_id)} {r.code}: {r.message}" for r in exc.refusals)
            return ApiError(
                # SDKs show the message alone.
                f"{exc}: {reasons}" if reasons else str(exc),
                status=503,
                code="no_capacity",
                retry_after_s=CAPACITY_RETRY_S,
                souk=ErrorDetail(refusals=tuple(_refusal(refusal) for refusal in exc.refusals)),
            )
        case WrongTaskError():
            return bad_request(str(exc), param="model", code="task_not_served")
        case UnfitInputError():
            return unfit_input(exc, param=None)
        case DeadlineError():
            return ApiError(str(exc), status=504, code="deadline")
        case OrderCancelledError():
            # Not 409, which SDKs try again by themselves.
            return ApiError(str(exc), status=410, code="cancelled")
        case JobFailedError():
            return ApiError(str(exc), status=502, code="peer_failed", souk=ErrorDetail(cause=exc.code))
        case OrderError():
            return ApiError(str(exc), status=502, code="peer_failed")
        case LedgerDiskError():
            return ApiError(str(exc), status=503, code="disk", retry_after_s=DISK_RETRY_S)
        case SettlementError():
            return ApiError(str(exc), status=409, code="not_settled")
        case TransportError():
            return ApiError(str(exc), status=502, code="unreachable")
        case _:
            return ApiError(str(exc), status=500, code="internal_error")


def device_refusal(exc: ExecutionError) -> ApiError:
    """Return what the client is told when a device does not load, unload or measure a model."""
    match exc:
        case WorkerDiedError():
            return ApiError(str(exc), status=503, code="worker_died", retry_after_s=WORKER_RETRY_S)
        case JobRefusedError():
            return ApiError(str(exc), status=404, code="model_not_found", param="model")
        case ExecutionError(code=residency.MODEL_BUSY):
            return ApiError(str(exc), status=409, code="model_busy", param="model")
        case ExecutionError(code=residency.DEVICE_BUSY):
            return ApiError(str(exc), status=409, code="device_busy")
        case _:
            return ApiError(str(exc), status=409, code="model_refused", param="model")


def _refusal(refusal: PassedOver) -> RefusalView:
    return RefusalView(peer=peer_id_to_text(refusal.peer_id), code=str(refusal.code), message=refusal.message)
