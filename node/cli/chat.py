"""``run`` on a terminal without a prompt: a conversation that the model sees whole; Ctrl-C ends an answer."""

import contextlib
import sys
from collections.abc import Callable
from typing import Final

from node.cli.answer import refusal_text
from node.cli.client import ApiError
from node.cli.exits import Exit

PROMPT: Final = ">>> "
MORE: Final = "... "
FENCE: Final = '"""'
HELP: Final = """\
/clear    forget the conversation      /exit or Ctrl-D   leave
a trailing \\ or a pair of \"\"\" makes a message of several lines; Ctrl-C ends an answer"""

Message = dict[str, str]


Send = Callable[[list[Message], Callable[[str], None]], object]
"""Ask with these messages, show the answer, and tell its pieces as they come."""


def chat(send: Send, first: list[Message]) -> Exit:
    """Converse until /exit or the end of input; ``first`` (a system message) stays at the top of every question.

    Raises: CliError: the daemon is gone, or what else no further question could mend.
    """
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  arrows and history in input()
    _say("/help tells what there is besides asking")
    messages = [*first]
    while (text := read_message()) is not None:
        match text.strip():
            case "":
                continue
            case "/exit" | "/quit" | "/bye":
                return Exit.DONE
            case "/clear":
                messages = [*first]
                _say("forgotten")
            case "/help" | "/?":
                _say(HELP)
            case command if command.startswith("/") and "\n" not in command and " " not in command:
                _say(f"no command is called {command}\n{HELP}")
            case _:
                messages = _exchange(send, messages, text)
    print()
    return Exit.DONE


def _exchange(send: Send, messages: list[Message], text: str) -> list[Message]:
    """Return the conversation after one question: with the answer as far as it came, without both if none did."""
    asked = [*messages, {"role": "user", "content": text}]
    pieces: list[str] = []
    try:
        send(asked, pieces.append)
    except KeyboardInterrupt:
        _say("cancelled: the job ends, what came of the answer is kept")
    except ApiError as exc:
        hint = "\n  /clear forgets the conversation" if exc.api_code == "context_length_exceeded" else ""
        _say(f"{refusal_text(exc)}{hint}")
    return [*asked, {"role": "assistant", "content": "".join(pieces)}] if pieces else messages


def read_message() -> str | None:
    """Return what the person says, of several lines if they ask for it; None at the end of input."""
    lines: list[str] = []
    fenced = False
    while True:
        try:
            line = input(MORE if lines or fenced else PROMPT)
        except EOFError:
            return "\n".join(lines) if lines else None
        except KeyboardInterrupt:
            print()
            if not lines and not fenced:
                _say("/exit or Ctrl-D leaves")
            lines, fenced = [], False
            continue
        if not fenced and not lines and line.lstrip().startswith(FENCE):
            fenced, line = True, line.lstrip().removeprefix(FENCE)
        if fenced and line.rstrip().endswith(FENCE):
            return "\n".join([*lines, line.rstrip().removesuffix(FENCE)]).strip("\n")
        if not fenced and not line.endswith("\\"):
            return "\n".join([*lines, line])
        lines.append(line if fenced else line.removesuffix("\\"))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
