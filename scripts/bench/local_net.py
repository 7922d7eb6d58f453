"""A network of real nodes on loopback, and one question to one of them, timed where a user would time it.

Starting and stopping is ``node.testnet``'s; here it is lent to a benchmark, or one that runs already is joined.
"""

import argparse
import contextlib
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.cli.answer import stream_answer
from node.cli.client import Daemon
from node.cli.demo import wait_for_model
from node.cli.testnet import make_plan
from node.home import Home
from node.testnet.interrupts import Interrupts
from node.testnet.network import Network, Node

NODES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalNet:
    """One provider, the last node as buyer, and the model that both know."""

    network: Network
    provider: Daemon
    buyer: Daemon
    model: str

    @property
    def provider_node(self) -> Node:
        return self.network.nodes[0]

    @property
    def provider_peer_id(self) -> str:
        return self.network.nodes[0].peer_id

    def provider_config(self) -> Mapping[str, Any]:  # TOML, read by who knows its sections
        return tomllib.loads(Home(Path(self.provider_node.home)).config_path.read_text("utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedAnswer:
    """What came, and when: seconds from before the request was made."""

    text: str
    tokens: int
    first_s: float
    """To the first text."""
    last_s: float
    """To the last text; what follows is the receipt and the end of the stream."""
    end_s: float

    @property
    def tokens_per_s(self) -> float:
        """The whole answer by the whole time: reading the prompt and settling included."""
        return self.tokens / self.end_s

    @property
    def decode_tokens_per_s(self) -> float:
        """The stream alone: the tokens after the first one, by the time between first and last text."""
        return (self.tokens - 1) / (self.last_s - self.first_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One prompt with its sampling, the same in every arm."""

    text: str
    tokens_max: int
    temperature: float = 0.0
    seed: int = 0

    def body(self, model: str, souk: Mapping[str, object]) -> dict[str, object]:
        return {
            "model": model,
            "messages": [{"role": "user", "content": self.text}],
            "max_tokens": self.tokens_max,
            "temperature": self.temperature,
            "seed": self.seed,
            "souk": dict(souk),
        }


LOCAL: Mapping[str, object] = {"on": "local"}
FAST: Mapping[str, object] = {"on": "remote", "path": "fast"}
QUOTE: Mapping[str, object] = {"on": "remote", "path": "quote"}


def ask(daemon: Daemon, model: str, question: Question, souk: Mapping[str, object]) -> TimedAnswer:
    """Stream one answer from a daemon; ``souk`` says who shall run it and by which path."""
    times: list[float] = []
    began = time.perf_counter()
    answer = stream_answer(
        daemon,
        question.body(model, souk),
        on_text=lambda _text: times.append(time.perf_counter() - began),
        on_phase=lambda _phase: None,
    )
    end_s = time.perf_counter() - began
    return TimedAnswer(
        text=answer.text,
        tokens=int(answer.usage["completion_tokens"]),
        first_s=times[0],
        last_s=times[-1],
        end_s=end_s,
    )


def add_net_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dir", type=Path, help="a running testnet of one provider; else one is started")


@contextlib.contextmanager
def local_net(folder: Path | None) -> Iterator[LocalNet]:
    """Join the testnet in ``folder``, or lend one that is stopped afterwards, whatever happens."""
    if folder is not None:
        yield _join(Network.load(folder.absolute()))
        return
    interrupts = Interrupts()
    with interrupts.installed(), tempfile.TemporaryDirectory(prefix="souk-bench-") as name:
        network = Network(Path(name))
        try:
            network.up(make_plan(Path(name), NODES, 1), interrupts)
            yield _join(network)
        finally:
            interrupts.ignore()
            network.down()


def _join(network: Network) -> LocalNet:
    provider, buyer = _daemon(network.nodes[0]), _daemon(network.nodes[-1])
    model = wait_for_model(buyer, None, time.monotonic)
    return LocalNet(network=network, provider=provider, buyer=buyer, model=model)


def _daemon(node: Node) -> Daemon:
    return Daemon(url=node.url, origin=f"of {node.name}", home=Home(Path(node.home)))
