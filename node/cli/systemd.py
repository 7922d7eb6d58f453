"""``systemd print``: a hardened unit with the paths of this installation (ux.md, section 7); installs nothing."""

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

import node
from node.cli.control import STOP_S
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, emit, note

STATE: Final = "souk"
SYSTEM_HOME: Final = Path("/var/lib") / STATE
# Another try cannot help: wrong use, a wrong configuration, another souk in this home.
NO_RESTART: Final = (Exit.USAGE, Exit.CONFIG, Exit.LOCKED)
STOP_WAIT_S: Final = round(STOP_S) + 15
"""More than ``souk stop`` grants; a job that is cut tells its peer and pays within seconds."""
_ACCOUNT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,30}")
_USER_FOLDERS: Final = (Path("/home"), Path("/root"), Path("/run/user"))
_TEMPORARY: Final = (Path("/tmp"), Path("/var/tmp"))  # noqa: S108 - compared with, nothing is written there

# What asks for no mount namespace: a manager of one user often may not make them (status=226/NAMESPACE).
_NO_NEW_RIGHTS: Final = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictNamespaces=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
# MemoryDenyWriteExecute= stays off: CUDA's driver and torch's JIT write code and then run it."""

_ORDERING: Final = """\
Wants=network-online.target
# The latter loads the driver's modules and makes its device nodes, where there is one.
After=network-online.target nvidia-persistenced.service
"""

_SANDBOX: Final = """\
ProtectSystem=strict
ProtectHome={protect_home}
PrivateTmp=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
# ProcSubset= stays off: the memory that is left is read from /proc/meminfo.
CapabilityBoundingSet=
# PrivateDevices= stays off, since it hides the GPU: of all devices these alone. Not run on a GPU yet.
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
DeviceAllow=/dev/nvidiactl rw
DeviceAllow=/dev/nvidia-uvm rw
DeviceAllow=/dev/nvidia-uvm-tools rw"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where the program and its node are."""

    command: tuple[str, ...]
    """What starts ``souk``."""
    folders: tuple[Path, ...]
    """What it has to read: the environment, Python itself, the packages."""
    home: Path

    def lies_below(self, *tops: Path) -> bool:
        return any(folder.is_relative_to(top) for folder in (*self.folders, self.home) for top in tops)


@click.group(cls=SoukGroup)
def systemd() -> None:
    """Run the daemon as a service."""


@systemd.command("print")
@click.option("--user", "for_user", is_flag=True, help="For your own services, systemctl --user.")
@click.option("--as", "account", metavar="NAME", help="The account that runs it; else one that systemd makes.")
@pass_globals
def print_unit(options: Globals, for_user: bool, account: str | None) -> int:
    """Print a unit file on standard output; how to install it goes to standard error."""
    if for_user and account:
        raise CliError("--user runs as you: leave --as out, or --user", Exit.USAGE)
    if account and not _ACCOUNT.fullmatch(account):
        raise CliError(f"--as: expected the name of an account, got {account!r}", Exit.USAGE)
    named = bool(options.home_flag or os.environ.get("SOUK_HOME"))
    if named and not for_user and not account and options.home.path != SYSTEM_HOME:
        raise CliError(
            f"an account that systemd makes owns nothing but {SYSTEM_HOME}, not {options.home.path}: "
            f"name the home's owner with --as, or leave --home and SOUK_HOME out",
            Exit.USAGE,
        )
    place = find_installation(options.home.path if for_user or named else SYSTEM_HOME)
    unit = user_unit(place) if for_user else system_unit(place, account)
    emit(options, {"schema": 1, "unit": unit}, table=_text)
    for line in _advice(place, for_user=for_user, account=account):
        note(options, line)
    return Exit.DONE


def _text(payload: Payload) -> str:
    return str(payload["unit"]).rstrip("\n")


def find_installation(home: Path) -> Installation:
    """Return this installation, as the running program sees it."""
    # Not resolved: what the environment's python points to does not know the environment.
    interpreter = Path(sys.executable)
    script = interpreter.parent / "souk"
    command = (str(script),) if script.is_file() else (str(interpreter), "-m", "node.cli")
    packages = Path(node.__file__).parent.parent
    return Installation(command=command, folders=(Path(sys.prefix), Path(sys.base_prefix), packages), home=home)


def system_unit(place: Installation, account: str | None) -> str:
    """Return a unit for the whole machine, run by ``account`` or by one that systemd makes."""
    # Reading is enough where the program lies in somebody's home; only the node's own home is written to.
    protect_home = "read-only" if place.lies_below(*_USER_FOLDERS) else "yes"
    owner = f"User={account}" if account else f"DynamicUser=yes\nUser={STATE}"
    keep = f"StateDirectory={STATE}\nStateDirectoryMode=0700"
    if place.home != SYSTEM_HOME:
        keep = f"ReadWritePaths={_quoted(str(place.home))}"
    sandbox = "\n".join((owner, keep, _SANDBOX.format(protect_home=protect_home), _NO_NEW_RIGHTS))
    return _unit(place, _ORDERING, sandbox, wanted_by="multi-user.target")


def user_unit(place: Installation) -> str:
    """Return a unit for the services of one user."""
    return _unit(place, "", _NO_NEW_RIGHTS, wanted_by="default.target")


def _unit(place: Installation, ordering: str, sandbox: str, *, wanted_by: str) -> str:
    # A dollar means a variable here, and nowhere else in a unit.
    command = " ".join(_quoted(part.replace("$", "$$")) for part in place.command)
    return f"""\
# Written by souk systemd print.
[Unit]
Description=souk, a node of a peer-to-peer market for inference
{ordering}# A fault that stays, such as a damaged ledger, ends the service after five tries.
StartLimitIntervalSec=300
StartLimitBurst=5

[Service]
# The unit is active once the program runs; it is ready when souk status, or /readyz, says so.
Type=exec
Environment={_quoted(f"SOUK_HOME={place.home}")}
ExecStart={command} serve
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=5
# Wrong use, wrong configuration, already running: these stay until somebody changes something.
RestartPreventExitStatus={" ".join(str(int(code)) for code in NO_RESTART)}
# SIGTERM to the daemon alone, which cuts its jobs in order and ends its workers; what is left is killed.
KillMode=mixed
KillSignal=SIGTERM
TimeoutStopSec={STOP_WAIT_S}
# A worker that the kernel kills for memory is started anew by the daemon.
OOMPolicy=continue
LimitNOFILE=65536
UMask=0077
{sandbox}

[Install]
WantedBy={wanted_by}
"""


def _advice(place: Installation, *, for_user: bool, account: str | None) -> Iterator[str]:
    flags = " --user" if for_user else ""
    folder = "~/.config/systemd/user" if for_user else "/etc/systemd/system"
    yield f"# save it as {folder}/souk.service, then: systemctl{flags} daemon-reload"
    yield f"#   systemctl{flags} enable --now souk"
    if for_user:
        yield "#   loginctl enable-linger     # to keep it running while you are not logged in"
        return
    who = account or "the account that systemd makes"
    if place.lies_below(*_USER_FOLDERS):
        yield f"# the program lies in a user's home, which {who} may not be able to read: /opt is a better place"
    if place.lies_below(*_TEMPORARY):
        yield f"# the program or its home lies in a temporary folder, which PrivateTmp hides from {who}"


def _quoted(text: str) -> str:
    """Return ``text`` as one word that systemd reads back as it is."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if any(sign in text for sign in " \t\"'\\") else escaped
