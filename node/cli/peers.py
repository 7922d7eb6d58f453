"""``peers``: who is there, one of them in full, ping, and with whom this node has to do."""

from statistics import median
from typing import Any, Final
from urllib.parse import quote

import click

from node.cli.client import ApiError, Daemon, find_daemon
from node.cli.completion import complete_peer
from node.cli.exits import CliError, Exit
from node.cli.options import Globals, SoukGroup, pass_globals
from node.cli.output import Payload, columns, duration, emit, facts, harmless, moment, money, note, short, size

STATES: Final = ("connected", "known", "banned")
SORTS: Final = ("name", "price", "speed", "queue", "heard")
PEER_ID_CHARS: Final = 52
PEER_ID_START: Final = "12D3KooW"
# All ids begin alike: below so many characters more, a prefix says nothing.
PART_CHARS_MIN: Final = 4
# The peer's fault and not the user's: a ping that got no answer.
_UNANSWERED: Final = ("unreachable", "no_answer")

Peer = dict[str, Any]  # JSON of the daemon, shown and not judged


@click.group(cls=SoukGroup, invoke_without_command=True)
@click.pass_context
def peers(ctx: click.Context) -> int:
    """List the peers, look at one, connect, ping, ban.

    PEER is an id, the beginning or end of one, or the name in its advert, if that means one peer.
    """
    return ctx.invoke(list_peers) if ctx.invoked_subcommand is None else Exit.DONE


@peers.command("ls")
@click.option("--state", type=click.Choice(STATES), help="Only those in this state; known: by an advert alone.")
@click.option("--model", metavar="NAME", help="Only those that offer this model, by name or the start of its id.")
@click.option("--sort", type=click.Choice(SORTS), default="name", show_default=True, help="The best first.")
@click.option("--limit", type=click.IntRange(1), help="The first so many.")
@pass_globals
def list_peers(
    options: Globals,
    state: str | None = None,
    model: str | None = None,
    sort: str = "name",
    limit: int | None = None,
) -> int:
    """List the peers that this node knows, with their models, load and prices (µc per million tokens)."""
    payload = find_daemon(options).get("/api/v1/peers")
    shown = [
        peer
        for peer in payload["peers"]
        if (state is None or _state(peer) == state) and (model is None or _offers(peer, model))
    ]
    if sort != "name":
        shown.sort(key=lambda peer: _rank(peer, sort, model))
    if payload["peers"] and not shown:
        note(options, "no peer is like that; souk peers lists all")
        shown, empty = [], ""
    else:
        empty = "No peers yet. Give the address of one: souk serve --bootstrap ADDR, or souk peers connect ADDR."
    found = {**payload, "peers": shown[:limit]}
    emit(options, found, rows="peers", table=lambda it: _peers_table(it["peers"], model) if it["peers"] else empty)
    return Exit.DONE


def _offers(peer: Peer, model: str | None) -> list[dict[str, Any]]:
    """Return what a peer offers, of one model if it is named."""
    return [
        offer
        for offer in peer.get("models") or []
        if model is None
        or model == offer.get("name")
        or (len(model) >= 8 and str(offer.get("model_id")).startswith(model.lower()))
    ]


def _rank(peer: Peer, sort: str, model: str | None) -> tuple[bool, float]:
    """Return where a peer stands in the list; those that do not say come last."""
    match sort:
        case "price":
            values = [offer["price_out"] for offer in _offers(peer, model)]
        case "speed":
            values = [-offer["tokens_per_s"] for offer in _offers(peer, model)]
        case _:
            value = peer.get({"queue": "queue_ms", "heard": "advert_age_ms"}[sort])
            values = [] if value is None else [value]
    return not values, min(values, default=0)


def _peers_table(found: list[Peer], model: str | None) -> str:
    rows = [_peer_row(peer, offer) for peer in found for offer in _offers(peer, model) or [{}]]
    titles = ("NAME", "PEER", "STATE", "MODEL", "IN", "OUT", "TOK/S", "FREE", "QUEUE", "HEARD", "DEVICES")
    return columns(titles, rows)


def _state(peer: Peer) -> str:
    return "banned" if peer.get("ban") else "connected" if peer.get("connected") else "known"


def _peer_row(peer: Peer, offer: dict[str, Any]) -> list[object]:  # JSON of the daemon
    return [
        peer.get("name") or "-",
        short(peer.get("peer_id")),
        _state(peer),
        offer.get("name"),
        offer.get("price_in"),
        offer.get("price_out"),
        offer.get("tokens_per_s"),
        "-" if peer.get("slots_total") is None else f"{peer.get('slots_free')}/{peer['slots_total']}",
        _ms(peer.get("queue_ms")),
        _ms(peer.get("advert_age_ms")),
        ", ".join(map(_device, peer.get("devices") or ())) or "-",
    ]


def _device(device: Any) -> str:  # JSON of the daemon
    return str(device.get("name") or device.get("kind")) if isinstance(device, dict) else str(device)


def _ms(value: float | None) -> str:
    return duration(None if value is None else value / 1000)


def _rtt(value: float) -> str:
    """Return a round trip; between machines of one room it is a part of a millisecond."""
    return f"{value:.1f} ms"


@peers.command("show")
@click.argument("peer", shell_complete=complete_peer)
@pass_globals
def show(options: Globals, peer: str) -> int:
    """Show all that is known of PEER: addresses, connections, advert, accounts, ban; 5 when there is none."""
    daemon = find_daemon(options)
    emit(options, daemon.get(_path(find_peer(daemon, peer))), table=_peer_text)
    return Exit.DONE


def _peer_text(payload: Payload) -> str:
    peer, account = payload["peer"], payload.get("account") or {}
    ban = peer.get("ban")
    links = [_link_text(link) for link in payload.get("connections") or ()]
    slots = None if peer.get("slots_total") is None else f"{peer.get('slots_free')} of {peer['slots_total']} free"
    pairs: list[tuple[str, object]] = [
        ("peer", peer.get("peer_id")),
        ("name", peer.get("name")),
        ("state", _state(peer)),
        ("banned", f"{moment(ban['since_ms'])}  {ban['reason']}".rstrip() if ban else None),
        *(("connection", link) for link in links),
        *(("address", address) for address in payload.get("addresses") or ()),
        ("protocol", ", ".join(map(str, payload.get("versions") or ())) or None),
        ("speaks", ", ".join(payload.get("protocols") or ()) or None),
        ("advert", None if peer.get("advert_age_ms") is None else f"{_ms(peer['advert_age_ms'])} old"),
        ("slots", slots),
        ("queue", None if peer.get("queue_ms") is None else _ms(peer["queue_ms"])),
        *(("device", _device_text(device)) for device in peer.get("devices") or ()),
    ]
    if account:
        pairs += [
            ("earned", money(account.get("earned_microcredits"))),
            ("spent", money(account.get("spent_microcredits"))),
            ("it owes", money(account.get("unpaid_by_them_microcredits"))),
            ("we owe", money(account.get("unpaid_by_us_microcredits"))),
            ("sold to it", _counts(account.get("sold"))),
            ("bought there", _counts(account.get("bought"))),
            ("last contract", moment(account.get("last_ms"))),
        ]
    offers = [
        [it.get("name"), it.get("context_tokens"), it.get("price_in"), it.get("price_out"), it.get("tokens_per_s")]
        for it in peer.get("models") or ()
    ]
    table = columns(("MODEL", "CONTEXT", "IN", "OUT", "TOK/S"), offers)
    return facts(pairs) + (f"\n\n{table}" if offers else "")


def _link_text(link: dict[str, Any]) -> str:  # JSON of the daemon
    who = "it dialled" if link.get("inbound") else "we dialled"
    # The keep-alive measures after some seconds.
    rtt = "" if link.get("rtt_ms") is None else f", round trip {_rtt(link['rtt_ms'])}"
    return f"{link.get('address')} ({who}{rtt})"


def _device_text(device: Any) -> str:  # JSON of the daemon
    if not isinstance(device, dict):
        return str(device)
    free, total = size(device.get("memory_free_bytes")), size(device.get("memory_total_bytes"))
    return f"{_device(device)}, {free} of {total} free"


def _counts(states: dict[str, int] | None) -> str | None:
    return ", ".join(f"{count} {state}" for state, count in (states or {}).items()) or None


@peers.command("ping")
@click.argument("peer", shell_complete=complete_peer)
@click.option("-c", "--count", type=click.IntRange(1, 1000), default=3, show_default=True, help="So many times.")
@pass_globals
def ping(options: Globals, peer: str, count: int) -> int:
    """Measure round trips to PEER, dialling it if need be; 1 when nothing came back."""
    daemon = find_daemon(options)
    peer_id = find_peer(daemon, peer)
    rtts: list[float] = []
    for number in range(1, count + 1):
        try:
            rtts.append(daemon.request("POST", _path(peer_id, "ping"))["rtt_ms"])
            note(options, f"{number}: {_rtt(rtts[-1])}")
        except ApiError as exc:
            if exc.api_code not in _UNANSWERED:
                raise
            note(options, f"{number}: {harmless(str(exc))}")
    found = {
        "schema": 1,
        "peer_id": peer_id,
        "sent": count,
        "answered": len(rtts),
        "rtt_ms": rtts,
        "rtt_ms_min": min(rtts, default=None),
        "rtt_ms_median": median(rtts) if rtts else None,
        "rtt_ms_max": max(rtts, default=None),
    }
    emit(options, found, table=_ping_text)
    return Exit.DONE if rtts else Exit.FAILED


def _ping_text(found: Payload) -> str:
    said = f"{short(found['peer_id'])}: {found['answered']} of {found['sent']} answered"
    if found["answered"]:
        trips = (_rtt(found[f"rtt_ms_{name}"]) for name in ("min", "median", "max"))
        said += "; least {}, median {}, most {}".format(*trips)
    return said


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
    emit(options, payload, table=_id_text)
    return Exit.DONE


@peers.command("disconnect")
@click.argument("peer", shell_complete=complete_peer)
@pass_globals
def disconnect(options: Globals, peer: str) -> int:
    """Close the connections to PEER; either side may dial again (`souk peers ban` keeps it out)."""
    daemon = find_daemon(options)
    payload = daemon.request("POST", _path(find_peer(daemon, peer), "disconnect"))
    note(options, "disconnected" if payload.get("was_connected") else "was not connected")
    emit(options, payload, table=_id_text)
    return Exit.DONE


@peers.command("ban")
@click.argument("peer", shell_complete=complete_peer)
@click.option("--reason", default="", metavar="TEXT", help="For yourself; the peer is not told.")
@pass_globals
def ban(options: Globals, peer: str, reason: str) -> int:
    """End what runs with PEER and have nothing to do with it, also after a restart, until `souk peers unban`."""
    daemon = find_daemon(options)
    payload = daemon.request("POST", _path(find_peer(daemon, peer), "ban"), {"reason": reason})
    note(options, "banned")
    emit(options, payload, table=_id_text)
    return Exit.DONE


@peers.command("unban")
@click.argument("peer", shell_complete=complete_peer)
@pass_globals
def unban(options: Globals, peer: str) -> int:
    """Let PEER in again; 5 when it is not banned."""
    daemon = find_daemon(options)
    payload = daemon.request("POST", _path(find_peer(daemon, peer), "unban"))
    note(options, "not banned any more")
    emit(options, payload, table=_id_text)
    return Exit.DONE


def _id_text(payload: Payload) -> str:
    return str(payload.get("peer_id"))


def _path(peer_id: str, verb: str = "") -> str:
    return f"/api/v1/peers/{quote(peer_id, safe='')}" + (f"/{verb}" if verb else "")


def find_peer(daemon: Daemon, typed: str) -> str:
    """Return the id of the one peer that a user means: an id, its beginning or end, or the name in its advert.

    A whole id needs no daemon that knows it: one may ban a peer before it ever comes.

    Raises: CliError: none (5), or several (2).
    """
    part = typed.removeprefix("…").removesuffix("…")
    if len(part) == PEER_ID_CHARS and part.startswith(PEER_ID_START):
        return part
    known = {str(peer.get("peer_id")): peer for peer in daemon.get("/api/v1/peers")["peers"]}
    found = [peer_id for peer_id, peer in known.items() if peer.get("name") == typed or _is_part(part, peer_id)]
    if not found:
        message = f"no peer is called {typed}, and no known id begins or ends so; souk peers lists them"
        raise CliError(message, Exit.UNKNOWN)
    if len(found) > 1:
        several = "\n".join(
            f"  {peer_id}  {harmless(known[peer_id].get('name') or '')}".rstrip() for peer_id in found
        )
        raise CliError(f"{typed} means {len(found)} peers; give the id of one:\n{several}", Exit.USAGE)
    return found[0]


def _is_part(part: str, peer_id: str) -> bool:
    if len(part) >= len(PEER_ID_START) + PART_CHARS_MIN and peer_id.startswith(part):
        return True
    return len(part) >= PART_CHARS_MIN and peer_id.endswith(part)
