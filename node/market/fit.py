"""Whether a job fits its model and the device's memory now, before a quote and a signature (spec 03, 4 and 6).

What memory there is and what a model takes of it is ``node.execution``'s arithmetic; this turns it into an answer
to a peer, with what would have been taken.
"""

import logging

from node.errors import ExecutionError, JobRefusedError
from node.execution.interface import ServedModel
from node.market.admission import RETRY_MS, Refused
from protocol.errors import DeclineCode

log = logging.getLogger(__name__)

_CODES = {
    "model_unknown": DeclineCode.MODEL_UNKNOWN,
    "context_exceeded": DeclineCode.CONTEXT_EXCEEDED,
    "input": DeclineCode.INPUT,
}


def check_fits(model: ServedModel, tokens_out_max: int) -> None:
    """Raises: Refused (memory, busy, context_exceeded)."""
    if model.lacks == "memory":
        raise Refused(DeclineCode.MEMORY, f"the device has no room for {model.name} now: others hold its memory")
    if model.lacks == "jobs":
        raise Refused(
            DeclineCode.BUSY, "models with running jobs are in the way of this one", retry_after_ms=RETRY_MS
        )
    # A prompt has at least one token; the exact count comes with the input.
    if tokens_out_max >= model.context_tokens:
        raise Refused(
            _too_long(model),
            f"{tokens_out_max} answer tokens do not fit a context of {model.context_tokens}",
            tokens_max=model.context_tokens - 1,
        )


def refused_by(fault: ExecutionError, model: ServedModel) -> Refused:
    """Return what a peer is told of a job that the worker would not prepare."""
    match fault:
        case JobRefusedError(code="context_exceeded"):
            return Refused(_too_long(model), str(fault), tokens_max=fault.tokens_out_max)
        case JobRefusedError():
            return Refused(_CODES.get(fault.code, DeclineCode.FAILED), str(fault))
        case ExecutionError(code="model_busy"):
            return Refused(DeclineCode.BUSY, str(fault), retry_after_ms=RETRY_MS)
        case ExecutionError(code="memory"):
            return Refused(DeclineCode.MEMORY, f"the device has no room for {model.name} now")
        case _:
            # Not the fault's own text: it may say where our files lie. It stands in our log.
            log.warning("job not prepared", extra={"code": fault.code, "cause": str(fault)})
            return Refused(DeclineCode.FAILED, f"the worker is not available: {fault.code}")


def _too_long(model: ServedModel) -> DeclineCode:
    return DeclineCode.MEMORY if model.is_context_cut else DeclineCode.CONTEXT_EXCEEDED
