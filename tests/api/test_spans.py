"""Jobs as spans: the same steps and times as in the journal, and no word of anybody."""

import builtins
import sys
from collections.abc import Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from node.api.spans import NS_PER_MS, JobSpans, otlp_processor
from node.errors import NodeError
from node.market.journal import JobRecord, Journal, operation_of
from protocol.task import ChatMessage, GenerateInput
from protocol.tasks.embed import EmbedInput
from protocol.tasks.registry import TaskInput
from protocol.tasks.vad import VadInput
from protocol.units import UnixMs
from tests.api.fakes import CONTRACT, PEER_TEXT
from tests.api.test_job_routes import purchase


def spans_of(record: JobRecord) -> Sequence[ReadableSpan]:
    exporter = InMemorySpanExporter()
    spans = JobSpans(SimpleSpanProcessor(exporter))
    spans.follow(record)
    found = exporter.get_finished_spans()
    spans.close()
    return found


def test_job_is_one_trace_with_a_span_for_each_step() -> None:
    record = purchase()
    *steps, whole = spans_of(record)
    assert [span.name for span in steps] == [step.name for step in record.steps]
    assert all(span.parent is not None and span.parent.span_id == whole.context.span_id for span in steps)
    assert (whole.start_time, whole.end_time) == (1_000 * NS_PER_MS, 1_500 * NS_PER_MS)
    assert [span.start_time for span in steps] == [step.at_ms * NS_PER_MS for step in record.steps]
    # Each lasts until the next one begins.
    assert [span.end_time for span in steps[:-1]] == [span.start_time for span in steps[1:]]
    told: Any = whole.attributes
    assert (told["gen_ai.request.model"], told["gen_ai.usage.output_tokens"]) == ("tiny", 2)
    assert (told["souk.contract"], told["souk.peer"]) == (CONTRACT.hex(), PEER_TEXT)
    assert whole.status.is_unset and whole.kind is SpanKind.CLIENT
    assert "error.type" not in told


@pytest.mark.parametrize(
    ("task_input", "name"),
    [
        (GenerateInput(messages=(ChatMessage(role="user", content="a"),)), "chat"),
        (GenerateInput(prompt="a"), "text_completion"),
        (EmbedInput(texts=("a",)), "embeddings"),
        (VadInput(samples=bytes(2)), "vad"),
    ],
)
def test_span_bears_the_conventions_name_for_the_work(task_input: TaskInput, name: str) -> None:
    record = purchase()
    record.operation = operation_of(task_input)
    *_steps, whole = spans_of(record)
    told: Any = whole.attributes
    assert (whole.name, told["gen_ai.operation.name"]) == (f"{name} tiny", name)


def test_failed_job_is_a_span_with_an_error() -> None:
    record = purchase(is_open=True)
    record.end("failed", UnixMs(2_000), code="peer_failed", message="it died")
    *_steps, whole = spans_of(record)
    assert whole.attributes is not None and whole.attributes["error.type"] == "peer_failed"
    assert not whole.status.is_ok and whole.status.description == "peer_failed"


def test_journal_tells_of_a_job_once_when_it_is_over() -> None:
    exporter, journal = InMemorySpanExporter(), Journal()
    spans = JobSpans(SimpleSpanProcessor(exporter))
    journal.follow(spans.follow)
    record = purchase(is_open=True)
    journal.begin_order(record)
    assert exporter.get_finished_spans() == ()
    record.end("closed", UnixMs(2_000))
    assert len(exporter.get_finished_spans()) == len(record.steps) + 1
    spans.close()


def test_daemon_names_the_extra_when_opentelemetry_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def no_telemetry(name: str, *more: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ImportError(name)
        return found(name, *more)

    monkeypatch.setattr(builtins, "__import__", no_telemetry)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.exporter")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(NodeError, match=r"pip install 'souk\[otel\]'"):
        otlp_processor("http://127.0.0.1:4318/v1/traces")
