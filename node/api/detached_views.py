"""Bodies of detached jobs: what answers an order, and what came of it in the end."""

from typing import Annotated, TypeAlias

from msgspec import Meta

from node.api.errors import ErrorBody, ErrorDetail
from node.api.task_bodies import Answered, ClassifyAnswer, EmbedAnswer, ForwardAnswer, VadAnswer
from node.api.views import View
from protocol.task import GENERATE, FinishReason

WAIT_S_MAX = 60


class GenerateAnswer(Answered, frozen=True, kw_only=True, tag_field="task", tag=GENERATE):
    """``usage`` counts tokens."""

    text: str
    finish_reason: FinishReason


JobAnswer: TypeAlias = GenerateAnswer | EmbedAnswer | ClassifyAnswer | VadAnswer | ForwardAnswer


class SubmitAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    job_id: str
    is_new: bool = True
    """False: an order with the same Idempotency-Key had made it already."""


class JobResult(View, frozen=True, kw_only=True):
    """Where a detached job is; once it is over, its ``answer``, or the ``error`` that it ended with."""

    schema: int = 1
    job_id: str
    state: str
    """submitted, or of its contract while it runs; then closed, failed, expired or cancelled."""
    is_over: bool
    task: str
    model: str
    answer: JobAnswer | None = None
    error: ErrorBody | None = None
    details: ErrorDetail | None = None
    """What the market adds to some errors."""


class ResultQuery(View, frozen=True, kw_only=True):
    wait_s: Annotated[float, Meta(ge=0, le=WAIT_S_MAX)] = 0.0
    """How long to wait for the end of a job that runs."""
