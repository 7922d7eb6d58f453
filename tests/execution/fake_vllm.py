"""A server that speaks as much of vLLM's HTTP as the engine uses; a module for tests, and a program.

It answers with the tokens that follow a prompt's last one. A prompt's first token asks for something else: see the
names below.
"""

import json
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Final

PAIRS: Final = 900
"""Two tokens in each chunk."""
BREAKS: Final = 901
"""Ends after two tokens."""
STALLS: Final = 902
"""Says nothing after the first token, until its client hangs up."""
REFUSES: Final = 903
VOCABULARY: Final = 200
"""Of the tiny model the plain tokens, without those that end an answer."""


class FakeVllm(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), Handler)
        self.asked: list[dict[str, Any]] = []  # Any: JSON
        self.hung_up = threading.Event()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeVllm

    def address_string(self) -> str:
        return "a socket"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        data = b'{"version":"0.32.0"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        self.send_response(400 if asked["prompt"][0] == REFUSES else 200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        if asked["prompt"][0] != REFUSES:
            self._stream(asked)

    def _stream(self, asked: dict[str, Any]) -> None:  # Any: JSON
        prompt, count, sent = asked["prompt"], 2 if asked["prompt"][0] == PAIRS else 1, 0
        while sent < asked["max_tokens"]:
            count = min(count, asked["max_tokens"] - sent)
            tokens = [(prompt[-1] + 1 + sent + i) % VOCABULARY for i in range(count)]
            stopped = [i for i, token in enumerate(tokens) if token in asked["stop_token_ids"]]
            tokens = tokens[: stopped[0] + 1] if stopped else tokens
            self._say(json.dumps({"choices": [{"index": 0, "text": "", "token_ids": tokens}]}))
            sent += len(tokens)
            if stopped:
                break
            if prompt[0] == STALLS:
                self.connection.recv(1)
                self.server.hung_up.set()
                return
            if prompt[0] == BREAKS and sent == 2:
                self.connection.shutdown(socket.SHUT_RDWR)
                return
        self._say("[DONE]")

    def _say(self, data: str) -> None:
        self.wfile.write(f"data: {data}\n\n".encode())


@contextmanager
def fake_vllm(path: Path) -> Iterator[FakeVllm]:
    """Serve in a thread until the block ends."""
    with FakeVllm(path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


if __name__ == "__main__":
    FakeVllm(Path(sys.argv[sys.argv.index("--uds") + 1])).serve_forever()
