"""A daemon that answers from a table: real sockets, canned words. And one command line, run as users run it."""

import io
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from node.cli.app import code_of
from node.home import ApiInfo, Home

PEER = "12D3KooWK2orNe9QXT4fXJmvdckcpLZnhnRgLnwvYLbMbziXHP7Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """How one command ended."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)


def souk(*arguments: str) -> Ran:
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = code_of(list(arguments))
    return Ran(code=int(code), out=out.getvalue(), err=err.getvalue())


@dataclass
class FakeDaemon:
    """``answers`` maps ``GET /path`` to a status and a JSON value, or to the lines of a stream."""

    url: str
    home: Home
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    asked: list[tuple[str, Any, Mapping[str, str]]] = field(default_factory=list)
    client_gone: threading.Event = field(default_factory=threading.Event)

    def answer(self, request: str, value: Any, status: int = 200) -> None:
        self.answers[request] = (status, value)

    def stream(self, *events: Any, done: bool = True) -> None:
        """Answer chat completions with these: a str is a line as it is, a dict an event."""
        lines = [event if isinstance(event, str) else f"data: {json.dumps(event)}" for event in events]
        self.answer("POST /v1/chat/completions", [*lines, "data: [DONE]"] if done else lines)

    @property
    def body(self) -> Any:
        return self.asked[-1][1]


@contextmanager
def serving(home: Home) -> Iterator[FakeDaemon]:
    """Serve a fake daemon of ``home`` on a port of the system's choice."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    daemon = FakeDaemon(url=f"http://127.0.0.1:{server.server_address[1]}", home=home)
    server.RequestHandlerClass = _handler(daemon)
    home.ensure_token()
    home.write_api(
        ApiInfo(url=daemon.url, token_file=str(home.token_path), pid=os.getpid(), peer_id=PEER, addresses=())
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield daemon
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def chunk(text: str = "", finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}


def last_chunk(**souk_fields: Any) -> dict[str, Any]:
    souk_block = {
        "job_id": "aa", "peer": PEER, "contract_id": "c0ffee00", "receipt_id": "bb",
        "cost_microcredits": 120, "first_token_ms": 200, "duration_ms": 1200,
    }  # fmt: skip
    usage = {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18}
    return {"choices": [], "usage": usage, "souk": souk_block | souk_fields}


def _handler(daemon: FakeDaemon) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def _answer(self, method: str) -> None:
            length = int(self.headers.get("content-length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            daemon.asked.append((f"{method} {self.path}", body, dict(self.headers)))
            status, value = daemon.answers.get(
                f"{method} {self.path}", (404, {"error": {"message": "no such path"}})
            )
            if self.headers.get("authorization") != f"Bearer {daemon.home.read_token()}":
                status, value = 401, {"error": {"message": "token"}}
            if isinstance(value, list):
                self._stream(value)
            else:
                self._send(status, "application/json", json.dumps(value).encode())

        def _stream(self, lines: list[str | Callable[[], None]]) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream; charset=utf-8")
            self.end_headers()
            for line in lines:
                if callable(line):
                    line()
                    continue
                self.wfile.write(f"{line}\n\n".encode())
                self.wfile.flush()
            # After a call the client is expected to go: an empty read or a reset says that it did.
            if lines and callable(lines[-1]):
                with suppress(ConnectionResetError):
                    assert not self.rfile.read(1)
                daemon.client_gone.set()

        def _send(self, status: int, kind: str, data: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_args: Any) -> None:
            """Say nothing: the test's own output is what counts."""

    return Handler
