"""The control routes that the CLI speaks, and the probes (ux.md, section 6)."""

import re
from typing import Final

import msgspec
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from node.api.answers import json_response
from node.api.bodies import to_bad_request
from node.api.errors import ApiError, bad_request
from node.api.intake import read_body, run_unless_gone
from node.api.services import Services
from node.api.views import (
    AdvertAnswer,
    BundleAnswer,
    ConnectAnswer,
    ConnectRequest,
    DevicesAnswer,
    HealthAnswer,
    ModelsAnswer,
    PeersAnswer,
    ReadyAnswer,
    ReceiptsAnswer,
)
from protocol.identity import peer_id_to_text

RECEIPTS_DEFAULT: Final = 50
RECEIPTS_MAX: Final = 1000

_CONTRACT_PREFIX: Final = re.compile(r"[0-9a-fA-F]{4,64}")
_connect_request = msgspec.json.Decoder(ConnectRequest)


def control_routes(services: Services) -> list[Route]:
    """Return the probes and the routes under ``/api/v1``."""
    control = Control(services)
    views = [
        ("/healthz", control.health),
        ("/readyz", control.ready),
        ("/metrics", control.metrics),
        ("/api/v1/status", control.status),
        ("/api/v1/peers", control.peers),
        ("/api/v1/models", control.models),
        ("/api/v1/devices", control.devices),
        ("/api/v1/advert", control.advert),
        ("/api/v1/receipts", control.receipts),
        ("/api/v1/receipts/{contract}", control.bundle),
    ]
    acts = [("/api/v1/connect", control.connect), ("/api/v1/shutdown", control.shutdown)]
    return [
        *(Route(path, endpoint, methods=["GET"]) for path, endpoint in views),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in acts),
    ]


class Control:
    """One method for each route."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._view = services.view

    async def health(self, _request: Request) -> Response:
        return json_response(HealthAnswer())

    async def ready(self, _request: Request) -> Response:
        checks = self._view.readiness()
        is_ready = all(state == "ok" for state in checks.values())
        return json_response(ReadyAnswer(ready=is_ready, checks=checks), status=200 if is_ready else 503)

    async def metrics(self, request: Request) -> Response:
        page, content_type = await self._services.scrape(request.headers.get("accept", ""))
        return Response(page, media_type=content_type)

    async def status(self, _request: Request) -> Response:
        return json_response(await self._view.status())

    async def peers(self, _request: Request) -> Response:
        return json_response(PeersAnswer(peers=tuple(self._view.peers())))

    async def models(self, _request: Request) -> Response:
        return json_response(ModelsAnswer(models=tuple(self._view.models())))

    async def devices(self, _request: Request) -> Response:
        return json_response(DevicesAnswer(devices=tuple(self._view.devices())))

    async def advert(self, _request: Request) -> Response:
        return json_response(AdvertAnswer(advert=self._view.advert()))

    async def receipts(self, request: Request) -> Response:
        text = request.query_params.get("limit", str(RECEIPTS_DEFAULT))
        if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= RECEIPTS_MAX:
            raise bad_request(f"expected a limit of 1 to {RECEIPTS_MAX}, got {text[:32]!r}", param="limit")
        return json_response(ReceiptsAnswer(receipts=tuple(await self._view.receipts(int(text)))))

    async def bundle(self, request: Request) -> Response:
        prefix = request.path_params["contract"]
        if not _CONTRACT_PREFIX.fullmatch(prefix):
            raise bad_request("expected the first 4 to 64 hex digits of a contract id", param="contract_id")
        bundle = await self._view.bundle(prefix.lower())
        if bundle is None:
            raise ApiError(
                f"no contract of this node has an id that starts with {prefix}; souk receipts ls has them",
                status=404,
                code="contract_not_found",
                param="contract_id",
            )
        return json_response(BundleAnswer(bundle=bundle))

    async def connect(self, request: Request) -> Response:
        body = await read_body(request.receive)
        try:
            address = _connect_request.decode(body).address
        except (msgspec.MsgspecError, UnicodeError) as exc:
            raise to_bad_request(exc) from exc

        async def dial() -> Response:
            return json_response(ConnectAnswer(peer_id=peer_id_to_text(await self._services.connect(address))))

        return await run_unless_gone(request.receive, dial)

    async def shutdown(self, _request: Request) -> Response:
        async def stop() -> None:
            self._services.shutdown()

        # In the background, so that the answer is out before the daemon cuts its connections.
        return Response(status_code=202, background=BackgroundTask(stop))
