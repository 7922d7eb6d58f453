"""``quote``: what each peer would take for a job, binding for a few seconds, without buying it."""

from typing import Any

import click

from node.cli.client import find_daemon
from node.cli.completion import complete_model
from node.cli.exits import Exit
from node.cli.options import Globals, SoukCommand, pass_globals
from node.cli.output import Payload, columns, duration, emit, short, size


@click.command(cls=SoukCommand)
@click.argument("model", shell_complete=complete_model)
@click.option("--prompt-tokens", "--in", "tokens_in", type=click.IntRange(min=1), default=1000, show_default=True)
@click.option("--max-tokens", "--out", "tokens_out", type=click.IntRange(min=1), default=512, show_default=True)
@pass_globals
def quote(options: Globals, model: str, tokens_in: int, tokens_out: int) -> int:
    """Ask every peer that has MODEL for its price; nothing runs, and nothing is paid.

    Each offer holds a place at its peer until it lapses. Ends with 5 when nobody has the model, with 6 when
    nobody makes an offer.
    """
    body = {"model": model, "prompt_tokens": tokens_in, "max_tokens": tokens_out}
    payload = find_daemon(options).request("POST", "/api/v1/quote", body)
    emit(options, payload, rows="quotes", table=quotes_table)
    return Exit.DONE if any(it.get("code") is None for it in payload["quotes"]) else Exit.NOBODY_WILLING


def quotes_table(payload: Payload) -> str:
    """Return the offers and refusals of ``quote`` as a table."""
    titles = ("PEER", "AT MOST µc", "IN", "OUT", "FIRST TOKEN", "MEMORY", "HOLDS", "")
    return columns(titles, [_row(it) for it in payload["quotes"]])


def _row(it: dict[str, Any]) -> list[object]:  # JSON of the daemon
    first_ms, hold_ms = it.get("first_token_ms"), it.get("hold_ms")
    return [
        short(it.get("peer_id")),
        it.get("price_max_microcredits"),
        it.get("price_in"),
        it.get("price_out"),
        duration(None if first_ms is None else first_ms / 1000),
        size(it.get("memory_bytes")),
        duration(None if hold_ms is None else hold_ms / 1000),
        "" if it.get("code") is None else f"{it['code']}: {it.get('message')}",
    ]
