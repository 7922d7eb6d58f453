"""``run``: one prompt in, one answer out. Only the answer goes to standard output."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from node.cli.answer import Answer, phase_text, refusal_text, stream_answer
from node.cli.buying import CANCELLED, buying_options, souk_object
from node.cli.client import ApiError, find_daemon
from node.cli.completion import complete_model
from node.cli.exits import CliError, Exit
from node.cli.numbers import Number
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import harmless, note

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_CLEAR_LINE: Final = "\r\x1b[2K"


@click.command(cls=SoukCommand)
@click.argument("model", shell_complete=complete_model)
@click.argument("prompt", required=False)
@click.option("--file", "source", type=FILE, help="A file with the prompt; what it is about may stand in PROMPT.")
@click.option("--system", metavar="TEXT", help="What the model is told about its task.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Tokens of the answer, at most.")
@click.option("--temperature", type=Number(0, 2), help="0 takes the likeliest token every time.")
@click.option("--top-p", type=Number(0, 1), help="Sample from the likeliest tokens of this mass.")
@click.option("--seed", type=int, help="The same seed gives the same answer on the same device.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text; may be repeated.")
@buying_options
@click.option("--timings", is_flag=True, help="Say who answered, for how much and how fast.")
@pass_globals
def run(
    options: Globals, /, model: str, prompt: str | None, source: Path | None, timings: bool, **asked: Any
) -> int:  # click's values
    """Ask MODEL and print its answer as it comes; the PROMPT may come from a pipe, or with --file from a file.

    With both a PROMPT and a file, the PROMPT comes first, then an empty line and the file.

    Without a PROMPT on a terminal it is a conversation. Ctrl-C ends the job at the peer; what was generated until
    then is paid.
    """
    daemon, system = find_daemon(options), asked["system"]
    first = [{"role": "system", "content": system}] if system else []

    def ask(messages: list[dict[str, str]], on_text: Callable[[str], None]) -> Answer:
        show = _Display(options, on_text)
        try:
            answer = stream_answer(daemon, _body(model, messages, asked), on_text=show.text, on_phase=show.phase)
        finally:
            show.end()
        if timings:
            print(answer.timings(), file=sys.stderr)
        return answer

    if source is not None:
        prompt = _with_file(prompt, source)
    if prompt is None and sys.stdin.isatty():
        return _converse(options, ask, first)
    try:
        answer = ask([*first, {"role": "user", "content": _prompt(prompt)}], _ignore)
    except KeyboardInterrupt:
        raise CliError(CANCELLED, Exit.INTERRUPTED) from None
    except ApiError as exc:
        raise CliError(refusal_text(exc), exc.code) from exc
    if options.output == "json":
        print(json.dumps(answer.as_json(), indent=2, ensure_ascii=False))
    elif options.output == "jsonl":
        print(json.dumps({"event": "finished"} | answer.as_json(), ensure_ascii=False))
    return Exit.DONE


def _converse(
    options: Globals,
    ask: Callable[[list[dict[str, str]], Callable[[str], None]], object],
    first: list[dict[str, str]],
) -> int:
    if options.output != "table" or not sys.stdout.isatty():
        raise CliError('no prompt: souk run MODEL "…", or pipe it in', Exit.USAGE)
    from node.cli.chat import chat

    return chat(ask, first)


def _ignore(_text: str) -> None:
    pass


def _with_file(prompt: str | None, source: Path) -> str:
    text = _decoded(source.read_bytes(), f"the prompt in {source}")
    return text if prompt is None else f"{prompt}\n\n{text}"


def _prompt(argument: str | None) -> str:
    if argument is not None:
        return argument
    return _decoded(sys.stdin.buffer.read(), "the prompt that was piped in")


def _decoded(data: bytes, what: str) -> str:
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise CliError(f"{what} is not UTF-8 text: {exc}", Exit.USAGE) from exc
    if not text.strip():
        raise CliError(f"{what} is empty", Exit.USAGE)
    return text


def _body(model: str, messages: list[dict[str, str]], asked: Mapping[str, Any]) -> dict[str, Any]:  # a JSON body
    body = {
        "model": model,
        "messages": messages,
        "max_tokens": asked["max_tokens"],
        "temperature": asked["temperature"],
        "top_p": asked["top_p"],
        "seed": asked["seed"],
        "stop": list(asked["stop"]) or None,
        "souk": souk_object(asked),
    }
    return {name: value for name, value in body.items() if value is not None}


class _Display:
    """Phases on standard error, rewritten in place where a person looks; the answer on standard output."""

    def __init__(self, options: Globals, on_text: Callable[[str], None]) -> None:
        self._options = options
        self._on_text = on_text
        self._rewrites = sys.stderr.isatty() and not options.quiet
        self._phase_open = False
        self._text_open = False

    def phase(self, phase: Mapping[str, Any]) -> None:  # JSON of the daemon
        if self._options.output == "jsonl":
            print(json.dumps({"event": "phase"} | dict(phase), ensure_ascii=False), flush=True)
        elif self._rewrites:
            print(f"{_CLEAR_LINE}{phase_text(phase)}", end="", file=sys.stderr, flush=True)
            self._phase_open = True
        else:
            note(self._options, phase_text(phase))

    def text(self, piece: str) -> None:
        self._on_text(piece)
        self._clear()
        if self._options.output == "jsonl":
            print(json.dumps({"event": "text", "text": piece}, ensure_ascii=False), flush=True)
        elif self._options.output == "table":
            print(harmless(piece, keep="\n\t") if sys.stdout.isatty() else piece, end="", flush=True)
            self._text_open = not piece.endswith("\n")

    def end(self) -> None:
        self._clear()
        if self._text_open:
            print(flush=True)
            self._text_open = False

    def _clear(self) -> None:
        if self._phase_open:
            print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
            self._phase_open = False
