"""``wire decode``: a message of the protocol as JSON, its signature and form judged."""

import json
import re
import string
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, emit

INPUT_BYTES_MAX: Final = 64 << 20


@click.group(cls=SoukGroup)
def wire() -> None:
    """Read messages of the protocol."""


@wire.command("decode")
@click.argument("source", metavar="FILE|HEX|-")
@pass_globals
def decode(options: Globals, source: str) -> int:
    """Show an envelope (bytes or hex), or each of a bundle's; ends with 1 when one is refused."""
    from protocol.errors import RemoteProtocolError
    from protocol.evidence import describe_untrusted

    found: list[Mapping[str, object]] = []
    refused = False
    for raw in _envelopes(_read(source)):
        try:
            found.append(describe_untrusted(raw))
        except RemoteProtocolError as exc:
            refused = True
            found.append({"refused": str(exc), "reason": exc.reason.value, "bytes": len(raw)})
    emit(options, {"schema": 1, "messages": found}, rows="messages", table=_table)
    return Exit.FAILED if refused else Exit.DONE


def _read(source: str) -> bytes:
    path = Path(source)
    try:
        if source == "-":
            return sys.stdin.buffer.read(INPUT_BYTES_MAX)
        # A long hex text is no possible file name: asking the system for it raises.
        if len(source) < 256 and path.is_file():
            return path.read_bytes()[:INPUT_BYTES_MAX]
    except OSError as exc:
        raise CliError(f"{source} cannot be read: {exc.strerror}") from exc
    if _from_hex(source.encode()) is None:
        raise CliError(f"expected a file, hex digits or -, got {source[:60]!r}", Exit.USAGE)
    return source.encode()


def _envelopes(data: bytes) -> list[bytes]:
    """Return the envelopes in ``data``: of a JSON bundle, one in hex, or one as it travels."""
    if data.lstrip()[:1] == b"{":
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as exc:
            raise CliError(f"this is no bundle of messages: not JSON: {exc}") from exc
        try:
            bundle = value.get("bundle", value)
            return [bytes.fromhex(message["envelope"]) for message in bundle["messages"]]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise CliError(
                'this JSON is no bundle of messages: expected {"messages": [{"envelope": "HEX"}, …]}, as '
                "souk receipts show -o json prints it"
            ) from exc
    decoded = _from_hex(data)
    return [data if decoded is None else decoded]


def _from_hex(data: bytes) -> bytes | None:
    digits = re.sub(rb"\s", b"", data)
    if not digits or len(digits) % 2 or set(digits) - set(string.hexdigits.encode()):
        return None
    return bytes.fromhex(digits.decode())


def _table(payload: Payload) -> str:
    return "\n".join(json.dumps(message, indent=2, ensure_ascii=False) for message in payload["messages"])
