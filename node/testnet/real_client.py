"""One streamed order at a node's own API, as any client of OpenAI's makes it, and what its stream showed when.

Blocking, for threads: the faults come from outside, and so does the reader.
"""

import http.client
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from node.home import Home
from node.testnet.network import Node, TestnetError

READ_S_MAX: Final = 120.0
"""Silence after which a stream counts as hanging: longer than anything that a requester waits for."""


KNOWN_S_MAX: Final = 60.0
READY_S_MAX: Final = 60.0
_STEP_S: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is ordered; the same one gives the same text wherever it runs in fp32."""

    model: str
    prompt: str
    seed: int
    temperature: float
    tokens_max: int

    def body(self, on: str = "any") -> dict[str, Any]:  # a JSON object
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": self.prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": self.temperature,
            "seed": self.seed,
            "max_tokens": self.tokens_max,
            "souk": {"on": on},
        }


@dataclass(slots=True, kw_only=True)
class Told:
    """What a stream said so far. Times are ``time.monotonic`` seconds."""

    began_at: float = field(default_factory=time.monotonic)
    """Before the connection was made."""
    pieces: list[str] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    """When each piece came."""
    phases: list[tuple[float, dict[str, Any]]] = field(default_factory=list)
    job_id: str = ""
    tokens_out: int | None = None
    finish: str | None = None
    error: str = ""
    """The code of a typed failure."""
    broken: str = ""
    """How the stream broke off without a word."""

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def complete(self) -> bool:
        return self.finish is not None and not self.error and not self.broken

    @property
    def peers(self) -> list[str]:
        """Who worked on it, one after the other."""
        return [phase["peer"] for _at, phase in self.phases if phase["phase"] == "contracted"]

    @property
    def peer_id(self) -> str:
        """Who works on it now, or worked last."""
        return self.peers[-1] if self.peers else ""

    @property
    def tokens_in(self) -> int:
        """Of the prompt, as the first who worked on it counted."""
        return next((it["tokens_in"] for _at, it in self.phases if it["phase"] == "contracted"), 0)

    @property
    def gap_s(self) -> float:
        """The longest silence between two pieces."""
        return max(self.gaps_s, default=0.0)

    @property
    def gaps_s(self) -> list[float]:
        """The silences between two pieces."""
        return [b - a for a, b in zip(self.times, self.times[1:], strict=False)]

    def passed_over_at(self, peer_id: str, after: float) -> float | None:
        """Return when the requester gave ``peer_id`` up."""
        for at, phase in self.phases:
            if at >= after and phase["phase"] == "passed_over" and phase["peer"] == peer_id:
                return at
        return None


Watch = Callable[[Told], None]


def order(node: Node, request: Request, watch: Watch = lambda _told: None, *, on: str = "any") -> Told:
    """Order and read to the end; ``watch`` is called after each piece, in this thread. Never raises for faults."""
    told = Told()
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=READ_S_MAX)
    try:
        headers = {
            "authorization": f"Bearer {Home(Path(node.home)).read_token()}",
            "content-type": "application/json",
        }
        connection.request("POST", "/v1/chat/completions", json.dumps(request.body(on)), headers)
        answer = connection.getresponse()
        if answer.status == 200:
            _read(answer, told, watch)
        else:
            told.error = _code(json.loads(answer.read()))
    except TimeoutError:
        told.broken = "hangs"
    except (OSError, http.client.HTTPException, ValueError) as exc:
        told.broken = type(exc).__name__
    finally:
        connection.close()
    if not (told.complete or told.error or told.broken):
        told.broken = "ended without its end"
    return told


def call(node: Node, path: str) -> dict[str, Any]:
    """Return what a node's own API says at ``path``. Raises: OSError, ValueError."""
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=READ_S_MAX)
    try:
        headers = {"authorization": f"Bearer {Home(Path(node.home)).read_token()}"}
        connection.request("GET", path, headers=headers)
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()


def wait_known(buyers: Sequence[Node], sellers: Sequence[Node]) -> None:
    """Return when each buyer has heard what each seller offers.

    Raises:
        TestnetError: it has not within ``KNOWN_S_MAX``.
    """
    end = time.monotonic() + KNOWN_S_MAX
    wanted = {node.peer_id for node in sellers}
    for buyer in buyers:
        while missing := wanted - {it["peer_id"] for it in call(buyer, "/api/v1/peers")["peers"] if it["models"]}:
            if time.monotonic() > end:
                raise TestnetError(f"{buyer.name} has not heard of {len(missing)} peers in {KNOWN_S_MAX:g} s")
            time.sleep(_STEP_S)


def wait_ready(node: Node) -> float:
    """Return after how many seconds the node called itself ready.

    Raises:
        TestnetError: it has not within ``READY_S_MAX``; the message names what is wrong with it.
    """
    began = time.monotonic()
    while wrong := {name: said for name, said in call(node, "/readyz")["checks"].items() if said != "ok"}:
        if time.monotonic() > began + READY_S_MAX:
            raise TestnetError(f"{node.name} is not ready after {READY_S_MAX:g} s: {wrong}")
        time.sleep(_STEP_S)
    return time.monotonic() - began


def _read(answer: http.client.HTTPResponse, told: Told, watch: Watch) -> None:
    told.job_id = answer.getheader("x-souk-job-id") or ""
    while line := answer.readline():
        now = time.monotonic()
        if line.startswith(b": souk "):
            told.phases.append((now, json.loads(line.removeprefix(b": souk "))))
        elif line.startswith(b"data: {"):
            _take(told, json.loads(line.removeprefix(b"data: ")), now, watch)


def _take(told: Told, chunk: dict[str, Any], now: float, watch: Watch) -> None:
    if "error" in chunk:
        told.error = _code(chunk)
        return
    told.tokens_out = (chunk.get("usage") or {}).get("completion_tokens", told.tokens_out)
    for choice in chunk["choices"]:
        told.finish = choice["finish_reason"] or told.finish
        if text := choice["delta"].get("content"):
            told.pieces.append(text)
            told.times.append(now)
            watch(told)


def _code(body: dict[str, Any]) -> str:
    error = body.get("error") or {}
    return str(error.get("code") or error.get("type") or "unknown")
