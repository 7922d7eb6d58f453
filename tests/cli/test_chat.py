"""The chat over a pseudo-terminal, as a person has it: the real command, a daemon that is scripted."""

import json
import os
import pty
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cli.fakes import FakeDaemon, chunk, last_chunk

pytestmark = pytest.mark.slow
ANSWER = (chunk("Hello"), chunk(" there"), chunk(finish="stop"), last_chunk())
WAIT_S = 20.0


class Terminal:
    """What a person types into and reads from."""

    def __init__(self, master: int, pid: int) -> None:
        self.master, self.pid = master, pid
        self.seen = ""

    def read_until(self, text: str) -> str:
        """Return all up to and with ``text``, and forget it."""
        ends = time.monotonic() + WAIT_S
        while text not in self.seen:
            assert time.monotonic() < ends, self.seen
            self.seen += os.read(self.master, 4096).decode()
        at = self.seen.index(text) + len(text)
        read, self.seen = self.seen[:at], self.seen[at:]
        return read

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def end(self) -> int:
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


@contextmanager
def chatting(*arguments: str) -> Iterator[Terminal]:
    pid, master = pty.fork()
    if not pid:
        os.environ["TERM"] = "dumb"
        os.execv(sys.executable, [sys.executable, "-m", "node.cli", "run", "m", *arguments])
    terminal = Terminal(master, pid)
    try:
        terminal.read_until(">>> ")
        yield terminal
    finally:
        os.close(master)


def messages(daemon: FakeDaemon) -> list[tuple[str, str]]:
    return [(it["role"], it["content"]) for it in daemon.body["messages"]]


def test_chat_remembers_the_conversation_until_it_is_cleared(daemon: FakeDaemon) -> None:
    daemon.stream(*ANSWER)
    with chatting("--system", "terse") as terminal:
        terminal.type("one\n")
        assert "Hello there" in terminal.read_until(">>> ")
        terminal.type("two\n")
        terminal.read_until(">>> ")
        assert messages(daemon) == [
            ("system", "terse"), ("user", "one"), ("assistant", "Hello there"), ("user", "two"),
        ]  # fmt: skip
        terminal.type("/clear\n")
        terminal.read_until(">>> ")
        terminal.type("three\n")
        terminal.read_until(">>> ")
        assert messages(daemon) == [("system", "terse"), ("user", "three")]
        terminal.type("/exit\n")
        assert terminal.end() == 0


def test_chat_takes_messages_of_several_lines(daemon: FakeDaemon) -> None:
    daemon.stream(*ANSWER)
    with chatting() as terminal:
        terminal.type("a\\\nb\n")
        terminal.read_until("Hello there")
        assert messages(daemon)[-1] == ("user", "a\nb")
        terminal.read_until(">>> ")
        terminal.type('"""c\nd\\\n\n/exit"""\n')
        terminal.read_until("Hello there")
        assert messages(daemon)[-1] == ("user", "c\nd\\\n\n/exit")
        terminal.read_until(">>> ")
        terminal.type("\x04")
        assert terminal.end() == 0


def test_chat_goes_on_after_an_answer_was_cancelled_or_refused(daemon: FakeDaemon) -> None:
    def hold() -> None:
        """The answer hangs from here on, until the client has gone."""

    with chatting() as terminal:
        daemon.answer("POST /v1/chat/completions", [f"data: {json.dumps(chunk('Hel'))}", hold])
        terminal.type("one\n")
        terminal.read_until("Hel")
        terminal.type("\x03")
        assert "cancelled" in terminal.read_until(">>> ")
        assert daemon.client_gone.wait(WAIT_S)
        refusal: dict[str, Any] = {"error": {"message": "no model m", "code": "model_not_found"}}
        daemon.answer("POST /v1/chat/completions", json.loads(json.dumps(refusal)), 404)
        terminal.type("two\n")
        assert "no model m" in terminal.read_until(">>> ")
        daemon.stream(*ANSWER)
        terminal.type("/nothing\n")
        assert "no command" in terminal.read_until(">>> ")
        terminal.type("three\n")
        terminal.read_until(">>> ")
        assert messages(daemon) == [("user", "one"), ("assistant", "Hel"), ("user", "three")]
        terminal.type("\x03")
        terminal.read_until(">>> ")
        terminal.type("\x04")
        assert terminal.end() == 0
