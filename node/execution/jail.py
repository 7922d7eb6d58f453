"""The jail of a worker process: Landlock for files, TCP and signals, seccomp for the rest; no helper needed.

Where bubblewrap works it stands around this, as a second wall: ``bubblewrap.py``.

A worker reads peers' prompts with a great deal of native code. Should that code be turned, it finds no network, no
key, no home, nobody to signal and nothing to start. Entered before torch is imported, while the process has one
thread: neither means reaches threads that exist already. Design: reliability.md, section 3.7; decision 0013.

The C library is called by ctypes: the kernel's own interface is three system calls and a table, and the binding
of libseccomp would need a library that machines with a driver and a Python often lack.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, TypeAlias

import msgspec

import protocol
from node.errors import ExecutionError

JailMode: TypeAlias = Literal["auto", "off", "required"]

_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_SECCOMP_MODE_FILTER: Final = 2

# linux/landlock.h. The three calls have the same number on every architecture.
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION: Final = 1
_RULE_PATH_BENEATH: Final = 1
_FS_EXECUTE, _FS_WRITE, _FS_READ, _FS_READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FS_TRUNCATE, _FS_IOCTL = 1 << 14, 1 << 15
_FS_OF_FILE: Final = _FS_EXECUTE | _FS_WRITE | _FS_READ | _FS_TRUNCATE | _FS_IOCTL
_FS_BITS: Final = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights over files each version of the interface knows; later ones know no more."""
_NET_ALL: Final = 0b11
_SCOPE_ALL: Final = 0b11
"""Abstract Unix sockets and signals."""
_NET_SINCE, _SCOPE_SINCE = 4, 6

# linux/seccomp.h, linux/filter.h, linux/audit.h.
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _ALLOW, _ERRNO = 0x8000_0000, 0x7FFF_0000, 0x0005_0000
_EPERM, _ENOSYS = 1, 38
_AT_NUMBER, _AT_ARCHITECTURE, _AT_FIRST_ARGUMENT, _AT_SECOND_ARGUMENT = 0, 4, 16, 24
_CLONE_THREAD: Final = 0x0001_0000
# Typing into the terminal that the daemon was started from: the worker writes its errors there.
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C

# linux/capability.h. A daemon that is root reads models of other users; nothing else of root's is a worker's.
_CAPABILITY_VERSION: Final = 0x2008_0522
_CAPABILITIES_KEPT: Final = 1 << 1 | 1 << 2
"""DAC_OVERRIDE and DAC_READ_SEARCH: within what Landlock allows."""
_X32_BIT: Final = 0x4000_0000


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """The numbers of one kind of machine."""

    audit: int
    calls: dict[str, int]
    """What is refused outright."""
    clone: int
    clone3: int
    signals: tuple[int, ...]
    """kill and tgkill: to the process itself only."""
    prlimit: int
    """0 stands for the process itself."""
    ioctl: int


# An allow list would not outlive the next version of torch or of a driver; this is what a computation never needs.
# Names in the order of the columns: x86-64, then the generic table that 64-bit ARM uses.
_REFUSED: Final = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "kcmp": (312, 272), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "mount_setattr": (442, 442),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "open_by_handle_at": (304, 265), "swapon": (167, 224), "reboot": (169, 142),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "acct": (163, 89), "quotactl": (179, 60),
    # A datagram socket of a pair sends to any other Unix socket by its path, which Landlock does not see.
    "socketpair": (53, 199),
    # Shared with every other process of this user, by number.
    "shmget": (29, 194), "shmat": (30, 196), "msgget": (68, 186), "semget": (64, 190), "mq_open": (240, 180),
    "setpriority": (141, 140), "ioprio_set": (251, 30),
}  # fmt: skip
# What a compiler needs. Landlock knows no right over owners, modes, times and attributes of files: without these
# a worker could make the node's key readable for everybody. Before its version 3 it knows none over truncation.
_COMPILING: Final = {
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None),
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "removexattrat": (466, 466),
    "utime": (132, None), "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
    "truncate": (76, 45),
}  # fmt: skip


def _architecture(
    column: int, audit: int, *, clone: int, signals: tuple[int, ...], prlimit: int, ioctl: int
) -> Architecture:
    pairs = _REFUSED | _COMPILING
    calls = {name: number for name, pair in pairs.items() if (number := pair[column]) is not None}
    return Architecture(
        audit=audit, calls=calls, clone=clone, clone3=435, signals=signals, prlimit=prlimit, ioctl=ioctl
    )


ARCHITECTURES: Final = {
    "x86_64": _architecture(0, 0xC000_003E, clone=56, signals=(62, 234), prlimit=302, ioctl=16),
    "aarch64": _architecture(1, 0xC000_00B7, clone=220, signals=(129, 131), prlimit=261, ioctl=29),
}


class Jail(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker may still do."""

    mode: JailMode
    readable: tuple[str, ...] = ()
    """Folders and files beyond Python, torch and what both need of the system."""
    writable: tuple[str, ...] = ()
    may_exec: bool = False
    """For code that is compiled while it runs: the compiler is a program."""
    impossible: str = ""
    """Why this worker cannot be confined at all; empty when it can."""
    bubblewrap: str = ""
    """The program that starts it in namespaces of its own; empty: none does. See ``bubblewrap.py``."""


def enter_jail(jail: Jail) -> str:
    """Confine this process and return what holds, such as ``bubblewrap+landlock+seccomp``, or ``none: why``.

    Nothing undoes it. Threads that exist already stay free: call it before there are any. bubblewrap is only told:
    it holds from the beginning.

    Raises:
        ExecutionError: ``jail``: it is required, and the kernel has not all of it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold prompts
    if jail.mode == "off":
        return "none: switched off"
    if jail.impossible and jail.mode == "required":
        raise ExecutionError(
            f'worker.jail is required, and {jail.impossible}: set worker.jail = "auto"', code="jail"
        )
    if jail.impossible:
        return f"none: {jail.impossible}"
    _drop_capabilities()
    missing = []
    tiers = ["bubblewrap"] if jail.bubblewrap else []
    for name, enter in (("landlock", _enter_landlock), ("seccomp", _enter_seccomp)):
        try:
            enter(jail)
            tiers.append(name)
        except OSError as exc:
            missing.append(f"{name}: {exc.strerror}")
    if missing and jail.mode == "required":
        raise ExecutionError(
            f"worker.jail is required, and this kernel refuses {'; '.join(missing)}: run one with Landlock and"
            ' seccomp, or set worker.jail = "auto"',
            code="jail",
        )
    return "+".join(tiers) or f"none: {'; '.join(missing)}"


def landlock_version() -> int:
    """Return the version of Landlock's interface that the kernel has; 0 when it has none."""
    found = _libc().syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_LANDLOCK_VERSION))
    return max(0, int(found))


def system_paths(*, cuda: bool) -> tuple[str, ...]:
    """Return what a worker reads of the system: libraries, facts about the CPU and, for CUDA, about the cards."""
    found = ["/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/etc/localtime", "/proc", "/sys/devices/system"]
    found += ["/sys/fs/cgroup", "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]
    if cuda:
        found += ["/sys", "/opt", "/etc/alternatives", *(str(path) for path in Path("/dev").glob("nvidia*"))]
    return tuple(found)


def python_paths() -> tuple[str, ...]:
    """Return where this interpreter, its libraries and this program lie."""
    installed = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    ours = [str(Path(protocol.__file__ or "").parent), str(Path(__file__).parents[1])]
    return (*{sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix}, *installed, *ours)


def _drop_capabilities() -> None:
    """Keep nothing of root's powers; a process without any loses nothing.

    With them, Landlock or not, it would read the environment of every process (CAP_PERFMON, since Linux 6.15).
    """
    libc = _libc()
    header = ctypes.create_string_buffer(struct.pack("=Ii", _CAPABILITY_VERSION, 0))
    held = ctypes.create_string_buffer(24)
    _check(libc.capget(header, held))
    kept = struct.unpack("=6I", held.raw)[1] & _CAPABILITIES_KEPT
    _check(libc.capset(header, struct.pack("=6I", kept, kept, 0, 0, 0, 0)))


def _enter_landlock(jail: Jail) -> None:
    version = landlock_version()
    if version == 0:
        raise OSError(0, "the kernel has none or has it switched off")
    handled = (1 << _FS_BITS[min(version, max(_FS_BITS))]) - 1
    sizes = 24 if version >= _SCOPE_SINCE else 16 if version >= _NET_SINCE else 8
    attributes = struct.pack("QQQ", handled, _NET_ALL, _SCOPE_ALL)[:sizes]
    libc = _libc()
    rules = _check(libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(sizes), ctypes.c_uint32(0)))
    try:
        reading = _FS_READ | _FS_READ_DIR | (_FS_EXECUTE if jail.may_exec else 0)
        for path in jail.readable:
            _allow(rules, path, reading)
        for path in jail.writable:
            _allow(rules, path, handled)
        for device in ("/dev/null", "/dev/zero", *(str(it) for it in Path("/dev").glob("nvidia*"))):
            if device in jail.readable:
                _allow(rules, device, (_FS_READ | _FS_WRITE | _FS_IOCTL) & handled)
        _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _check(libc.syscall(_LANDLOCK_RESTRICT, rules, ctypes.c_uint32(0)))
    finally:
        os.close(rules)


def _allow(rules: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # not on this machine
    try:
        if not os.path.isdir(path):
            rights &= _FS_OF_FILE
        rule = struct.pack("=Qi", rights, opened)
        _check(_libc().syscall(_LANDLOCK_ADD, rules, _RULE_PATH_BENEATH, rule, ctypes.c_uint32(0)))
    finally:
        os.close(opened)


def _enter_seccomp(jail: Jail) -> None:
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise OSError(0, f"no table for {machine}")
    program = filter_program(ARCHITECTURES[machine], pid=os.getpid(), may_exec=jail.may_exec)
    code = ctypes.create_string_buffer(b"".join(program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    libc = _libc()
    _check(libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(header), 0, 0))


def filter_program(architecture: Architecture, *, pid: int, may_exec: bool) -> list[bytes]:
    """Return the filter's instructions (linux/filter.h): refuse what is listed, allow the rest."""
    refused: Iterable[str] = architecture.calls.keys() - (_COMPILING.keys() if may_exec else frozenset())
    program = [
        _step(_LOAD, _AT_ARCHITECTURE),
        _step(_JUMP_EQUAL, architecture.audit, then=1),
        _step(_RETURN, _KILL),  # the numbers of another architecture mean other calls
        _step(_LOAD, _AT_NUMBER),
        _step(_JUMP_GREATER_EQUAL, _X32_BIT, otherwise=1),
        _step(_RETURN, _KILL),
    ]
    for name in sorted(refused):
        program += [
            _step(_JUMP_EQUAL, architecture.calls[name], otherwise=1),
            _step(_RETURN, _ERRNO | _EPERM),
        ]
    for number in architecture.signals:
        program += _unless(number, _JUMP_EQUAL, pid)
    program += _unless(architecture.prlimit, _JUMP_EQUAL, 0)
    program += [
        _step(_JUMP_EQUAL, architecture.ioctl, otherwise=5),
        _step(_LOAD, _AT_SECOND_ARGUMENT),
        _step(_JUMP_EQUAL, _TIOCSTI, then=1),
        _step(_JUMP_EQUAL, _TIOCLINUX, otherwise=1),
        _step(_RETURN, _ERRNO | _EPERM),
        _step(_LOAD, _AT_NUMBER),
    ]
    if not may_exec:
        program += _unless(architecture.clone, _JUMP_SET, _CLONE_THREAD)
        # Its flags lie in memory, which a filter cannot read; the C library falls back to clone.
        program += [
            _step(_JUMP_EQUAL, architecture.clone3, otherwise=1),
            _step(_RETURN, _ERRNO | _ENOSYS),
        ]
    return [*program, _step(_RETURN, _ALLOW)]


def _unless(number: int, test: int, value: int) -> Iterator[bytes]:
    """Refuse a call unless the low word of its first argument passes the test; the number stays loaded."""
    yield _step(_JUMP_EQUAL, number, otherwise=4)
    yield _step(_LOAD, _AT_FIRST_ARGUMENT)
    yield _step(test, value, then=1)
    yield _step(_RETURN, _ERRNO | _EPERM)
    yield _step(_LOAD, _AT_NUMBER)


def _step(code: int, value: int, *, then: int = 0, otherwise: int = 0) -> bytes:
    return struct.pack("HBBI", code, then, otherwise, value)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
