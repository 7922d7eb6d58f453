"""The daemon as a command sees it: where it answers, one request, one stream of server-sent events.

``http.client`` and not a richer library: it is imported in 28 ms, the others took 110 to 480 ms.
"""

import contextlib
import http.client
import json
import os
import shlex
import socket
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from node.cli.deadline import NO_DEADLINE, Deadline
from node.cli.exits import CliError, Exit
from node.cli.options import Globals
from node.home import Home, HomeError

DEFAULT_URL: Final = "http://127.0.0.1:11500"
REQUEST_S: Final = 30.0
# An answer is bounded by the job's own deadline in the daemon; this bounds a daemon that hangs.
STREAM_SILENCE_S: Final = 660.0
BODY_BYTES_MAX: Final = 64 << 20
READ_BYTES: Final = 1 << 20
LINE_BYTES_MAX: Final = 1 << 20

EXIT_OF_CODE: Final = {
    "model_not_found": Exit.UNKNOWN,
    "no_capacity": Exit.NOBODY_WILLING,
    "queue_full": Exit.NOBODY_WILLING,
    "deadline": Exit.DEADLINE,
    "device_busy": Exit.LOCKED,
    # The job is known, but nothing of it that could be shown or run again.
    "result_gone": Exit.UNKNOWN,
    "spec_gone": Exit.UNKNOWN,
    # 400, and of a detached job or in mid-stream no status at all.
    "context_length_exceeded": Exit.USAGE,
    "input_refused": Exit.USAGE,
    "task_not_served": Exit.USAGE,
    "config_invalid": Exit.CONFIG,
    # 503 for programs, to try again; but it was this node and no peer that did not take it.
    "disk": Exit.FAILED,
    "worker_died": Exit.FAILED,
    "too_many_readers": Exit.FAILED,
    "body_too_large": Exit.USAGE,
}
EXIT_OF_STATUS: Final = {
    400: Exit.USAGE,
    401: Exit.TOKEN,
    403: Exit.TOKEN,
    404: Exit.UNKNOWN,
    429: Exit.NOBODY_WILLING,
    503: Exit.NOBODY_WILLING,
    504: Exit.DEADLINE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comment:
    """An SSE comment: a sign of life, or a phase of the job."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """One decoded event of a stream."""

    value: Mapping[str, Any]  # JSON of the daemon, shown and not judged


Event: TypeAlias = Comment | Data


class ApiError(CliError):
    """The daemon answered with an error; ``details`` is what it adds under ``souk``."""

    def __init__(self, error: Mapping[str, Any], *, status: int, details: Mapping[str, Any]) -> None:
        message = str(error.get("message") or f"the daemon answered with status {status}")
        api_code = str(error.get("code"))
        super().__init__(message, EXIT_OF_CODE.get(api_code) or EXIT_OF_STATUS.get(status, Exit.FAILED))
        self.api_code, self.status = api_code, status
        self.details = details


class BrokenOffError(CliError):
    """A stream ended before what it promised."""


class _Connection(http.client.HTTPConnection):
    """Keeps its socket, which http.client lets go with the head of an answer that is the last."""

    def __init__(self, host: str, port: int, *, silence_s: float, deadline: Deadline) -> None:
        super().__init__(host, port, timeout=deadline.left_s(silence_s))
        self.silence_s = silence_s
        self._deadline = deadline
        self._line: socket.socket | None = None

    def connect(self) -> None:
        super().connect()
        self._line = self.sock

    def allow_wait(self) -> None:
        """Let the next wait be as long as silence may be, or as is left. Raises: CliError (nothing is left)."""
        wait_s = self._deadline.left_s(self.silence_s)
        if self._line is not None:
            self._line.settimeout(wait_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """Where a daemon should be, how that is known, and the token for it. Making one opens no connection."""

    url: str
    origin: str
    home: Home
    deadline: Deadline = NO_DEADLINE
    """Of everything that is said to it."""
    is_told: bool = False
    """Whether standard error gets a line for each request."""

    def get(self, path: str, *, wait_s: float = REQUEST_S) -> dict[str, Any]:  # JSON of the daemon, shown
        return self.request("GET", path, wait_s=wait_s)

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        wait_s: float = REQUEST_S,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:  # JSON of the daemon, shown and not judged
        """Return the JSON object that the daemon answers with, within ``wait_s`` of silence.

        Raises:
            ApiError: it answered with an error.
            CliError: it did not answer, refused the token, or is no souk daemon.
        """
        connection = self._connection(wait_s)
        try:
            return self._object(connection, self._send(connection, method, path, body, more=headers))
        finally:
            connection.close()

    def stream(
        self, path: str, body: Mapping[str, Any] | None, *, method: str = "POST"
    ) -> Generator[Event, None, None]:
        """Yield the events of an answer as they come; closing the iterator closes the connection.

        Raises:
            ApiError: the daemon refused, or reported an error in the middle.
            BrokenOffError: it ended in the middle.
            CliError: as for ``request``.
        """
        connection = self._connection(STREAM_SILENCE_S)
        try:
            response = self._send(connection, method, path, body)
            if not response.headers.get_content_type() == "text/event-stream":
                raise CliError(f"expected a stream from {self.url}, got {response.headers.get_content_type()}")
            yield from self._events(connection, response)
        finally:
            connection.close()

    def _events(self, connection: _Connection, response: http.client.HTTPResponse) -> Generator[Event, None, None]:
        broken = f"the daemon at {self.url} broke off before the answer was complete"
        while True:
            connection.allow_wait()
            try:
                raw = response.readline(LINE_BYTES_MAX + 1)
            except (OSError, http.client.HTTPException) as exc:
                if self.deadline.is_over:
                    raise self.deadline.over() from exc
                raise BrokenOffError(f"{broken} ({exc})") from exc
            line = raw.decode("utf-8", "replace").rstrip("\r\n")
            if not raw or len(raw) > LINE_BYTES_MAX:
                raise BrokenOffError(broken)
            if line.startswith(":"):
                yield Comment(text=line[1:].strip())
            elif line.startswith("data:"):
                data = line.removeprefix("data:").strip()
                if data == "[DONE]":
                    return
                value = _decode(data.encode(), self.url)
                if "error" in value:
                    raise ApiError(value["error"], status=200, details=_details(value))
                yield Data(value=value)

    def _connection(self, silence_s: float) -> _Connection:
        parts = urlsplit(self.url)
        try:
            port = parts.port
        except ValueError:
            port = None
        if parts.scheme != "http" or not parts.hostname or port is None:
            raise CliError(
                f"expected an address such as {DEFAULT_URL}, got {self.url!r} ({self.origin})", Exit.USAGE
            )
        return _Connection(parts.hostname, port, silence_s=silence_s, deadline=self.deadline)

    def _send(
        self,
        connection: _Connection,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        *,
        more: Mapping[str, str] | None = None,
    ) -> http.client.HTTPResponse:
        began_s = time.monotonic()
        headers = {"content-type": "application/json", **(more or {})}
        # Without a token the daemon's refusal tells more than we could.
        with contextlib.suppress(FileNotFoundError):
            headers["authorization"] = f"Bearer {self.home.read_token()}"
        try:
            connection.request(method, path, None if body is None else json.dumps(body), headers)
            connection.allow_wait()
            response = connection.getresponse()
        except TimeoutError as exc:
            if self.deadline.is_over:
                raise self.deadline.over() from exc
            raise CliError(
                f"the daemon at {self.url} ({self.origin}) takes the connection but does not answer in "
                f"{connection.silence_s:.0f} s: it is overloaded, or its process is stopped",
                Exit.UNREACHABLE,
            ) from exc
        except (OSError, http.client.HTTPException, socket.gaierror) as exc:
            raise CliError(self._unreachable(exc), Exit.UNREACHABLE) from exc
        if self.is_told:
            took_ms = (time.monotonic() - began_s) * 1000
            said = f"{method} {self.url}{path} ({self.origin}): {response.status} after {took_ms:.0f} ms"
            print(said, file=sys.stderr, flush=True)
        if response.status < 400:
            return response
        raise self._error(connection, response)

    def _error(self, connection: _Connection, response: http.client.HTTPResponse) -> CliError:
        if response.status == 401:
            return CliError(
                f"the daemon at {self.url} ({self.origin}) refused the token of {self.home.token_path}.\n"
                f"  is it the daemon of another home?   souk --home DIR …   or   SOUK_HOME=DIR",
                Exit.TOKEN,
            )
        value = self._object(connection, response)
        error = value.get("error")
        return ApiError(error if isinstance(error, dict) else {}, status=response.status, details=_details(value))

    def _object(
        self, connection: _Connection, response: http.client.HTTPResponse
    ) -> dict[str, Any]:  # JSON of the daemon
        data = bytearray()
        try:
            while len(data) < BODY_BYTES_MAX:
                connection.allow_wait()
                piece = response.read1(READ_BYTES)
                if not piece:
                    break
                data += piece
            if response.length:  # read1 takes an early end for an end
                raise http.client.IncompleteRead(bytes(data), response.length)
        except (OSError, http.client.HTTPException) as exc:
            if self.deadline.is_over:
                raise self.deadline.over() from exc
            raise CliError(f"the daemon at {self.url} broke off in the middle of its answer ({exc})") from exc
        return _decode(bytes(data), self.url) if data.strip() else {}

    def _unreachable(self, cause: Exception) -> str:
        state = "has no running node"
        if self.home.is_locked():
            url = _url_of(self.home)
            elsewhere = url is not None and url != self.url
            state = f"has a daemon at {url}" if elsewhere else "has a daemon that is starting or stopping"
        why = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        return (
            f"no daemon answers at {self.url} ({why}; address {self.origin}; home {self.home.path} {state}).\n"
            f"  start one:   souk --home {shlex.quote(str(self.home.path))} serve\n"
            f"  another home or address?   souk --home DIR …   /   SOUK_API=http://127.0.0.1:PORT"
        )


def find_daemon(options: Globals) -> Daemon:
    """Return the daemon that the user means: ``--api``, else ``SOUK_API``, else what the home says."""
    url, origin = _address(options)
    return Daemon(url=url, origin=origin, home=options.home, deadline=options.deadline, is_told=options.verbose)


def _address(options: Globals) -> tuple[str, str]:
    """Return the address of the daemon, and how it is known."""
    if options.api_flag:
        return options.api_flag, "from --api"
    if variable := os.environ.get("SOUK_API"):
        return variable, "from SOUK_API"
    try:
        info = options.home.read_api()
    except HomeError as exc:
        raise CliError(str(exc), Exit.UNREACHABLE) from exc
    return (info.url, f"from {options.home.api_path}") if info is not None else (DEFAULT_URL, "from the default")


def _url_of(home: Home) -> str | None:
    try:
        info = home.read_api()
    except HomeError:
        return None
    return None if info is None else info.url


def _details(value: Mapping[str, Any]) -> Mapping[str, Any]:
    details = value.get("souk")
    if details is None and isinstance(value.get("error"), dict):
        details = value["error"].get("souk")
    return details if isinstance(details, dict) else {}


def _decode(data: bytes, url: str) -> dict[str, Any]:  # JSON of the daemon
    try:
        value = json.loads(data)
    except ValueError as exc:
        raise CliError(f"what answers at {url} is no souk daemon: expected JSON, got {data[:60]!r}") from exc
    if not isinstance(value, dict):
        raise CliError(f"what answers at {url} is no souk daemon: expected an object, got {data[:60]!r}")
    return value
