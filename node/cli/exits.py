"""How a command ends: the exit codes that scripts rely on, and the error that carries one."""

from enum import IntEnum


class Exit(IntEnum):
    """Every code that ``souk`` ends with; a number never changes its meaning."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    CONFIG = 3
    UNREACHABLE = 4
    UNKNOWN = 5
    NOBODY_WILLING = 6
    DEADLINE = 7
    TOKEN = 8
    LOCKED = 9
    INTERRUPTED = 130


class CliError(Exception):
    """Ends the command: the text goes to standard error, the code to the shell."""

    def __init__(self, message: str, code: Exit = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code
