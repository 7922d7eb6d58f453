"""The control routes of single peers: what is known of one, ping, disconnect, ban and unban (ux.md, section 6)."""

from typing import Annotated, Final, Protocol

import trio
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from node.api.answers import json_response
from node.api.errors import ApiError, bad_request
from node.api.intake import run_unless_gone
from node.api.ledger_views import PeerAccountView
from node.api.operations import Operation, Says, get, post, read_json
from node.api.views import BanView, PeerView, View
from node.bans import REASON_CHARS_MAX, BanListError
from protocol.errors import RemoteProtocolError
from protocol.identity import peer_id_from_text_untrusted, peer_id_to_text
from protocol.units import MS_PER_S, PeerId

PING_S: Final = 10.0
"""Dialling included."""


class ConnectionView(View, frozen=True, kw_only=True):
    """One connection; ``rtt_ms`` is its keep-alive's, None in the first seconds."""

    address: str
    inbound: bool
    rtt_ms: float | None


class PeerAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    peer: PeerView
    addresses: tuple[str, ...]
    """Where it may be dialled, as far as this node has heard."""
    connections: tuple[ConnectionView, ...]
    protocols: tuple[str, ...]
    """What it said to libp2p that it speaks."""
    versions: tuple[int, ...]
    """Of our protocol, from its advert."""
    account: PeerAccountView | None
    """What passed between us; None where there was no contract."""


class PingAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    peer_id: str
    rtt_ms: float


class DisconnectAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    peer_id: str
    was_connected: bool


class BanRequest(View, frozen=True, kw_only=True, forbid_unknown_fields=True):
    reason: Annotated[str, Meta(max_length=REASON_CHARS_MAX)] = ""
    """For the owner; the peer is not told."""


class BanAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    peer_id: str
    ban: BanView | None
    """None: it is banned no more."""


class Peers(Protocol):
    """What the owner may do with single peers."""

    async def find(self, peer_id: PeerId) -> PeerAnswer | None:
        """Return what is known of a peer, None if nothing is. Raises: LedgerError."""

    async def ping(self, peer_id: PeerId) -> float:
        """Return its round trip in seconds, however long it takes. Raises: TransportError."""

    async def disconnect(self, peer_id: PeerId) -> bool:
        """Close its connections and return whether there were any; it may come back."""

    async def ban(self, peer_id: PeerId, reason: str) -> BanView:
        """Part from a peer and keep it out. Raises: BanListError."""

    async def unban(self, peer_id: PeerId) -> bool:
        """Let a peer in again; return whether it was banned. Raises: BanListError."""


def peer_routes(peers: Peers) -> list[Operation]:
    """Return the routes under ``/api/v1/peers/{peer}``."""
    routes, root = PeerRoutes(peers), "/api/v1/peers/{peer}"
    return [
        get(root, routes.show, Says(about="Show all that is known of one peer.", answer=PeerAnswer)),
        post(
            f"{root}/ping",
            routes.ping,
            Says(about="Measure a round trip to a peer, dialling it if need be.", answer=PingAnswer),
        ),
        post(
            f"{root}/disconnect",
            routes.disconnect,
            Says(about="Close the connections to a peer; it may come back.", answer=DisconnectAnswer),
        ),
        post(
            f"{root}/ban",
            routes.ban,
            Says(
                about="End what runs with a peer and have nothing to do with it until it is unbanned.",
                body=BanRequest,
                answer=BanAnswer,
            ),
        ),
        post(f"{root}/unban", routes.unban, Says(about="Let a banned peer in again.", answer=BanAnswer)),
    ]


class PeerRoutes:
    """One method for each route."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers

    async def show(self, request: Request) -> Response:
        return json_response(await self._known(peer_of(request)))

    async def ping(self, request: Request) -> Response:
        peer_id = peer_of(request)
        known = await self._known(peer_id)
        if known.peer.ban is not None:
            raise ApiError(
                f"{known.peer.peer_id} is banned here, and not spoken to: souk peers unban {known.peer.peer_id}",
                status=409,
                code="peer_banned",
                param="peer",
            )

        async def measure() -> Response:
            try:
                with trio.fail_after(PING_S):
                    rtt_s = await self._peers.ping(peer_id)
            except trio.TooSlowError as exc:
                message = f"{known.peer.peer_id} gave no answer within {PING_S:g} s"
                raise ApiError(message, status=504, code="no_answer", param="peer") from exc
            return json_response(PingAnswer(peer_id=known.peer.peer_id, rtt_ms=rtt_s * MS_PER_S))

        return await run_unless_gone(request.receive, measure)

    async def disconnect(self, request: Request) -> Response:
        peer_id = peer_of(request)
        known = await self._known(peer_id)
        was_connected = await self._peers.disconnect(peer_id)
        return json_response(DisconnectAnswer(peer_id=known.peer.peer_id, was_connected=was_connected))

    async def ban(self, request: Request) -> Response:
        # Also of a peer that was never heard of: an owner may know better than this node.
        peer_id = peer_of(request)
        reason = (await read_json(request, BanRequest)).reason
        # A client that leaves does not cut it off: half a ban would be none.
        try:
            ban = await self._peers.ban(peer_id, reason)
        except BanListError as exc:
            raise _not_kept(exc) from exc
        return json_response(BanAnswer(peer_id=peer_id_to_text(peer_id), ban=ban))

    async def unban(self, request: Request) -> Response:
        peer_id = peer_of(request)
        try:
            was_banned = await self._peers.unban(peer_id)
        except BanListError as exc:
            raise _not_kept(exc) from exc
        text = peer_id_to_text(peer_id)
        if not was_banned:
            message = f"{text} is not banned; souk peers ls --state banned lists those that are"
            raise ApiError(message, status=404, code="not_banned", param="peer")
        return json_response(BanAnswer(peer_id=text, ban=None))

    async def _known(self, peer_id: PeerId) -> PeerAnswer:
        """Return what is known of a peer. Raises: ApiError, LedgerError."""
        found = await self._peers.find(peer_id)
        if found is None:
            raise ApiError(
                f"{peer_id_to_text(peer_id)} is neither connected nor advertised, banned or in the ledger;"
                " souk peers lists those that are",
                status=404,
                code="peer_not_found",
                param="peer",
            )
        return found


def peer_of(request: Request) -> PeerId:
    """Return the peer that a path names. Raises: ApiError."""
    text = request.path_params["peer"]
    try:
        return peer_id_from_text_untrusted(text)
    except RemoteProtocolError as exc:
        raise bad_request(f"expected a peer id, 12D3KooW…, got {text[:64]!r}", param="peer") from exc


def _not_kept(exc: BanListError) -> ApiError:
    return ApiError(str(exc), status=409, code="ban_not_kept", param="peer")
