import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from node.cli.client import _Connection
from node.cli.deadline import NO_DEADLINE, Deadline, deadline_after
from node.cli.exits import CliError, Exit
from tests.cli.fakes import FakeDaemon, chunk, souk


@contextmanager
def held() -> Iterator[threading.Event]:
    """Let the fake daemon wait for the end of the block."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


def test_wait_is_what_was_asked_for_when_there_is_no_deadline() -> None:
    assert deadline_after(None, 0.0) is NO_DEADLINE
    assert NO_DEADLINE.left_s(30.0) == 30.0 and not NO_DEADLINE.is_over


def test_wait_is_cut_to_what_is_left_and_refused_when_nothing_is() -> None:
    assert 0 < deadline_after(5.0, time.monotonic()).left_s(30.0) <= 5.0
    assert deadline_after(50.0, time.monotonic()).left_s(30.0) == 30.0
    over = Deadline(given_s=2.0, at_s=time.monotonic())
    with pytest.raises(CliError, match="within the 2 s of --timeout") as raised:
        over.left_s(1.0)
    assert over.is_over and raised.value.code is Exit.DEADLINE


def test_command_ends_with_7_when_an_answer_does_not_come_in_time(daemon: FakeDaemon) -> None:
    with held() as event:
        daemon.answer("GET /api/v1/devices", [event.wait])
        ran = souk("devices", "--timeout", "30ms")
    assert ran.code == 7 and "--timeout" in ran.err and not ran.out


def test_stream_ends_with_7_in_the_middle_and_keeps_what_came(daemon: FakeDaemon) -> None:
    with held() as event:
        daemon.stream(chunk("Hel"))
        status, lines = daemon.answers["POST /v1/chat/completions"]
        daemon.answers["POST /v1/chat/completions"] = status, [lines[0], event.wait]
        ran = souk("--timeout", "150ms", "run", "m", "hi")
    assert (ran.code, ran.out) == (7, "Hel\n")


def test_stream_that_never_falls_silent_ends_with_7_as_well(daemon: FakeDaemon) -> None:
    with held() as event:
        # Signs of life: each of them would begin a wait of its own.
        daemon.answer("GET /api/v1/logs/events?limit=1000", [": waiting", lambda: event.wait(0.02)] * 100)
        began_s = time.monotonic()
        ran = souk("logs", "-f", "--timeout", "100ms")
    assert ran.code == 7 and "within the 0.1 s" in ran.err
    assert time.monotonic() - began_s < 1.0


def test_each_wait_of_a_connection_gets_what_is_left(daemon: FakeDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("node.cli.deadline.time.monotonic", lambda: now_s)
    port = int(daemon.url.rpartition(":")[2])
    connection = _Connection("127.0.0.1", port, silence_s=30.0, deadline=deadline_after(40.0, now_s))
    connection.connect()
    try:
        waits = []
        for now_s in (100.0, 110.0, 125.0):  # noqa: B007  the clock reads it
            connection.allow_wait()
            waits.append(connection.sock.gettimeout())
        assert waits == [30.0, 30.0, 15.0]
        now_s = 140.0
        with pytest.raises(CliError):
            connection.allow_wait()
    finally:
        connection.close()


@pytest.mark.parametrize("text", ["soon", "0", "-1"])
def test_command_refuses_a_deadline_that_is_none(text: str) -> None:
    ran = souk("devices", "--timeout", text)
    assert ran.code == 2 and "expected a duration" in ran.err
