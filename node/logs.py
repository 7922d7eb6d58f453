"""How log records leave the process: one line each, as text for people or JSON for machines.

Records are a fixed event name plus ``extra`` fields; what may stand in them is style section 4. Which events there
are is the business of each room.
"""

import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Final, Literal, TextIO

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "text", "json"]

OURS: Final = ("node", "protocol")
# Everything that a record has before anybody adds fields to it.
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_SHORT_ID_CHARACTERS: Final = 16
RING_LINES: Final = 1000
RING_LINE_CHARACTERS: Final = 2000


def set_up_logging(level: Level, *, form: Format = "auto", stream: TextIO | None = None) -> None:
    """Send every record of this process to ``stream`` (standard error), in place of what was set up before.

    Libraries speak from warning upwards: py-libp2p at info writes several lines for every stream.
    """
    target = stream or sys.stderr
    as_text = form == "text" or (form == "auto" and target.isatty())
    handler = logging.StreamHandler(target)
    handler.setFormatter(TextFormatter() if as_text else JsonFormatter())
    root = logging.getLogger()
    for old in root.handlers[:]:
        if not isinstance(old, LogRing):  # who watches goes on watching when the level changes
            root.removeHandler(old)
    root.addHandler(handler)
    number = getattr(logging, level.upper())
    root.setLevel(max(number, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(number)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line that was logged."""

    number: int
    at_ms: int
    level: str
    text: str


class LogRing(logging.Handler):
    """The newest lines of this process, for people who watch: older ones are dropped, long ones cut."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(TextFormatter())
        self.number = 0
        """Lines so far."""
        self._lines: deque[Line] = deque(maxlen=RING_LINES)
        self._heard: list[Callable[[], object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record; called with the handler's lock held, by any thread."""
        try:
            text = self.format(record)[:RING_LINE_CHARACTERS]
        except Exception:  # a library's faulty log call must not fail the work that it tells of
            self.handleError(record)
            return
        self.number += 1
        at_ms = int(record.created * 1000)
        self._lines.append(Line(number=self.number, at_ms=at_ms, level=record.levelname.lower(), text=text))
        for tell in self._heard:
            tell()

    def newest(self, count: int) -> list[Line]:
        """Return at most ``count`` lines, the newest last."""
        self.acquire()
        try:
            return list(islice(self._lines, max(0, len(self._lines) - count), None))
        finally:
            self.release()

    @contextmanager
    def heard(self, tell: Callable[[], object]) -> Iterator[None]:
        """Have ``tell`` called at each line while the block runs, by whoever logs; it may neither log nor wait."""
        self.acquire()
        self._heard.append(tell)
        self.release()
        try:
            yield
        finally:
            self.acquire()
            self._heard.remove(tell)
            self.release()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep what is logged while the block runs."""
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)


class TextFormatter(logging.Formatter):
    """``03:17:13.120 warning node.market.requester peer silent  peer=12D3… ms=900``; ids shortened."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S.%f")[:-3]
        fields = " ".join(f"{key}={_short(value)}" for key, value in _fields(record).items())
        line = f"{time} {record.levelname.lower()} {record.name} {record.getMessage()}"
        line = f"{line}  {fields}" if fields else line
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One object a line: ``ts level logger event``, then the fields, with whole ids."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        # A field cannot overwrite what the line itself says.
        line |= {key: value for key, value in _fields(record).items() if key not in line}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=_plain, ensure_ascii=False)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _plain(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


def _short(value: object) -> str:
    if isinstance(value, bytes):
        text = value.hex()
        return text if len(text) <= _SHORT_ID_CHARACTERS else f"{text[:_SHORT_ID_CHARACTERS]}…"
    text = str(value)
    # A line stays one line whatever a peer put into a message.
    return json.dumps(text, ensure_ascii=False) if not text.isprintable() or " " in text or not text else text
