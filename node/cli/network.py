"""``devices`` and ``advert``: what this node has, and what it tells the network of it."""

from typing import Any

import click

from node.cli.client import find_daemon
from node.cli.exits import Exit
from node.cli.gate import publish, withdraw
from node.cli.options import Globals, SoukCommand, SoukGroup, pass_globals
from node.cli.output import Payload, columns, emit, facts, moment, size


@click.command(cls=SoukCommand)
@pass_globals
def devices(options: Globals) -> int:
    """List this node's devices, what was measured on them, and their models: advertised and delivered speed."""
    emit(options, find_daemon(options).get("/api/v1/devices"), rows="devices", table=_devices_table)
    return Exit.DONE


def _devices_table(payload: Payload) -> str:
    if not payload["devices"]:
        return "No devices in use: no model is loaded, or this node only buys (node.role = client)."
    rows = [
        [
            f"{device.get('kind')}:{device.get('index')}",
            device.get("name"),
            device.get("architecture"),
            size(device.get("memory_free_bytes")),
            size(device.get("memory_total_bytes")),
            " ".join(device.get("dtypes") or ()),
            device.get("matmul_gflops"),
            device.get("read_mb_per_s"),
            device.get("power_watts"),
            device.get("temperature_celsius"),
            device.get("foreign_processes"),
        ]
        for device in payload["devices"]
    ]
    titles = ("DEVICE", "NAME", "ARCH", "FREE", "TOTAL", "DTYPES", "GFLOPS", "READ MB/S", "W", "°C", "OTHERS")
    models = [
        _served_row(f"{device.get('kind')}:{device.get('index')}", model)
        for device in payload["devices"]
        for model in device.get("models") or ()
    ]
    served = ("DEVICE", "MODEL", "STATE", "MEMORY", "CONTEXT", "TOK/S", "DELIVERED")
    return columns(titles, rows) + ("\n\n" + columns(served, models) if models else "")


def _served_row(device: str, model: dict[str, Any]) -> list[object]:  # JSON of the daemon
    lacks = model.get("lacks")
    state = f"waits for {lacks}" if lacks else "loaded" if model.get("loaded") else "on demand"
    return [
        device,
        model.get("name"),
        state,
        size(model.get("memory_bytes")),
        model.get("context_tokens"),
        model.get("tokens_per_s"),
        model.get("delivered_tokens_per_s"),
    ]


@click.group(cls=SoukGroup, commands={"publish": publish, "withdraw": withdraw})
def advert() -> None:
    """Show what this node tells the network, take it back, or tell it again."""


@advert.command("show")
@pass_globals
def show_advert(options: Globals) -> int:
    """Show the advert that this node last signed."""
    emit(options, find_daemon(options).get("/api/v1/advert"), table=_advert_table)
    return Exit.DONE


def _advert_table(payload: Payload) -> str:
    found = payload.get("advert")
    if not found:
        return "No advert: this node offers nothing (no model loaded, or node.role = client)."
    return facts(_flat(found))


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:  # JSON of the daemon
    pairs: list[tuple[str, object]] = []
    for key, item in value.items():
        if isinstance(item, dict):
            pairs += _flat(item, f"{prefix}{key}.")
        elif isinstance(item, list) and any(isinstance(part, dict) for part in item):
            for number, part in enumerate(item):
                pairs += _flat(part, f"{prefix}{key}.{number}.")
        elif key.endswith("_at_ms") and isinstance(item, int):
            pairs.append((f"{prefix}{key.removesuffix('_ms')}", moment(item)))
        else:
            pairs.append((f"{prefix}{key}", ", ".join(map(str, item)) if isinstance(item, list) else item))
    return pairs
