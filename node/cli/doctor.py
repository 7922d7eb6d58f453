"""``doctor``: what can be checked on this machine without asking a peer, each fault with its fix."""

import errno
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click

from node.cli.client import Daemon, find_daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, emit, size
from node.errors import ConfigError, NodeError
from node.home import Home

if TYPE_CHECKING:
    from node.config import Config

DISK_WARN_BYTES: Final = 5 << 30
DISK_FAIL_BYTES: Final = 200 << 20
MEMORY_WARN_BYTES: Final = 1 << 30
# Adverts and contracts are judged by the clock, so a machine that lost its battery's time cannot trade.
CLOCK_MIN: Final = 1_760_000_000
CLOCK_MAX: Final = 4_100_000_000
_MARK: Final = {"ok": "✓", "warning": "!", "fault": "✗"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    check: str
    state: Literal["ok", "warning", "fault"]
    text: str
    fix: str | None = None


def _ok(check: str, text: str) -> Finding:
    return Finding(check=check, state="ok", text=text)


def _warning(check: str, text: str, fix: str) -> Finding:
    return Finding(check=check, state="warning", text=text, fix=fix)


def _fault(check: str, text: str, fix: str) -> Finding:
    return Finding(check=check, state="fault", text=text, fix=fix)


@click.command(cls=SoukCommand)
@click.option(
    "--only",
    metavar="NAME",
    shell_complete=lambda _ctx, _param, begun: [name for name in CHECKS if name.startswith(begun)],
    help="Run one check: home, config, key, clock, disk, memory, ledger, models, ports, daemon.",
)
@pass_globals
def doctor(options: Globals, only: str | None) -> int:
    """Check this machine and this home; ends with 1 when something is broken."""
    names = [name for name in CHECKS if only in (None, name)]
    if not names:
        raise CliError(f"expected one of {', '.join(CHECKS)}, got {only!r}", Exit.USAGE)
    findings = [finding for name in names for finding in CHECKS[name](options)]
    emit(options, {"schema": 1, "findings": [asdict(f) for f in findings]}, rows="findings", table=_table)
    return Exit.FAILED if any(finding.state == "fault" for finding in findings) else Exit.DONE


def _table(payload: Payload) -> str:
    lines = []
    for found in payload["findings"]:
        lines.append(f"{_MARK[found['state']]} {found['check']}: {found['text']}")
        if found["fix"]:
            lines.append(f"    fix: {found['fix']}")
    return "\n".join(lines)


def check_home(options: Globals) -> Iterator[Finding]:
    path = options.home.path
    if not path.exists():
        yield _warning("home", f"{path} is not there yet", "souk init, or souk serve, makes it")
    elif not os.access(path, os.W_OK | os.X_OK):
        yield _fault(
            "home", f"{path} cannot be written to", f"chown it to you, or name another: souk --home DIR ({path})"
        )
    elif stat.S_IMODE(path.stat().st_mode) & 0o077:
        yield _warning("home", f"{path} is open to other users", f"chmod 700 {path}")
    else:
        yield _ok("home", str(path))


def check_config(options: Globals) -> Iterator[Finding]:
    try:
        loaded = _load(options.home)
    except ConfigError as exc:
        for problem in exc.problems:
            yield _fault("config", problem, "correct it; configs/ and souk init have files that work")
        return
    count = len(loaded.origins)
    yield _ok("config", f"{options.home.config_path}: {count} values set, all others are defaults")


def check_key(options: Globals) -> Iterator[Finding]:
    from node.keystore import KeyFile
    from protocol.identity import peer_id_to_text

    path = options.home.key_path
    if not os.path.lexists(path):
        yield _warning("key", f"no key at {path} yet", "souk init, or souk serve, makes one")
        return
    try:
        yield _ok("key", peer_id_to_text(KeyFile(path).read().peer_id))
    except NodeError as exc:
        yield _fault("key", str(exc), f"restore the key, or move {path} away to become a new peer")


def check_clock(_options: Globals) -> Iterator[Finding]:
    now = time.time()
    shown = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(now))
    if CLOCK_MIN < now < CLOCK_MAX:
        yield _ok("clock", shown)
    else:
        yield _fault(
            "clock",
            f"{shown} cannot be right: peers refuse what is signed at a wrong time",
            "timedatectl set-ntp true",
        )


def check_disk(options: Globals) -> Iterator[Finding]:
    path = _existing(options.home.path)
    free = shutil.disk_usage(path).free
    text = f"{size(free)} free at {path}"
    fix = "make room: the ledger must be able to write before this node signs"
    if free < DISK_FAIL_BYTES:
        yield _fault("disk", text, fix)
    elif free < DISK_WARN_BYTES:
        yield _warning("disk", text, fix)
    else:
        yield _ok("disk", text)


def check_memory(_options: Globals) -> Iterator[Finding]:
    import psutil

    found = psutil.virtual_memory()
    text = f"{size(found.available)} of {size(found.total)} is free"
    if found.available < MEMORY_WARN_BYTES:
        yield _warning(
            "memory", text, "end other programs, or serve smaller models: worker.memory_bytes_max, models.serve"
        )
    else:
        yield _ok("memory", text)


def check_ledger(options: Globals) -> Iterator[Finding]:
    path = options.home.ledger_path
    if not path.is_file():
        yield _ok("ledger", "none yet: the daemon makes one")
        return
    from node.errors import LedgerError
    from node.ledger.audit import read_only

    try:
        with read_only(path) as db:
            (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
    except LedgerError as exc:
        yield _fault("ledger", str(exc), "put the newest backup into place: docs/operate.md, Backup")
        return
    if said == "ok":
        yield _ok("ledger", f"{path}, {size(path.stat().st_size)}; souk ledger verify checks every signature")
    else:
        yield _fault("ledger", f"{path}: {said}", "put the newest backup into place: docs/operate.md, Backup")


def check_models(options: Globals) -> Iterator[Finding]:
    from node.models.store import ModelStore

    config = _config(options.home)
    if config is None or config.node.role == "client":
        return
    folder = options.home.models_folder(config.models.dir)
    names = [model.name for model in ModelStore(folder).models()]
    if names:
        yield _ok("models", f"{', '.join(names)} in {folder}")
    else:
        yield _warning("models", f"nothing to serve in {folder}", "souk models add PATH, or set models.dir")


def check_ports(options: Globals) -> Iterator[Finding]:
    config = _config(options.home)
    if config is None or options.home.is_locked():
        return  # the daemon of this home holds them
    host, _, port = config.api.bind.rpartition(":")
    yield _port("api.bind", host.strip("[]"), int(port))
    for address in config.p2p.listen:
        parts = address.split("/")
        if parts[1] in ("ip4", "ip6") and parts[3:4] == ["tcp"]:
            yield _port("p2p.listen", parts[2], int(parts[4]))


def _port(name: str, host: str, port: int) -> Finding:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as exc:
            taken = exc.errno == errno.EADDRINUSE
            fix = f"stop what listens there (ss -ltnp 'sport = :{port}'), or set {name} to another port"
            return _fault(
                "ports",
                f"{name} {host}:{port}: {exc.strerror}",
                fix if taken else f"set {name} to another address",
            )
    return _ok("ports", f"{name} {host}:{port} is free")


def check_daemon(options: Globals) -> Iterator[Finding]:
    home, holder = options.home, options.home.lock_holder()
    if not home.is_locked():
        yield _ok("daemon", "none runs in this home")
        return
    who = f"pid {holder.pid}" if holder else "unknown pid"
    daemon = find_daemon(options)
    try:
        status = daemon.get("/api/v1/status")
        yield _ok("daemon", f"{who} answers at {daemon.url}")
        yield from _not_ready(daemon)
        yield from _not_current(status)
        if status.get("peers_connected") == 0:
            yield _warning("daemon", "no peer is connected", "souk peers connect ADDR; for good: p2p.bootstrap")
    except CliError as exc:
        fix = "wait, if it just started; else souk stop, or kill it"
        yield _fault("daemon", f"{who} holds the home: {str(exc).splitlines()[0]}", fix)


def _not_ready(daemon: Daemon) -> Iterator[Finding]:
    try:
        daemon.get("/readyz")
    except CliError as exc:
        yield _warning("daemon", f"not ready: {exc}", "souk status, and its log, say what it waits for")


def _not_current(status: Payload) -> Iterator[Finding]:
    from importlib.metadata import version

    ours, runs = version("souk"), status.get("version", version("souk"))
    if runs != ours:
        yield _warning("daemon", f"it is souk {runs}, this program is {ours}", "souk stop, then souk serve")


def _existing(path: Path) -> Path:
    return path if path.exists() else _existing(path.parent)


def _load(home: Home) -> Any:  # node.config_file.Loaded, which is imported only here
    from node.config_file import load_config

    return load_config(home.config_path, environ=os.environ)


def _config(home: Home) -> "Config | None":
    """Return the configuration; None when it is broken, which ``check_config`` tells."""
    try:
        config: Config = _load(home).config
    except ConfigError:
        return None
    return config


CHECKS: Final[dict[str, Callable[[Globals], Iterator[Finding]]]] = {
    "home": check_home,
    "config": check_config,
    "key": check_key,
    "clock": check_clock,
    "disk": check_disk,
    "memory": check_memory,
    "ledger": check_ledger,
    "models": check_models,
    "ports": check_ports,
    "daemon": check_daemon,
}
