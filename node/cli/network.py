"""``peers``, ``devices`` and ``advert``: who is there, with what."""

from typing import Any

import click

from node.cli.client import find_daemon
from node.cli.exits import CliError, Exit
from node.cli.gate import publish, withdraw
from node.cli.options import Globals, SoukCommand, SoukGroup, pass_globals
from node.cli.output import Payload, columns, duration, emit, facts, moment, note, short, size


@click.group(cls=SoukGroup, invoke_without_command=True)
@click.pass_context
def peers(ctx: click.Context) -> int:
    """List the peers, or connect to one."""
    return ctx.invoke(list_peers) if ctx.invoked_subcommand is None else Exit.DONE


@peers.command("ls")
@pass_globals
def list_peers(options: Globals) -> int:
    """List the peers that this node knows, with their models, load and prices (µc per million tokens)."""
    emit(options, find_daemon(options).get("/api/v1/peers"), rows="peers", table=_peers_table)
    return Exit.DONE


def _peers_table(payload: Payload) -> str:
    if not payload["peers"]:
        return "No peers yet. Give the address of one: souk serve --bootstrap ADDR, or souk peers connect ADDR."
    rows = [_peer_row(peer, offer) for peer in payload["peers"] for offer in peer.get("models") or [{}]]
    titles = ("NAME", "PEER", "STATE", "MODEL", "IN", "OUT", "TOK/S", "FREE", "QUEUE", "HEARD", "DEVICES")
    return columns(titles, rows)


def _peer_row(peer: dict[str, Any], offer: dict[str, Any]) -> list[object]:  # JSON of the daemon
    age_ms, queue_ms = peer.get("advert_age_ms"), peer.get("queue_ms")
    names = [
        str(d.get("name") or d.get("kind")) if isinstance(d, dict) else str(d) for d in peer.get("devices") or ()
    ]
    return [
        peer.get("name") or "-",
        short(peer.get("peer_id")),
        "connected" if peer.get("connected") else "known",
        offer.get("name"),
        offer.get("price_in"),
        offer.get("price_out"),
        offer.get("tokens_per_s"),
        "-" if peer.get("slots_total") is None else f"{peer.get('slots_free')}/{peer['slots_total']}",
        duration(None if queue_ms is None else queue_ms / 1000),
        duration(None if age_ms is None else age_ms / 1000),
        ", ".join(names) or "-",
    ]


@peers.command("connect")
@click.argument("address")
@pass_globals
def connect(options: Globals, address: str) -> int:
    """Dial a peer by its multiaddr, /ip4/…/tcp/…/p2p/PEER."""
    if not address.startswith("/") or "/p2p/" not in address:
        raise CliError(
            f"expected an address such as /ip4/192.0.2.1/tcp/11501/p2p/PEER, got {address!r}", Exit.USAGE
        )
    payload = find_daemon(options).request("POST", "/api/v1/connect", {"address": address})
    note(options, "connected")
    emit(options, payload, table=lambda answer: str(answer.get("peer_id")))
    return Exit.DONE


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
