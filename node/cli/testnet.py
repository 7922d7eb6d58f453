"""``testnet``: a network of real nodes on this machine, kept in one folder."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from node.cli.exits import Exit
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, columns, emit, note, short

if TYPE_CHECKING:
    from node.testnet.network import Network, Node, Plan

_DIR = click.option("--dir", "folder", type=click.Path(path_type=Path), help="Where the network is kept.")


@click.group(cls=SoukGroup)
def testnet() -> None:
    """Run a network of real nodes on this machine."""


@testnet.command("up")
@_DIR
@click.option("--nodes", type=click.IntRange(1, 64), default=3, show_default=True)
@click.option("--providers", type=click.IntRange(0), default=1, show_default=True, help="How many serve models.")
@click.option(
    "--model", "models", multiple=True, metavar="NAME", help="What providers load; else their whole store."
)
@click.option("--models-dir", type=click.Path(path_type=Path), help="The providers' store; else the demo's.")
@pass_globals
def up(
    options: Globals,
    folder: Path | None,
    nodes: int,
    providers: int,
    models: tuple[str, ...],
    models_dir: Path | None,
) -> int:
    """Start a network and return when every node is ready; `down` stops it."""
    from node.testnet.interrupts import Interrupts
    from node.testnet.network import Network

    plan = make_plan(folder or default_folder(), nodes, providers, models=models, models_dir=models_dir)
    network, interrupts = Network(plan.folder), Interrupts()
    note(options, f"starting {nodes} nodes in {plan.folder} …")
    with interrupts.installed():
        network.up(plan, interrupts)
    emit(options, _payload(network), rows="nodes", table=_table)
    note(options, f"one of them: souk --home {network.nodes[-1].home} status")
    return Exit.DONE


@testnet.command("status")
@_DIR
@pass_globals
def status(options: Globals, folder: Path | None) -> int:
    """List the nodes; ends with 1 when one of them does not run."""
    payload = _payload(_load(folder))
    emit(options, payload, rows="nodes", table=_table)
    return Exit.DONE if all(node["running"] for node in payload["nodes"]) else Exit.FAILED


@testnet.command("down")
@_DIR
@pass_globals
def down(options: Globals, folder: Path | None) -> int:
    """Stop every node; homes and logs stay."""
    network = _load(folder)
    killed = network.down()
    note(options, f"stopped {len(network.nodes)} nodes" + (f"; had to kill {', '.join(killed)}" if killed else ""))
    return Exit.FAILED if killed else Exit.DONE


@testnet.command("logs")
@click.argument("name", metavar="NODE")
@_DIR
@pass_globals
def logs(_options: Globals, name: str, folder: Path | None) -> int:
    """Print what a node has logged."""
    from node.home import Home

    node = _load(folder).find(name)
    with open(Home(Path(node.home)).log_path, encoding="utf-8", errors="replace") as lines:
        sys.stdout.writelines(lines)
    return Exit.DONE


@testnet.command("kill")
@click.argument("name", metavar="NODE")
@_DIR
@pass_globals
def kill(options: Globals, name: str, folder: Path | None) -> int:
    """Kill a node with SIGKILL, to see how the others bear it."""
    from node.cli.exits import CliError

    node = _load(folder).find(name)
    process = node.process()
    if process is None:
        raise CliError(f"{node.name} does not run", Exit.UNKNOWN)
    process.kill()
    process.wait()
    note(options, f"killed {node.name} (pid {node.pid})")
    return Exit.DONE


@testnet.command("restart")
@click.argument("name", metavar="NODE")
@_DIR
@pass_globals
def restart(options: Globals, name: str, folder: Path | None) -> int:
    """Start a node again, with its key, its ledger and its address; one that runs is stopped first."""
    network = _load(folder)
    node = network.restart(network.find(name))
    note(options, f"{node.name} runs again (pid {node.pid})")
    return Exit.DONE


@testnet.command("exec", context_settings={"ignore_unknown_options": True})
@click.argument("name", metavar="NODE")
@click.argument("arguments", metavar="VERB…", nargs=-1, required=True, type=click.UNPROCESSED)
@_DIR
@pass_globals
def exec_(options: Globals, name: str, arguments: tuple[str, ...], folder: Path | None) -> int:
    """Run a verb of souk on a node: souk testnet exec 2 -- status. Ends with the verb's own code."""
    from node.cli.app import code_of

    node = _load(folder).find(name)
    # Named, so that SOUK_API of this shell leads nowhere else; of a node that has ended, the home has to do.
    api = ["--api", node.url] if node.url and node.process() else []
    return code_of([*options.words(), "--home", node.home, *api, *arguments])


@testnet.command("env")
@click.argument("name", metavar="NODE")
@_DIR
@pass_globals
@click.pass_context
def env(ctx: click.Context, _options: Globals, name: str, folder: Path | None) -> int:
    """Print the variables that point OpenAI clients at a node: eval "$(souk testnet env 2)"."""
    code: int = ctx.invoke(exec_, name=name, arguments=("env",), folder=folder)
    return code


@testnet.command("simulate")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="The first seed.")
@click.option("--seeds", "count", type=click.IntRange(1), default=1, show_default=True, help="How many in a row.")
@click.option("--scenario", "name", default="churn", show_default=True, help="What goes wrong; `all` runs each.")
@click.option("--jobs", type=click.IntRange(1), help="Orders in a run; else what the scenario says.")
@click.option("--only", metavar="ITEMS", help="The orders and faults to keep, as a shrunk run names them.")
@click.option("--real", is_flag=True, help="On daemons, with the demo's model; signals stand for faults.")
@pass_globals
def simulate(
    options: Globals, seed: int, count: int, name: str, jobs: int | None, *, only: str | None, real: bool
) -> int:
    """Run nodes in virtual time under faults drawn from a seed.

    Ends with 1 at the first broken rule, after it has looked for the shortest run that breaks it, too.
    """
    from node.cli.exits import CliError
    from node.cli.testnet_simulated import simulate_seeds
    from node.testnet.scenarios import SCENARIOS

    if name != "all" and name not in SCENARIOS:
        raise CliError(f"expected a scenario of {', '.join(SCENARIOS)} or all, got {name}", Exit.USAGE)
    scenarios = list(SCENARIOS.values()) if name == "all" else [SCENARIOS[name]]
    seeds = range(seed, seed + count)
    if not real:
        return simulate_seeds(options, scenarios, seeds, jobs=jobs, only=only)
    from node.cli.testnet_real import simulate_real
    from node.models.import_demo import DEMO_MODEL

    if only is not None:
        raise CliError("--only is for runs in virtual time: real ones are not the same twice", Exit.USAGE)
    plan = make_plan(default_folder(), 2, 1, models=(DEMO_MODEL,))
    return simulate_real(options, plan, scenarios, seeds, jobs=jobs)


def default_folder() -> Path:
    """Return where a testnet is kept unless the user names a folder."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "souk" / "testnet"


def make_plan(
    folder: Path, nodes: int, providers: int, *, models: tuple[str, ...] = (), models_dir: Path | None = None
) -> "Plan":
    """Return the plan of a network; without ``models_dir`` its providers serve what scripts/setup installed."""
    from node.cli.exits import CliError
    from node.cli.init import profile_text
    from node.testnet.network import Plan

    if providers > nodes:
        raise CliError(f"expected at most {nodes} providers among {nodes} nodes, got {providers}", Exit.USAGE)
    store = (models_dir or Path(sys.prefix) / "share" / "models").absolute()
    if providers and not store.is_dir():
        raise CliError(f"no model store at {store}: scripts/setup makes it, or name another with --models-dir")
    return Plan(
        folder=folder.absolute(),
        nodes=nodes,
        providers=providers,
        models_dir=store,
        base_config=profile_text("testnet"),
        models=models or ("*",),
    )


def _load(folder: Path | None) -> "Network":
    from node.testnet.network import Network

    return Network.load((folder or default_folder()).absolute())


def _payload(network: "Network") -> dict[str, Any]:  # a JSON object
    return {"schema": 1, "dir": str(network.folder), "nodes": [_describe(node) for node in network.nodes]}


def _describe(node: "Node") -> dict[str, object]:
    return {
        "name": node.name,
        "role": node.role,
        "running": node.process() is not None,
        "pid": node.pid,
        "url": node.url,
        "peer_id": node.peer_id,
        "home": node.home,
        "addresses": list(node.addresses),
    }


def _table(payload: Payload) -> str:
    rows = [
        [
            n["name"],
            n["role"],
            "runs" if n["running"] else "ended",
            str(n["pid"]),
            n["url"],
            short(n["peer_id"]),
            n["home"],
        ]
        for n in payload["nodes"]
    ]
    return columns(("NODE", "ROLE", "STATE", "PID", "API", "PEER", "HOME"), rows)
