"""The two files of a batch: requests as OpenAI's batch lines, and answers that survive whatever ends the run.

An answer is on the disk before the next one counts, so a second run knows what is left. Asking and showing is
``batch.py``'s business.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from node.cli.exits import CliError, Exit

URLS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
# The daemon takes 16 MiB of body.
LINE_BYTES_MAX: Final = 17 << 20
_PROBLEMS_SHOWN: Final = 20
_WILL_PASS: Final = (408, 429)
_LINE_BEGINS: Final = b'{"id": "batch_req_'


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One line of the input."""

    custom_id: str
    url: str
    body: dict[str, Any]  # JSON for the daemon, which judges it


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request: ``status`` is HTTP's, 0 when the daemon broke off."""

    custom_id: str
    status: int
    body: dict[str, Any] | None  # JSON of the daemon, written as it came
    code: str | None = None
    message: str | None = None

    @property
    def is_answered(self) -> bool:
        return self.code is None

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        return not self.is_answered and (self.status == 0 or self.status >= 500 or self.status in _WILL_PASS)

    @property
    def is_final(self) -> bool:
        """Whether another run need not ask again. A model that nobody has may be back by then."""
        return self.is_answered or not (self.may_pass or self.code == "model_not_found")

    def line(self) -> bytes:
        """Return it as OpenAI's batches write it."""
        error = None if self.code is None else {"code": self.code, "message": self.message}
        response = {"status_code": self.status, "request_id": None, "body": self.body} if self.status else None
        value = {"id": f"batch_req_{self.custom_id}", "custom_id": self.custom_id, "response": response}
        return json.dumps(value | {"error": error}, ensure_ascii=False).encode() + b"\n"


def check_requests(path: Path) -> list[str]:
    """Return the ids of all requests in order.

    Raises:
        CliError: lines are wrong; the first twenty are told at once.
    """
    ids: dict[str, int] = {}
    problems: list[str] = []
    for number, line in _lines(path):
        try:
            custom_id = _parse(line).custom_id
        except ValueError as exc:
            problems.append(f"{path.name}:{number}: {exc}")
            continue
        if custom_id in ids:
            problems.append(f"{path.name}:{number}: custom_id {custom_id!r} was line {ids[custom_id]} already")
        ids.setdefault(custom_id, number)
    if problems:
        more = len(problems) - _PROBLEMS_SHOWN
        told = [*problems[:_PROBLEMS_SHOWN], *([f"… and {more} more"] if more > 0 else [])]
        raise CliError("nothing was asked:\n  " + "\n  ".join(told), Exit.USAGE)
    return list(ids)


def read_requests(path: Path, done: frozenset[str]) -> Iterator[Request]:
    """Yield the requests that are not done, from a file that was checked."""
    for number, line in _lines(path):
        try:
            request = _parse(line)
        except ValueError as exc:
            raise CliError(f"{path.name}:{number}: it changed while the batch ran: {exc}") from exc
        if request.custom_id not in done:
            yield request


class Answers:
    """The output of a batch, open for one run.

    ``done`` has the ids that need not be asked again, ``failed`` those of them that have no answer.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: frozenset[str] = frozenset()
        self.failed: frozenset[str] = frozenset()
        self.mended_bytes = 0
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "Answers":
        """Open, mend a last line that was cut, and read what is done. Raises: CliError."""
        file = self.path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(file)
        except BlockingIOError as exc:
            file.close()
            raise CliError(f"{self.path}: another souk batch writes to it", Exit.LOCKED) from exc
        except BaseException:
            file.close()
            raise
        self._file = file
        return self

    def __exit__(self, *_exc: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, outcome: Outcome) -> None:
        """Write one line and bring it to the disk."""
        assert self._file is not None
        self._file.write(outcome.line())
        self._file.flush()
        os.fsync(self._file.fileno())

    def _read(self, file: IO[bytes]) -> None:
        file.seek(0)
        done: dict[str, bool] = {}
        whole_bytes = 0
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                if line[: len(_LINE_BEGINS)] != _LINE_BEGINS[: len(line)]:
                    raise _foreign(self.path, number, "its last line has no end and is none of ours")
                # The process or the machine stopped in the middle of it: asked again, the answer is whole.
                self.mended_bytes = len(line)
                file.truncate(whole_bytes)
                break
            whole_bytes += len(line)
            outcome = _outcome(self.path, number, line)
            if outcome.is_final:
                done[outcome.custom_id] = outcome.is_answered
        file.seek(0, os.SEEK_END)
        self.done = frozenset(done)
        self.failed = frozenset(custom_id for custom_id, is_answered in done.items() if not is_answered)


def _outcome(path: Path, number: int, line: bytes) -> Outcome:
    try:
        match json.loads(line):
            case {"custom_id": str(custom_id), "response": response, "error": error}:
                status = response["status_code"] if response else 0
                code = error["code"] if error else None
                return Outcome(custom_id=custom_id, status=int(status), body=None, code=code)
            case _:
                raise ValueError("expected custom_id, response and error")
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise _foreign(path, number, exc) from exc


def _foreign(path: Path, number: int, why: object) -> CliError:
    return CliError(
        f"{path}:{number}: this is no answer of a batch ({why}); nothing was written, choose another file",
        Exit.USAGE,
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LINE_BYTES_MAX + 1):
            number += 1
            if len(line) > LINE_BYTES_MAX:
                raise CliError(f"{path.name}:{number}: expected at most {LINE_BYTES_MAX} bytes a line", Exit.USAGE)
            if line.strip():
                yield number, line


def _parse(line: bytes) -> Request:
    """Raises: ValueError, with what was expected."""
    try:
        value = json.loads(line)
    except RecursionError:
        raise ValueError("expected JSON, got one that is too deep") from None
    match value:
        case {"custom_id": str(custom_id), "body": {"model": str(), **_more} as body} if custom_id:
            pass
        case _:
            raise ValueError('expected {"custom_id": "…", "body": {"model": "…", …}}')
    url = value.get("url", URLS[0])
    if url not in URLS or value.get("method", "POST") != "POST":
        raise ValueError(f"expected POST to one of {', '.join(URLS)}, got {url!r}")
    if body.get("stream"):
        raise ValueError("expected no stream: a batch keeps whole answers")
    return Request(custom_id=custom_id, url=url, body=body)
