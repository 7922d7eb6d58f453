"""``embed``, ``classify``, ``vad`` and ``forward``: jobs that make no text, bought and shown."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import click

from node.cli.answer import refusal_text
from node.cli.buying import CANCELLED, buying_options, souk_object
from node.cli.client import ApiError, find_daemon
from node.cli.completion import complete_model
from node.cli.exits import CliError, Exit
from node.cli.media import read_audio, read_lines, read_picture, read_tensor_file
from node.cli.numbers import Number
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, columns, duration, emit, facts, money, note, short, size
from protocol import limits

# As long as the daemon gives an order that says nothing else, and a while for its answer.
DEADLINE_S: Final = 600.0
ANSWER_S: Final = 60.0
_TEXT_SHOWN: Final = 48
_NUMBERS_SHOWN: Final = 4

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(cls=SoukCommand)
@click.argument("model", shell_complete=complete_model)
@click.argument("texts", metavar="[TEXT]…", nargs=-1)
@click.option("--file", "source", type=FILE, help="A file with a text on each line.")
@buying_options
@pass_globals
def embed(options: Globals, /, model: str, texts: tuple[str, ...], source: Path | None, **asked: Any) -> int:
    """Turn each TEXT into a vector of length 1; texts may come from a file or a pipe, one a line.

    For programs: -o jsonl prints {"index", "vector"} on a line for each text.
    """
    wanted = _texts(texts, source)
    answer = _buy(options, "embed", model, {"texts": wanted}, asked)
    emit(options, answer, rows="vectors", table=lambda found: _vectors_table(found, wanted))
    return Exit.DONE


@click.command(cls=SoukCommand)
@click.argument("model", shell_complete=complete_model)
@click.argument("image", type=FILE)
@click.option("--top", type=click.IntRange(1, limits.CLASSES_MAX), default=5, show_default=True, help="Classes.")
@buying_options
@pass_globals
def classify(options: Globals, /, model: str, image: Path, top: int, **asked: Any) -> int:  # click's values
    """Say what is on IMAGE, the likeliest first.

    The file is read and made smaller here, with Pillow (pip install 'souk[images]'); its pixels travel.
    """
    body = {"images": [read_picture(image)], "top": top}
    emit(options, _buy(options, "classify", model, body, asked), rows="images", table=_classes_table)
    return Exit.DONE


@click.command(cls=SoukCommand)
@click.argument("model", shell_complete=complete_model)
@click.argument("file", metavar="FILE.wav", type=FILE)
@click.option("--threshold", type=Number(0, 1), default=0.5, show_default=True, help="Speech from this chance on.")
@buying_options
@pass_globals
def vad(options: Globals, /, model: str, file: Path, threshold: float, **asked: Any) -> int:  # click's values
    """Find the speech in FILE.wav: one channel, 16 bits, 16 kHz, at most 32 seconds."""
    body = {"samples": read_audio(file), "threshold": threshold}
    answer = _buy(options, "vad", model, body, asked)
    emit(options, answer, rows="segments", table=_segments_table)
    return Exit.DONE


@click.command(cls=SoukCommand)
@click.argument("model", shell_complete=complete_model)
@click.argument("source", metavar="IN.safetensors", type=FILE)
@click.argument("target", metavar="OUT.safetensors", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--max-bytes",
    type=click.IntRange(1, limits.INPUT_BYTES_MAX),
    default=limits.INPUT_BYTES_MAX,
    show_default=True,
    help="Bytes of the answer, at most.",
)
@buying_options
@pass_globals
def forward(
    options: Globals, /, model: str, source: Path, target: Path, max_bytes: int, **asked: Any
) -> int:  # click's values
    """Run the tensors of IN.safetensors through MODEL and write what comes out to OUT.safetensors.

    Specification 04, section 8, says which tensors each architecture takes.
    """
    import base64

    # Known before anything is paid.
    if not target.parent.is_dir():
        raise CliError(f"{target}: there is no folder {target.parent}", Exit.USAGE)
    body = {"tensors": read_tensor_file(source), "output_bytes_max": max_bytes}
    answer = _buy(options, "forward", model, body, asked)
    data = base64.b64decode(answer.pop("tensors"))
    target.write_bytes(data)
    payload = {**answer, "file": str(target), "bytes": len(data)}
    emit(options, payload, table=lambda it: facts([("file", it["file"]), ("size", size(it["bytes"]))]))
    return Exit.DONE


def _buy(
    options: Globals, task: str, model: str, body: Mapping[str, Any], asked: Mapping[str, Any]
) -> dict[str, Any]:  # JSON of the daemon, shown and not judged
    """Order one job, wait for it and say on standard error what it cost. Ctrl-C ends it at the peer.

    Raises:
        CliError: the daemon or the market refused.
    """
    wait_s = (asked["deadline"] or DEADLINE_S) + ANSWER_S
    wanted = {"model": model, **body, "souk": souk_object(asked)}
    try:
        answer = find_daemon(options).request("POST", f"/api/v1/tasks/{task}", wanted, wait_s=wait_s)
    except KeyboardInterrupt:
        raise CliError(CANCELLED, Exit.INTERRUPTED) from None
    except ApiError as exc:
        raise CliError(refusal_text(exc), exc.code) from exc
    souk = answer["souk"]
    who, cost = short(souk.get("peer")), money(souk.get("cost_microcredits"))
    note(options, f"answered by {who} · {cost} · {duration(souk.get('duration_ms', 0) / 1000)}")
    return answer


def _texts(texts: tuple[str, ...], source: Path | None) -> list[str]:
    if texts and source is not None:
        raise CliError("expected either TEXT or --file, got both", Exit.USAGE)
    if texts:
        return list(texts)
    if source is not None:
        return read_lines(source.read_bytes(), str(source))
    if sys.stdin.isatty():
        raise CliError('no text: souk embed MODEL "…", --file FILE, or pipe it in, a text a line', Exit.USAGE)
    return read_lines(sys.stdin.buffer.read(), "standard input")


def _vectors_table(payload: Payload, texts: list[str]) -> str:
    rows = [
        (
            texts[it["index"]][:_TEXT_SHOWN],
            len(it["vector"]),
            " ".join(f"{value:+.4f}" for value in it["vector"][:_NUMBERS_SHOWN]),
        )
        for it in payload["vectors"]
    ]
    return columns(("TEXT", "NUMBERS", "BEGINS WITH"), rows)


def _classes_table(payload: Payload) -> str:
    rows = [
        (it["label"] or f"class {it['index']}", it["index"], 100 * it["probability"])
        for image in payload["images"]
        for it in image["classes"]
    ]
    return columns(("CLASS", "INDEX", "%"), rows)


def _segments_table(payload: Payload) -> str:
    rows = [(f"{it['start_ms'] / 1000:.2f}", f"{it['end_ms'] / 1000:.2f}") for it in payload["segments"]]
    return columns(("FROM s", "TO s"), rows) if rows else "no speech"
