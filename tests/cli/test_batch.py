import errno
import json
import signal
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from node.cli import batch as module
from node.cli.batch_files import Request, read_requests
from tests.cli.fakes import FakeDaemon, souk

CHAT = "POST /v1/chat/completions"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [{"custom_id": f"r{i}", "body": {"model": "tiny", "messages": []}} for i in range(5)]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


def run(folder: Path, *more: str) -> Any:
    return souk("batch", str(folder / "in.jsonl"), str(folder / "out.jsonl"), *more)


def answers(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_every_line_is_asked_and_answered_in_openais_form(daemon: FakeDaemon, folder: Path) -> None:
    daemon.answer(CHAT, {"id": "x", "choices": []})
    ran = run(folder, "-o", "json")
    assert ran.code == 0 and ran.json()["answered"] == 5
    found = answers(folder)
    assert {line["custom_id"] for line in found} == {f"r{i}" for i in range(5)}
    assert found[0]["response"] == {"status_code": 200, "request_id": None, "body": {"id": "x", "choices": []}}
    assert found[0]["error"] is None


def test_second_run_asks_only_what_is_left_and_mends_a_line_that_was_cut(daemon: FakeDaemon, folder: Path) -> None:
    daemon.answer(CHAT, {"id": "x"})
    assert run(folder).code == 0
    out = folder / "out.jsonl"
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])
    daemon.asked.clear()
    ran = run(folder)
    assert ran.code == 0 and "last line was cut" in ran.err and "4 of 5 are done" in ran.err
    assert len(daemon.asked) == 1 and len(answers(folder)) == 5
    daemon.asked.clear()
    assert run(folder).code == 0 and not daemon.asked


def test_failed_lines_say_why_and_are_asked_again_when_that_may_pass(daemon: FakeDaemon, folder: Path) -> None:
    daemon.answer(CHAT, {"error": {"message": "nobody took it", "code": "no_capacity"}}, 503)
    ran = run(folder, "--retry", "0")
    assert ran.code == 1 and "0 answered, 5 failed" in ran.out
    assert answers(folder)[0]["error"] == {"code": "no_capacity", "message": "nobody took it"}
    daemon.answer(CHAT, {"error": {"message": "too long", "code": "context_length_exceeded"}}, 400)
    assert run(folder).code == 1
    daemon.asked.clear()
    # Nothing that time would mend: not asked a third time, and still no success.
    ran = run(folder)
    assert ran.code == 1 and not daemon.asked and "5 done before, 5 of them failed for good" in ran.out
    assert run(folder, "-o", "json").json()["failed_before"] == 5


def test_model_that_nobody_had_is_asked_for_again_by_the_next_run(daemon: FakeDaemon, folder: Path) -> None:
    daemon.answer(CHAT, {"error": {"message": "nobody has it", "code": "model_not_found"}}, 404)
    assert run(folder).code == 1 and len(daemon.asked) == 5
    daemon.answer(CHAT, {"id": "x"})
    assert run(folder).code == 0 and len(daemon.asked) == 10


def test_run_fails_when_its_input_cannot_be_read_to_the_end(
    daemon: FakeDaemon, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, done: frozenset[str]) -> Iterator[Request]:
        yield from islice(read_requests(path, done), 2)
        raise OSError(errno.EIO, "Input/output error", str(path))

    monkeypatch.setattr(module, "read_requests", broken)
    daemon.answer(CHAT, {"id": "x"})
    ran = run(folder)
    assert ran.code == 1 and "in.jsonl: Input/output error" in ran.err and len(answers(folder)) == 2


def test_request_is_asked_again_at_once_when_its_failure_may_pass(
    daemon: FakeDaemon, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BACKOFF_S", (0.0, 0.0))
    daemon.answer(CHAT, {"error": {"message": "full", "code": "queue_full"}}, 429)
    assert run(folder, "--retry", "2").code == 1
    assert len(daemon.asked) == 15


def test_run_ends_with_the_daemons_own_code_and_writes_nothing_when_none_answers(folder: Path) -> None:
    ran = run(folder)
    assert ran.code == 4 and "the same command goes on" in ran.err
    assert not answers(folder)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "in.jsonl:6"),
        ('{"custom_id": "r0", "body": {"model": "tiny"}}', "was line 1 already"),
        ('{"custom_id": 7, "body": {"model": "tiny"}}', "expected"),
        ('{"custom_id": "x", "body": {}}', "expected"),
        ('{"custom_id": "x", "url": "/v1/images", "body": {"model": "tiny"}}', "expected POST to one of"),
        ('{"custom_id": "x", "body": {"model": "tiny", "stream": true}}', "no stream"),
        ("[" * 100_000, "too deep"),
    ],
)
def test_nothing_is_asked_when_a_line_is_wrong(daemon: FakeDaemon, folder: Path, line: str, fault: str) -> None:
    with (folder / "in.jsonl").open("a") as file:
        file.write(f"{line}\n")
    ran = run(folder)
    assert ran.code == 2 and fault in ran.err and not daemon.asked


def test_file_that_is_no_output_of_a_batch_is_left_as_it_is(daemon: FakeDaemon, folder: Path) -> None:
    (folder / "out.jsonl").write_text("my diary\n")
    ran = run(folder)
    assert ran.code == 2 and "no answer of a batch" in ran.err and not daemon.asked
    assert (folder / "out.jsonl").read_text() == "my diary\n"
    (folder / "out.jsonl").write_text("my diary, without an end")
    assert run(folder).code == 2 and not daemon.asked
    assert (folder / "out.jsonl").read_text() == "my diary, without an end"
    assert souk("batch", str(folder / "in.jsonl"), str(folder / "in.jsonl")).code == 2


def test_ctrl_c_stops_and_says_how_to_go_on(daemon: FakeDaemon, folder: Path) -> None:
    asked, held = threading.Event(), threading.Event()

    def hold() -> None:
        asked.set()
        held.wait(10)

    main = threading.main_thread().ident or 0

    def interrupt() -> None:
        asked.wait(10)
        signal.pthread_kill(main, signal.SIGINT)

    daemon.answer(CHAT, [hold])
    threading.Thread(target=interrupt).start()
    ran = run(folder)
    held.set()
    assert ran.code == 130 and "5 left" in ran.err and "The same command goes on" in ran.err
