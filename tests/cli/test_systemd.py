import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from node.cli import systemd
from node.cli.control import STOP_S
from node.cli.exits import Exit
from node.cli.systemd import Installation, find_installation, system_unit, user_unit
from node.home import Home
from tests.cli.fakes import souk

SYSTEM_HOME = Path("/var/lib/souk")


def place(home: Path = SYSTEM_HOME, top: str = "/opt/souk") -> Installation:
    return Installation(command=(f"{top}/bin/souk",), folders=(Path(top), Path("/usr")), home=home)


def parse(unit: str) -> dict[str, dict[str, list[str]]]:
    """Return section, key and values; a line that is none of systemd's is a fault."""
    found: dict[str, dict[str, list[str]]] = {}
    section = ""
    for line in unit.splitlines():
        if not line or line.startswith("#"):
            continue
        if header := re.fullmatch(r"\[(\w+)\]", line):
            section = header[1]
            assert section not in found, f"[{section}] twice"
            found[section] = {}
        else:
            key, equals, value = line.partition("=")
            assert equals and re.fullmatch(r"[A-Z]\w+", key), line
            found[section].setdefault(key, []).append(value)
    return found


def service(unit: str) -> dict[str, str]:
    return {key: " | ".join(values) for key, values in parse(unit)["Service"].items()}


def variants() -> dict[str, str]:
    return {
        "dynamic": system_unit(place(), None),
        "account": system_unit(place(), "souk"),
        "elsewhere": system_unit(place(Path("/srv/node 1")), "ann"),
        "user": user_unit(place(Path("/home/ann/.local/share/souk"), "/home/ann/souk")),
    }


@pytest.fixture
def no_home_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOUK_HOME")


@pytest.mark.parametrize("name", variants())
def test_unit_parses_and_starts_the_daemon_of_its_home(name: str) -> None:
    unit = parse(variants()[name])
    assert list(unit) == ["Unit", "Service", "Install"]
    assert unit["Service"]["ExecStart"][0].endswith("/bin/souk serve")
    assert unit["Service"]["Environment"][0].strip('"').startswith("SOUK_HOME=/")
    assert unit["Unit"]["StartLimitBurst"] == ["5"]


@pytest.mark.parametrize("name", variants())
def test_unit_gives_the_daemon_no_new_rights(name: str) -> None:
    found = service(variants()[name])
    assert found["NoNewPrivileges"] == "yes" and found["SystemCallFilter"] == "@system-service"
    assert "AF_NETLINK" in found["RestrictAddressFamilies"] and found["UMask"] == "0077"
    # torch and CUDA's driver make code as they go.
    assert "MemoryDenyWriteExecute" not in found


@pytest.mark.parametrize("name", variants())
def test_unit_is_not_restarted_when_another_try_cannot_help(name: str) -> None:
    found = service(variants()[name])
    assert found["Restart"] == "on-failure"
    codes = {Exit(int(code)) for code in found["RestartPreventExitStatus"].split()}
    assert codes == {Exit.USAGE, Exit.CONFIG, Exit.LOCKED}


@pytest.mark.parametrize("name", variants())
def test_unit_leaves_more_time_to_stop_than_the_stop_verb(name: str) -> None:
    found = service(variants()[name])
    assert int(found["TimeoutStopSec"]) > STOP_S
    # The daemon ends its workers itself, and starts a new one where the kernel killed one.
    assert found["KillMode"] == "mixed" and found["OOMPolicy"] == "continue"


def test_system_unit_shuts_the_daemon_in_but_leaves_it_the_gpu() -> None:
    found = service(system_unit(place(), None))
    assert found["ProtectSystem"] == "strict" and found["ProtectHome"] == found["PrivateTmp"] == "yes"
    assert found["DynamicUser"] == "yes" and found["StateDirectory"] == "souk"
    assert found["DevicePolicy"] == "closed" and "char-nvidia* rw" in found["DeviceAllow"]
    assert "PrivateDevices" not in found


def test_system_unit_may_write_to_the_home_it_is_given() -> None:
    found = service(system_unit(place(Path("/srv/node 1")), "ann"))
    assert found["User"] == "ann" and found["ReadWritePaths"] == '"/srv/node 1"'
    assert "DynamicUser" not in found and "StateDirectory" not in found


def test_system_unit_can_read_a_program_that_lies_in_a_home() -> None:
    assert service(system_unit(place(top="/home/ann/souk"), "ann"))["ProtectHome"] == "read-only"


def test_user_unit_asks_for_no_mount_namespace() -> None:
    found = service(user_unit(place()))
    assert not {"ProtectSystem", "ProtectHome", "PrivateTmp", "DevicePolicy", "User", "DynamicUser"} & found.keys()


def test_path_comes_back_whole_when_systemd_reads_it() -> None:
    odd = 'a b%c$d"e\\f'
    odd_place = Installation(command=(f"/opt/{odd}/souk",), folders=(), home=Path(f"/srv/{odd}"))
    found = service(user_unit(odd_place))
    (command, verb) = shlex.split(found["ExecStart"])
    assert command.replace("%%", "%").replace("$$", "$") == f"/opt/{odd}/souk" and verb == "serve"
    (variable,) = shlex.split(found["Environment"])
    assert variable.replace("%%", "%") == f"SOUK_HOME=/srv/{odd}"


def test_installation_names_a_program_that_runs() -> None:
    found = find_installation(SYSTEM_HOME)
    assert os.access(found.command[0], os.X_OK)
    assert (found.folders[-1] / "node" / "cli" / "systemd.py").is_file()


def test_installation_goes_by_the_interpreter_when_there_is_no_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd.sys, "executable", str(tmp_path / "python"))
    assert find_installation(SYSTEM_HOME).command == (str(tmp_path / "python"), "-m", "node.cli")


@pytest.mark.usefixtures("no_home_named")
def test_print_writes_the_unit_alone_to_standard_output() -> None:
    ran = souk("systemd", "print")
    assert ran.code == 0
    assert service(ran.out)["Environment"] == f"SOUK_HOME={SYSTEM_HOME}"
    assert "/etc/systemd/system/souk.service" in ran.err
    assert souk("systemd", "print", "-o", "json").json()["unit"].rstrip() == ran.out.rstrip()


def test_print_for_a_user_takes_the_home_of_the_caller(home: Home) -> None:
    ran = souk("systemd", "print", "--user")
    assert service(ran.out)["Environment"] == f"SOUK_HOME={home.path}"
    assert "systemctl --user enable" in ran.err


def test_print_warns_when_the_service_could_not_see_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    for top, warning in (("/home/ann/souk", "/opt is a better place"), ("/tmp/souk", "PrivateTmp hides")):
        monkeypatch.setattr(systemd, "find_installation", lambda home, top=top: place(home, top))
        assert warning in souk("systemd", "print", "--as", "ann").err


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (["--user", "--as", "ann"], "--user"),
        (["--as", "ann\nExecStartPre=/bin/sh"], "name of an account"),
        ([], "--as"),  # the home that the test names cannot belong to an account that systemd makes
    ],
)
def test_print_refuses_what_does_not_go_together(line: list[str], hint: str) -> None:
    ran = souk("systemd", "print", *line)
    assert ran.code == Exit.USAGE and hint in ran.err and not ran.out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynamic", "account", "user"])
def test_systemd_finds_no_fault_in_the_unit(name: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    here = find_installation(tmp_path)  # verify looks for the program
    text = user_unit(here) if name == "user" else system_unit(here, None if name == "dynamic" else "root")
    (tmp_path / "souk.service").write_text(text)
    scope = ["--user"] if name == "user" else []
    done = subprocess.run(
        [analyze, *scope, "verify", str(tmp_path / "souk.service")],
        env=os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "Failed to initialize manager" in done.stderr:
        pytest.skip(f"systemd-analyze cannot work here: {done.stderr.splitlines()[-1]}")
    assert (done.returncode, done.stderr) == (0, "")
