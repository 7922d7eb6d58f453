import io
import json
import logging

import pytest

from node.logs import RING_LINE_CHARACTERS, RING_LINES, LogRing, set_up_logging


@pytest.fixture(autouse=True)
def logging_as_it_was():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
    for name in ("node", "protocol"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def test_logs_are_one_object_a_line_when_no_terminal_reads_them() -> None:
    out = io.StringIO()
    set_up_logging("info", stream=out)
    log = logging.getLogger("node.market")
    log.info("job done", extra={"peer": b"\x01\x02", "ms": 12, "event": "cannot overwrite"})
    try:
        raise ValueError("inner")
    except ValueError:
        log.exception("job failed")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first == {
        "ts": first["ts"], "level": "info", "logger": "node.market", "event": "job done", "peer": "0102", "ms": 12,
    }  # fmt: skip
    assert "ValueError: inner" in second["exception"]


def test_logs_stay_one_line_when_a_peer_sends_line_breaks() -> None:
    out = io.StringIO()
    set_up_logging("info", form="text", stream=out)
    logging.getLogger("node").info("declined", extra={"text": "a\nfake line", "peer": bytes(32)})
    assert out.getvalue().count("\n") == 1
    assert f"peer={'0' * 16}…" in out.getvalue()


def test_libraries_stay_silent_below_warning_when_we_speak_at_debug() -> None:
    out = io.StringIO()
    set_up_logging("debug", form="text", stream=out)
    logging.getLogger("libp2p").info("noise")
    logging.getLogger("node").debug("ours")
    assert "noise" not in out.getvalue() and "ours" in out.getvalue()


def test_logs_are_written_once_when_set_up_twice() -> None:
    out = io.StringIO()
    set_up_logging("info", form="text", stream=out)
    set_up_logging("info", form="text", stream=out)
    logging.getLogger("node").info("once")
    assert out.getvalue().count("once") == 1


def test_ring_keeps_the_newest_lines_and_cuts_long_ones() -> None:
    ring = LogRing()
    with ring.listening():
        for i in range(RING_LINES + 5):
            logging.getLogger("node.x").error("event", extra={"i": i, "text": "y" * (2 * RING_LINE_CHARACTERS)})
    logging.getLogger("node.x").error("after")
    lines = ring.newest(10_000)
    assert ring.number == RING_LINES + 5 and len(lines) == RING_LINES
    assert [lines[0].number, lines[-1].number] == [6, RING_LINES + 5]
    assert all(len(line.text) == RING_LINE_CHARACTERS for line in lines)
    assert [line.number for line in ring.newest(2)] == [RING_LINES + 4, RING_LINES + 5]


def test_ring_fails_nobody_when_a_library_logs_wrongly(capsys: pytest.CaptureFixture[str]) -> None:
    ring = LogRing()
    # Straight to the ring: pytest's own handler lets such a call fail.
    ring.handle(logging.makeLogRecord({"msg": "expected %d", "args": ("a number",)}))
    assert ring.newest(1) == [] and "Logging error" in capsys.readouterr().err


def test_ring_tells_of_each_line_while_somebody_listens() -> None:
    ring, heard = LogRing(), []
    with ring.listening():
        with ring.heard(lambda: heard.append(ring.number)):
            logging.getLogger("node.x").error("one")
            logging.getLogger("node.x").error("two")
        logging.getLogger("node.x").error("three")
    assert heard == [1, 2] and ring.number == 3
