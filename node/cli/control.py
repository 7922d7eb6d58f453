"""``status``, ``stop`` and ``env``: the daemon as a whole."""

import os
import shlex
from collections.abc import Generator
from contextlib import closing
from typing import TYPE_CHECKING, Final

import click

from node.cli import watch
from node.cli.client import Daemon, find_daemon
from node.cli.exits import CliError, Exit
from node.cli.gate import gate_text
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, duration, emit, facts, money, note

if TYPE_CHECKING:
    import psutil

STOP_S: Final = 30.0
SHELLS: Final = ("sh", "bash", "zsh", "fish", "dotenv")


@click.command(cls=SoukCommand)
@click.option("--watch", "watches", is_flag=True, help="Redraw it every second; q or Ctrl-C ends it.")
@pass_globals
def status(options: Globals, watches: bool) -> int:
    """Show what the node is doing; ends with 1 while it is not ready, with 4 when it is down.

    With --watch, -o jsonl prints a line each second; where nobody looks, the state is shown once.
    """
    daemon = find_daemon(options)
    if watches:
        watch.show(options, _states(daemon), _status_table, once=False)
        return Exit.DONE
    payload = daemon.get("/api/v1/status")
    emit(options, payload, table=_status_table)
    return Exit.DONE if payload.get("ready") else Exit.FAILED


def _states(daemon: Daemon) -> Generator[Payload, None, None]:
    with closing(watch.snapshots(daemon)) as shots:
        for shot in shots:
            yield shot["status"]


def _status_table(payload: Payload) -> str:
    jobs = payload.get("jobs") or {}
    state = "ready" if payload.get("ready") else "not ready"
    return facts(
        [
            ("node", f"{payload.get('name')} ({state}), {payload.get('role')}, souk {payload.get('version')}"),
            *((f"! {name}", text) for name, text in (payload.get("problems") or {}).items()),
            ("peer id", payload.get("peer_id")),
            ("network", payload.get("network")),
            ("up", duration(payload.get("uptime_s"))),
            ("peers", payload.get("peers_connected")),
            ("addresses", "\n           ".join(payload.get("addresses") or ()) or "none"),
            ("devices", ", ".join(_device_name(device) for device in payload.get("devices") or ()) or "none"),
            ("workers", ", ".join(_worker_text(worker) for worker in payload.get("workers") or ()) or "none"),
            ("models", ", ".join(payload.get("models") or ()) or "none here"),
            ("jobs", f"{jobs.get('running', 0)} running, {jobs.get('waiting', 0)} waiting"),
            ("gate", gate_text(payload["gate"]) if payload.get("gate") else None),
            ("earned", money(payload.get("earned_microcredits"))),
            ("spent", money(payload.get("spent_microcredits"))),
        ]
    )


def _device_name(device: object) -> str:
    return str(device.get("name") or device.get("kind")) if isinstance(device, dict) else str(device)


def _worker_text(worker: object) -> str:
    if not isinstance(worker, dict):
        return str(worker)
    text = f"{worker.get('device')} {worker.get('state')}, jail {worker.get('jail') or 'not known yet'}"
    if worker.get("spare", "none") != "none":
        text += f", spare {worker.get('spare')}"
    if worker.get("deaths"):
        text += f", {worker.get('deaths')} deaths in ten minutes"
    return text


@click.command(cls=SoukCommand)
@pass_globals
def stop(options: Globals) -> int:
    """Stop the daemon and wait until it has ended, 30 s at most; --timeout 5 waits for less, and ends with 7.

    Jobs that run are cut: souk drain lets them end first.
    """
    import psutil

    daemon = find_daemon(options)
    process = _process_of(daemon)
    daemon.request("POST", "/api/v1/shutdown", {})
    if process is not None:
        try:
            process.wait(daemon.deadline.left_s(STOP_S))
        except psutil.TimeoutExpired as exc:
            if daemon.deadline.is_over:
                raise daemon.deadline.over() from exc
            raise CliError(f"the daemon (pid {process.pid}) still runs after {STOP_S:.0f} s; kill it?") from exc
    note(options, "stopped")
    return Exit.DONE


def _process_of(daemon: Daemon) -> "psutil.Process | None":
    import psutil

    info = daemon.home.read_api()
    if info is None or info.url != daemon.url:
        return None  # another machine's, or another home's: its answer has to do
    try:
        return psutil.Process(info.pid)
    except psutil.NoSuchProcess:
        return None


@click.command(cls=SoukCommand)
@click.option("--shell", type=click.Choice(SHELLS), help="How to write them; $SHELL says unless you do.")
@pass_globals
def env(options: Globals, shell: str | None) -> int:
    """Print the variables that point OpenAI clients here: eval "$(souk env)"; in fish, souk env | source."""
    daemon = find_daemon(options)
    try:
        token = daemon.home.read_token()
    except FileNotFoundError as exc:
        raise CliError(
            f"no token at {daemon.home.token_path}: start the daemon once with souk serve", Exit.UNREACHABLE
        ) from exc
    payload = {"schema": 1, "OPENAI_BASE_URL": f"{daemon.url}/v1", "OPENAI_API_KEY": token}
    chosen = shell or os.path.basename(os.environ.get("SHELL", ""))
    emit(options, payload, table=lambda found: _exports(found, chosen))
    return Exit.DONE


def _exports(payload: Payload, shell: str) -> str:
    names = [name for name in payload if name != "schema"]
    if shell == "fish":
        return "\n".join(f"set -gx {name} {shlex.quote(str(payload[name]))};" for name in names)
    if shell == "dotenv":
        return "\n".join(f"{name}={payload[name]}" for name in names)
    return "\n".join(f"export {name}={shlex.quote(str(payload[name]))}" for name in names)
