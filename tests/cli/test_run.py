import io
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from tests.cli.fakes import PEER, FakeDaemon, chunk, last_chunk, souk

ANSWER = (chunk("Hello"), chunk(" there"), chunk(finish="stop"), last_chunk())


def test_run_prints_only_the_answer_on_standard_output(daemon: FakeDaemon) -> None:
    daemon.stream(
        ": waiting",
        ': souk {"phase":"asking","peers":2}',
        f': souk {{"phase":"quoted","peer":"{PEER}","price_max":210}}',
        f': souk {{"phase":"passed_over","peer":"{PEER}","code":"busy","message":"no slot"}}',
        f': souk {{"phase":"contracted","peer":"{PEER}","contract_id":"c0ffee","price_max":210,"tokens_in":7}}',
        ": souk not json",
        *ANSWER,
    )
    ran = souk("run", "m", "hi")
    assert (ran.code, ran.out) == (0, "Hello there\n")
    assert ran.err.splitlines() == [
        "asking 2 peers …",
        "…bziXHP7Z asks at most 210 µc",
        "…bziXHP7Z passed over: busy, no slot",
        "contract c0ffee with …bziXHP7Z, 7 tokens in, at most 210 µc",
    ]


def test_run_sends_what_was_asked_and_nothing_else(daemon: FakeDaemon) -> None:
    daemon.stream(*ANSWER)
    souk("run", "m", "hi")
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    hi = {"role": "user", "content": "hi"}
    assert daemon.body == {"model": "m", "messages": [hi], "souk": {"on": "any", "path": "auto"}} | stream
    souk(
        "run", "m", "hi", "--system", "be brief", "--max-tokens", "5", "--temperature", "0", "--top-p", "0.5",
        "--seed", "3", "--stop", "a", "--stop", "b", "--on", PEER, "--max-price", "9", "--deadline", "1.5m",
        "--path", "fast",
    )  # fmt: skip
    assert (
        daemon.body
        == {
            "model": "m",
            "messages": [{"role": "system", "content": "be brief"}, hi],
            "max_tokens": 5,
            "temperature": 0,
            "top_p": 0.5,
            "seed": 3,
            "stop": ["a", "b"],
            "souk": {"on": PEER, "max_price": 9, "deadline_s": 90.0, "path": "fast"},
        }
        | stream
    )


def test_run_prints_one_object_when_json_is_wanted(daemon: FakeDaemon) -> None:
    daemon.stream(*ANSWER)
    found = souk("run", "m", "hi", "-o", "json").json()
    assert (found["schema"], found["text"], found["finish_reason"]) == (1, "Hello there", "stop")
    assert found["usage"]["completion_tokens"] == 11
    assert found["souk"]["contract_id"] == "c0ffee00"


def test_run_prints_events_as_they_come_when_lines_are_wanted(daemon: FakeDaemon) -> None:
    daemon.stream(': souk {"phase":"asking","peers":2}', *ANSWER)
    events = [json.loads(line) for line in souk("run", "m", "hi", "-o", "jsonl").out.splitlines()]
    assert [event["event"] for event in events] == ["phase", "text", "text", "finished"]


def test_run_says_who_answered_when_timings_are_wanted(daemon: FakeDaemon) -> None:
    daemon.stream(*ANSWER)
    err = souk("run", "m", "hi", "--timings").err
    assert "peer …bziXHP7Z · 120 µc · 7 tokens in, 11 out · first token 200 ms · 10.0 tokens/s" in err


def test_run_takes_the_prompt_from_a_pipe(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon.stream(*ANSWER)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe\n")))
    assert souk("run", "m").code == 0
    assert daemon.body["messages"] == [{"role": "user", "content": "from a pipe\n"}]


def test_run_wants_a_prompt_when_the_pipe_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b" \n")))
    assert souk("run", "m").code == 2


def test_run_refuses_a_pipe_that_is_not_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe\x00")))
    ran = souk("run", "m")
    assert ran.code == 2 and "not UTF-8" in ran.err


def test_run_shows_no_control_characters_when_a_peer_sends_them(daemon: FakeDaemon) -> None:
    phase = {"phase": "passed_over", "peer": PEER, "code": "busy", "message": "\x1b[2Jno\r slot"}
    daemon.stream(f": souk {json.dumps(phase)}", *ANSWER)
    assert souk("run", "m", "hi").err == "…bziXHP7Z passed over: busy, \ufffd[2Jno\ufffd slot\n"


@pytest.mark.parametrize("option", ["--temperature", "--top-p"])
def test_run_refuses_a_number_that_is_none(option: str) -> None:
    assert souk("run", "m", "hi", option, "nan").code == 2


@pytest.mark.parametrize("time", ["0", "-1", "5 m", "soon", "1y"])
def test_run_refuses_a_deadline_that_is_no_time(time: str) -> None:
    ran = souk("run", "m", "hi", "--deadline", time)
    assert ran.code == 2 and "90s or 5m" in ran.err


@pytest.mark.parametrize(
    ("status", "code", "details", "exit_code", "told"),
    [
        (404, "model_not_found", {"available": ["smol", "llama"]}, 5, "the network has: smol, llama"),
        (404, "model_not_found", {"available": []}, 5, "at most 2048 tokens\n"),
        (
            503,
            "no_capacity",
            {"refusals": [{"peer": PEER, "code": "credit", "message": "owes 9"}]},
            6,
            "…bziXHP7Z  credit: owes 9",
        ),
        (400, "context_length_exceeded", None, 2, "at most 2048 tokens"),
        (504, "deadline", None, 7, "at most 2048 tokens"),
        (502, "peer_failed", None, 1, "at most 2048 tokens"),
        (429, "queue_full", None, 6, "at most 2048 tokens"),
    ],
)
def test_run_ends_with_the_code_of_the_refusal(
    daemon: FakeDaemon, status: int, code: str, details: object, exit_code: int, told: str
) -> None:
    answer = {"error": {"message": "at most 2048 tokens", "code": code}}
    daemon.answer("POST /v1/chat/completions", answer | ({"souk": details} if details else {}), status)
    ran = souk("run", "m", "hi")
    assert (ran.code, ran.out) == (exit_code, "")
    assert told in ran.err


def test_run_keeps_what_came_when_the_peer_fails_in_the_middle(daemon: FakeDaemon) -> None:
    daemon.stream(chunk("Hel"), {"error": {"message": "the peer broke off", "code": "peer_failed"}})
    ran = souk("run", "m", "hi")
    assert (ran.code, ran.out) == (1, "Hel\n")
    assert ran.err == "souk: the peer broke off\n"


def test_run_closes_the_connection_and_says_so_when_interrupted(daemon: FakeDaemon) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    assert threading.current_thread() is threading.main_thread()
    daemon.answer("POST /v1/chat/completions", [f"data: {json.dumps(chunk('Hel'))}", interrupt])
    ran = souk("run", "m", "hi")
    assert ran.code == 130
    assert "cancelled" in ran.err
    assert daemon.client_gone.wait(5)


def test_prompt_comes_from_a_file_after_what_is_asked_about_it(daemon: FakeDaemon, tmp_path: Path) -> None:
    daemon.stream(*ANSWER)
    source = tmp_path / "text"
    source.write_text("the cat sat\n")
    assert souk("run", "m", "Summarise:", "--file", str(source)).code == 0
    assert daemon.body["messages"] == [{"role": "user", "content": "Summarise:\n\nthe cat sat\n"}]
    souk("run", "m", "--file", str(source))
    assert daemon.body["messages"] == [{"role": "user", "content": "the cat sat\n"}]


@pytest.mark.parametrize(("data", "said"), [(b" \n", "is empty"), (b"\xff", "is not UTF-8 text")])
def test_run_refuses_a_file_that_is_no_prompt(daemon: FakeDaemon, tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "text").write_bytes(data)
    ran = souk("run", "m", "--file", str(tmp_path / "text"))
    assert ran.code == 2 and said in ran.err and str(tmp_path / "text") in ran.err and not daemon.asked
