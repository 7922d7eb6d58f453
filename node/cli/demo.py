"""``demo``: a local network, one job bought by a node that has no model, its receipt checked without a daemon."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from node.cli.answer import Answer, phase_text, refusal_text, stream_answer
from node.cli.client import ApiError, Daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import duration, money, note, short
from node.cli.receipts import verify_bundle
from node.cli.testnet import make_plan
from node.home import Home

if TYPE_CHECKING:
    from node.testnet.network import Network

HEARD_S: Final = 60.0
_STEP_S: Final = 0.1


@click.command(cls=SoukCommand)
@click.option("--nodes", type=click.IntRange(2, 16), default=3, show_default=True)
@click.option("--prompt", default="Name three things that a lighthouse keeper needs.", show_default=True)
@click.option("--model", metavar="NAME", help="Which model to ask; else the first that the network offers.")
@click.option(
    "--models-dir", type=click.Path(path_type=Path), help="The provider's store; else what setup installed."
)
@click.option("--max-tokens", type=click.IntRange(min=1), default=64, show_default=True)
@pass_globals
def demo(
    options: Globals, nodes: int, prompt: str, model: str | None, models_dir: Path | None, max_tokens: int
) -> int:
    """Start a local network, buy one answer on it, check the receipt, stop everything."""
    from node.testnet.interrupts import Interrupts
    from node.testnet.network import Network

    interrupts = Interrupts()
    with interrupts.installed():
        with interrupts.held():
            folder = Path(tempfile.mkdtemp(prefix="souk-demo-"))
        network = Network(folder)
        try:
            plan = make_plan(folder, nodes, 1, models=(model,) if model else (), models_dir=models_dir)
            note(options, f"starting {nodes} nodes, one of them with a model …")
            began = time.monotonic()
            network.up(plan, interrupts)
            note(options, f"ready after {time.monotonic() - began:.1f} s; node-{nodes} has no model and buys")
            _buy(options, network, prompt, model=model, max_tokens=max_tokens)
        finally:
            interrupts.ignore()
            killed = network.down()
            shutil.rmtree(folder, ignore_errors=True)
            note(options, f"had to kill {', '.join(killed)}" if killed else "all nodes stopped")
    return Exit.FAILED if killed else Exit.DONE


def _buy(options: Globals, network: "Network", prompt: str, *, model: str | None, max_tokens: int) -> None:
    buyer = network.nodes[-1]
    daemon = Daemon(url=buyer.url, origin=f"of {buyer.name}", home=Home(Path(buyer.home)))
    offered = wait_for_model(daemon, model, time.monotonic)
    note(options, f"asking for {offered} …")
    body = {
        "model": offered,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "souk": {"on": "remote"},
    }
    as_text = options.output == "table"
    try:
        answer = stream_answer(
            daemon,
            body,
            on_text=lambda piece: print(piece, end="", flush=True) if as_text else None,
            on_phase=lambda phase: note(options, phase_text(phase)),
        )
    except ApiError as exc:
        raise CliError(refusal_text(exc), exc.code) from exc
    if as_text:
        print(flush=True)
    proof = check_receipt(daemon, answer)
    if as_text:
        note(options, _summary(network, answer, proof))
    else:
        print(json.dumps(answer.as_json() | {"proof": proof}, ensure_ascii=False))


def wait_for_model(daemon: Daemon, wanted: str | None, now: Callable[[], float]) -> str:
    """Return the name of a model that a peer offers, once the daemon has heard of one.

    Raises:
        CliError: none was heard of in time.
    """
    end = now() + HEARD_S
    while now() < end:
        for model in daemon.get("/api/v1/models").get("models") or ():
            if model.get("peers") and wanted in (None, model.get("name")):
                return str(model["name"])
        time.sleep(_STEP_S)
    raise CliError(f"the buyer heard of no {wanted or 'model'} at its peers in {HEARD_S:.0f} s")


def check_receipt(daemon: Daemon, answer: Answer) -> dict[str, Any]:  # a JSON object: the verdict
    """Return the proof of what was paid, from the signed messages alone.

    Raises:
        CliError: there is no contract, or its messages prove something else than the daemon said.
    """
    contract_id = answer.souk.get("contract_id")
    if not contract_id:
        raise CliError("the answer came without a contract")
    bundle = daemon.get(f"/api/v1/receipts/{contract_id}").get("bundle")
    proof = verify_bundle(json.dumps(bundle))
    if not proof["valid"]:
        raise CliError(f"the receipt does not hold: {proof['problem']}")
    said: Mapping[str, object] = {
        "contract_id": contract_id,
        "provider": answer.souk.get("peer"),
        "cost_microcredits": answer.souk.get("cost_microcredits"),
        "tokens_out": answer.usage.get("completion_tokens"),
    }
    for name, value in said.items():
        if proof[name] != value:
            raise CliError(f"the receipt proves {name} {proof[name]!r}, the daemon said {value!r}")
    return proof


def _summary(network: "Network", answer: Answer, proof: Mapping[str, Any]) -> str:
    names = {node.peer_id: node.name for node in network.nodes}
    peer = str(answer.souk.get("peer"))
    return (
        f"answered by {names.get(peer, 'a stranger')} ({short(peer)}) · "
        f"{money(proof['cost_microcredits'])} of at most {money(proof['price_max'])} · "
        f"{proof['tokens_in']} tokens in, {proof['tokens_out']} out · "
        f"first token after {duration((answer.souk.get('first_token_ms') or 0) / 1000)}\n"
        f"receipt verified without the daemon: contract {short(proof['contract_id'])}, {proof['messages']} signed "
        f"messages, status {proof['status']}, verdict {proof['verdict']}"
    )
