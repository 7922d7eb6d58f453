"""The control routes of the ledger: accounts, entries, the audit, proofs of equivocation, and settlement."""

from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from node.api.answers import json_response
from node.api.errors import ApiError, bad_request
from node.api.intake import run_unless_gone
from node.api.ledger_views import (
    AuditAnswer,
    EntriesAnswer,
    EntriesQuery,
    LedgerAnswer,
    PeerAccountAnswer,
    ProofsAnswer,
    SettleAnswer,
    SettlementAnswer,
    SettleRequest,
    StatementsAnswer,
    StatementsQuery,
    audit_answer,
    entries_answer,
    ledger_answer,
    peer_account_view,
    proofs_answer,
    settle_answer,
    settlement_answer,
    statements_answer,
)
from node.api.operations import Operation, Says, get, post, read_json, read_query
from node.api.services import Services
from protocol.errors import RemoteProtocolError
from protocol.identity import peer_id_from_text_untrusted
from protocol.units import Microcredits, PeerId

PAGE_ENTRIES: Final = 500
PROOFS_MAX: Final = 1000
STATEMENTS_MAX: Final = 500


def ledger_routes(services: Services) -> list[Operation]:
    """Return the routes under ``/api/v1/ledger`` and ``/api/v1/proofs``."""
    routes = LedgerRoutes(services)
    root = "/api/v1/ledger"
    # The fixed names come first: a peer id is none of them.
    return [
        post(
            f"{root}/settle",
            routes.settle,
            Says(about="Settle with a peer.", body=SettleRequest, answer=SettleAnswer),
        ),
        get(root, routes.accounts, Says(about="Show the accounts of all peers.", answer=LedgerAnswer)),
        get(f"{root}/audit", routes.audit, Says(about="Check the ledger against itself.", answer=AuditAnswer)),
        get(
            f"{root}/entries",
            routes.entries,
            Says(about="Page through the signed messages.", answer=EntriesAnswer, query=EntriesQuery),
        ),
        get(
            f"{root}/statements",
            routes.statements,
            Says(about="List statements, the latest first.", answer=StatementsAnswer, query=StatementsQuery),
        ),
        get(
            f"{root}/statements/{{peer}}",
            routes.settlement,
            Says(about="Show the evidence of the last statement with a peer.", answer=SettlementAnswer),
        ),
        get(f"{root}/{{peer}}", routes.account, Says(about="Show one peer's account.", answer=PeerAccountAnswer)),
        get("/api/v1/proofs", routes.proofs, Says(about="List proofs of equivocation.", answer=ProofsAnswer)),
    ]


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
        after = read_query(request, EntriesQuery).after
        return json_response(entries_answer(await self._view.books().entries_after(after, PAGE_ENTRIES)))

    async def audit(self, request: Request) -> Response:
        return await run_unless_gone(request.receive, self._audit)

    async def _audit(self) -> Response:
        return json_response(audit_answer(await self._view.books().audit()))

    async def proofs(self, _request: Request) -> Response:
        count, newest = await self._view.books().proofs(PROOFS_MAX)
        return json_response(proofs_answer(count, newest))

    async def statements(self, request: Request) -> Response:
        text = read_query(request, StatementsQuery).peer
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
        wanted = await read_json(request, SettleRequest)
        peer_id = _peer_id(wanted.peer_id, param="peer_id")
        # A client that leaves does not cut it off: what was begun is signed, and bounded in time by itself.
        return json_response(settle_answer(await self._settle(peer_id, Microcredits(wanted.amount_microcredits))))


def _peer_id(text: str, *, param: str = "peer") -> PeerId:
    """Return the peer that a request names. Raises: ApiError."""
    try:
        return peer_id_from_text_untrusted(text)
    except RemoteProtocolError as exc:
        raise bad_request(f"expected a peer id, 12D3KooW…, got {text[:64]!r}", param=param) from exc
