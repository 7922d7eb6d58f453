import struct

import pytest

from node.errors import ExecutionError
from node.execution.jail import ARCHITECTURES, Architecture, Jail, enter_jail, filter_program

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF_0000, 0x0005_0001, 0x0005_0026, 0x8000_0000
PID = 4711


def run_filter(program: list[bytes], number: int, audit: int, first: int = 0, second: int = 0) -> int:
    """What the kernel does with a filter (linux/filter.h), for the four instructions that are used."""
    data = struct.pack("=IIQ6Q", number, audit, 0, first, second, 0, 0, 0, 0)
    at, word = 0, 0
    while True:
        code, then, otherwise, value = struct.unpack("HBBI", program[at])
        at += 1
        if code == 0x20:
            (word,) = struct.unpack_from("=I", data, value)
        elif code == 0x06:
            return int(value)
        else:
            hit = {0x15: word == value, 0x35: word >= value, 0x45: bool(word & value)}[code]
            at += then if hit else otherwise


@pytest.fixture(params=sorted(ARCHITECTURES))
def machine(request: pytest.FixtureRequest) -> Architecture:
    return ARCHITECTURES[request.param]


def test_filter_refuses_what_is_listed_and_allows_the_rest(machine: Architecture) -> None:
    program = filter_program(machine, pid=PID, may_exec=False)
    refused = set(machine.calls.values())
    special = {machine.clone, machine.clone3, machine.prlimit, *machine.signals}
    for number in range(480):
        if number not in special:
            expected = EPERM if number in refused else ALLOW
            assert run_filter(program, number, machine.audit) == expected, number


def test_filter_kills_when_numbers_are_another_architectures(machine: Architecture) -> None:
    program = filter_program(machine, pid=PID, may_exec=False)
    assert run_filter(program, 0, 0x4000_0003) == KILL
    assert run_filter(program, 0x4000_0000 + 41, machine.audit) == KILL


def test_filter_lets_threads_and_signals_to_itself_alone_through(machine: Architecture) -> None:
    program = filter_program(machine, pid=PID, may_exec=False)
    thread, child = 0x003D_0F00, 0x0120_0011
    assert run_filter(program, machine.clone, machine.audit, thread) == ALLOW
    assert run_filter(program, machine.clone, machine.audit, child) == EPERM
    assert run_filter(program, machine.clone3, machine.audit) == ENOSYS
    for number in machine.signals:
        assert run_filter(program, number, machine.audit, PID) == ALLOW
        assert run_filter(program, number, machine.audit, PID + 1) == EPERM


def test_filter_lets_limits_of_the_process_itself_alone_through(machine: Architecture) -> None:
    program = filter_program(machine, pid=PID, may_exec=True)
    assert run_filter(program, machine.prlimit, machine.audit, 0) == ALLOW
    assert run_filter(program, machine.prlimit, machine.audit, PID + 1) == EPERM


def test_filter_lets_nobody_type_into_the_daemons_terminal(machine: Architecture) -> None:
    program = filter_program(machine, pid=PID, may_exec=True)
    for command, expected in ((0x5412, EPERM), (0x541C, EPERM), (0x5413, ALLOW), (0xC020_4600, ALLOW)):
        assert run_filter(program, machine.ioctl, machine.audit, 2, command) == expected, command


def test_filter_lets_a_compiler_start_when_code_is_compiled(machine: Architecture) -> None:
    program = filter_program(machine, pid=PID, may_exec=True)
    assert run_filter(program, machine.calls["execve"], machine.audit) == ALLOW
    assert run_filter(program, machine.calls["fchmodat"], machine.audit) == ALLOW
    assert run_filter(program, machine.clone, machine.audit, 0x11) == ALLOW
    assert run_filter(program, machine.calls["socket"], machine.audit) == EPERM


@pytest.fixture
def bare_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that has neither means; entering a real one would confine the tests themselves."""

    def refuse(_jail: Jail) -> None:
        raise OSError(0, "not here", None)

    monkeypatch.setattr("node.execution.jail._enter_landlock", refuse)
    monkeypatch.setattr("node.execution.jail._enter_seccomp", refuse)
    monkeypatch.setattr("node.execution.jail._drop_capabilities", lambda: None)


@pytest.mark.usefixtures("bare_kernel")
def test_worker_says_that_nothing_confines_it_when_the_kernel_has_nothing() -> None:
    assert enter_jail(Jail(mode="auto")) == "none: landlock: not here; seccomp: not here"


@pytest.mark.usefixtures("bare_kernel")
def test_worker_does_not_start_when_a_jail_is_required_and_there_is_none() -> None:
    with pytest.raises(
        ExecutionError, match=r"landlock: not here; seccomp: not here.* or set worker\.jail"
    ) as refused:
        enter_jail(Jail(mode="required"))
    assert refused.value.code == "jail"


def test_worker_says_why_it_cannot_be_confined_and_refuses_when_it_must_be() -> None:
    assert enter_jail(Jail(mode="auto", impossible="it needs sockets")) == "none: it needs sockets"
    with pytest.raises(ExecutionError, match="it needs sockets") as raised:
        enter_jail(Jail(mode="required", impossible="it needs sockets"))
    assert raised.value.code == "jail"
