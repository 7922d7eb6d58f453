"""The control routes of the ledger: accounts, entries, the audit, proofs of equivocation, and settlement."""

import re
from typing import Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from node.api.answers import json_response
from node.api.bodies import to_bad_request
from node.api.errors import ApiError, bad_request
from node.api.intake import read_body, run_unless_gone
from node.api.ledger_views import (
    PeerAccountAnswer,
    SettleRequest,
    audit_answer,
    entries_answer,
    ledger_answer,
    peer_account_view,
    proofs_answer,
    settle_answer,
    settlement_answer,
    statements_answer,
)
from node.api.services import Services
from protocol.errors import RemoteProtocolError
from protocol.identity import peer_id_from_text_untrusted
from protocol.units import Microcredits, PeerId

PAGE_ENTRIES: Final = 500
PROOFS_MAX: Final = 1000
STATEMENTS_MAX: Final = 500

_settle_request = msgspec.json.Decoder(SettleRequest)


def ledger_routes(services: Services) -> list[Route]:
    """Return the routes under ``/api/v1/ledger`` and ``/api/v1/proofs``."""
    routes = LedgerRoutes(services)
    # The fixed names come first: a peer id is none of them.
    paths = [
        ("/api/v1/ledger", routes.accounts),
        ("/api/v1/ledger/audit", routes.audit),
        ("/api/v1/ledger/entries", routes.entries),
        ("/api/v1/ledger/statements", routes.statements),
        ("/api/v1/ledger/statements/{peer}", routes.settlement),
        ("/api/v1/ledger/{peer}", routes.account),
        ("/api/v1/proofs", routes.proofs),
    ]
    settle = Route("/api/v1/ledger/settle", routes.settle, methods=["POST"])
    return [settle, *(Route(path, endpoint, methods=["GET"]) for path, endpoint in paths)]


class LedgerRoutes:
    """One method for each route."""

    def __init__(self, services: Services) -> None:
        self._view = services.view
        self._settle = services.settle

    async def accounts(self, _request: Request) -> Response:
        books = self._view.books()
        count, _newest = await books.proofs(1)
        return json_response(ledger_answer(await books.peer_accounts(), count))

    async def account(self, request: Request) -> Response:
        text = request.path_params["peer"]
        peer_id = _peer_id(text)
        for account in await self._view.books().peer_accounts():
            if account.peer_id == peer_id:
                return json_response(PeerAccountAnswer(peer=peer_account_view(account)))
        raise ApiError(
            f"no contract with {text} in this ledger; souk ledger show lists the peers",
            status=404,
            code="peer_not_found",
            param="peer",
        )

    async def entries(self, request: Request) -> Response:
        text = request.query_params.get("after", "0")
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise bad_request(f"expected the number of an entry, got {text[:32]!r}", param="after")
        return json_response(entries_answer(await self._view.books().entries_after(int(text), PAGE_ENTRIES)))

    async def audit(self, request: Request) -> Response:
        return await run_unless_gone(request.receive, self._audit)

    async def _audit(self) -> Response:
        return json_response(audit_answer(await self._view.books().audit()))

    async def proofs(self, _request: Request) -> Response:
        count, newest = await self._view.books().proofs(PROOFS_MAX)
        return json_response(proofs_answer(count, newest))

    async def statements(self, request: Request) -> Response:
        text = request.query_params.get("peer")
        peer_id = None if text is None else _peer_id(text)
        return json_response(statements_answer(await self._view.books().statements(peer_id, STATEMENTS_MAX)))

    async def settlement(self, request: Request) -> Response:
        text = request.path_params["peer"]
        found = await self._view.books().settlement_envelopes(_peer_id(text))
        if found is None:
            raise ApiError(
                f"no statement with {text} that both signed; souk ledger statements lists them",
                status=404,
                code="statement_not_found",
                param="peer",
            )
        return json_response(settlement_answer(found))

    async def settle(self, request: Request) -> Response:
        try:
            wanted = _settle_request.decode(await read_body(request.receive))
        except (msgspec.MsgspecError, UnicodeError) as exc:
            raise to_bad_request(exc) from exc
        peer_id = _peer_id(wanted.peer_id, param="peer_id")
        # A client that leaves does not cut it off: what was begun is signed, and bounded in time by itself.
        return json_response(settle_answer(await self._settle(peer_id, Microcredits(wanted.amount_microcredits))))


def _peer_id(text: str, *, param: str = "peer") -> PeerId:
    """Return the peer that a request names. Raises: ApiError."""
    try:
        return peer_id_from_text_untrusted(text)
    except RemoteProtocolError as exc:
        raise bad_request(f"expected a peer id, 12D3KooW…, got {text[:64]!r}", param=param) from exc
