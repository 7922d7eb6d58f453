"""The steps of jobs as OpenTelemetry spans, with the extra ``souk[otel]`` and ``traces.otlp_url``.

One trace for each job that is over: a span for the whole, and a child for each step until the next one. Attributes
are ids, counts and codes, some under the names of OpenTelemetry's conventions for generative AI; never a prompt or
an answer, which the journal never had. The library is imported when it is needed, and
sends from a thread of its own.
"""

from itertools import chain
from typing import TYPE_CHECKING, Final

from node.errors import NodeError
from node.market.journal import JobRecord, Step
from node.metrics import Role
from protocol.identity import peer_id_to_text

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

NS_PER_MS: Final = 1_000_000
_TRACER: Final = "souk"
# Names of OpenTelemetry's SpanKind.
_KINDS: Final[dict[Role, str]] = {"requester": "CLIENT", "worker": "SERVER", "local": "INTERNAL"}


def otlp_processor(url: str) -> "SpanProcessor":
    """Return what sends spans to a collector over OTLP and HTTP, in batches.

    Raises:
        NodeError: the extra is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise NodeError(
            "traces.otlp_url needs OpenTelemetry: pip install 'souk[otel]', or leave it empty"
        ) from exc
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=url))


class JobSpans:
    """Follows a journal. ``close`` sends what waits, and may take seconds: call it in a thread."""

    def __init__(self, processor: "SpanProcessor") -> None:
        self._processor = processor
        self._provider: TracerProvider | None = None

    def follow(self, record: JobRecord, _step: Step | None = None) -> None:
        """Make the spans of a job that is over; they go out later, from another thread."""
        if record.ended_ms is None:
            return
        from opentelemetry import trace
        from opentelemetry.trace import SpanKind, Status, StatusCode

        tracer = self._tracers().get_tracer(_TRACER)
        whole = tracer.start_span(
            f"{_operation(record)} {record.model}",
            kind=SpanKind[_KINDS[record.role]],
            start_time=record.started_ms * NS_PER_MS,
            attributes=_attributes(record),
        )
        context = trace.set_span_in_context(whole)
        ends = chain((step.at_ms for step in record.steps[1:]), (record.ended_ms,))
        for step, ends_ms in zip(record.steps, ends, strict=False):
            fields = {
                "souk.peer": None if step.peer_id is None else peer_id_to_text(step.peer_id),
                "souk.code": step.code,
            }
            given = {name: value for name, value in fields.items() if value is not None}
            span = tracer.start_span(step.name, context, start_time=step.at_ms * NS_PER_MS, attributes=given)
            span.end(max(ends_ms, step.at_ms) * NS_PER_MS)
        if record.state != "closed":
            whole.set_status(Status(StatusCode.ERROR, record.code or record.state))
        whole.end(record.ended_ms * NS_PER_MS)

    def close(self) -> None:
        """Send what waits and stop."""
        if self._provider is not None:
            self._provider.shutdown()

    def _tracers(self) -> "TracerProvider":
        if self._provider is None:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider

            # Not the global one: a library must not decide for a process, and tests make several.
            self._provider = TracerProvider(
                resource=Resource.create({"service.name": "souk"}), shutdown_on_exit=False
            )
            self._provider.add_span_processor(self._processor)
        return self._provider


def _operation(record: JobRecord) -> str:
    """Return the conventions' name, or our own where they have none."""
    assert record.operation is not None  # restored jobs are told to nobody
    return "embeddings" if record.operation == "embed" else record.operation


def _attributes(record: JobRecord) -> dict[str, str | int]:
    failed = record.state != "closed"
    found: dict[str, str | int | None] = {
        "gen_ai.operation.name": _operation(record),
        "gen_ai.provider.name": "souk",
        "gen_ai.request.model": record.model,
        "gen_ai.usage.input_tokens": record.tokens_in,
        "gen_ai.usage.output_tokens": record.tokens_out,
        "error.type": (record.code or record.state) if failed else None,
        "souk.role": record.role,
        "souk.job": record.job_id.hex(),
        "souk.contract": None if record.contract_id is None else record.contract_id.hex(),
        "souk.peer": None if record.peer_id is None else peer_id_to_text(record.peer_id),
        "souk.state": record.state,
        "souk.cost_microcredits": record.cost_microcredits,
    }
    return {name: value for name, value in found.items() if value is not None}
