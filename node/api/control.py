"""The control routes that the CLI speaks, and the probes (ux.md, section 6)."""

import re
from typing import Final

from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response

from node.api.answers import json_response
from node.api.errors import ApiError, bad_request
from node.api.intake import run_unless_gone
from node.api.operations import Operation, Says, get, post, read_json, read_query
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
    ReceiptsQuery,
    StatusView,
)
from protocol.identity import peer_id_to_text

_CONTRACT_PREFIX: Final = re.compile(r"[0-9a-fA-F]{4,64}")


def control_routes(services: Services) -> list[Operation]:
    """Return the probes and the routes under ``/api/v1``."""
    control = Control(services)
    return [
        get(
            "/healthz",
            control.health,
            Says(about="Answer while we live.", answer=HealthAnswer, is_open=True),
        ),
        get(
            "/readyz",
            control.ready,
            Says(
                about="Tell whether this node is ready for work, each check with ok or the reason why not.",
                answer=ReadyAnswer,
                also={503: "A check is not ok."},
                is_open=True,
            ),
        ),
        get("/metrics", control.metrics, Says(about="Show all counts to Prometheus.", text=True)),
        get("/api/v1/status", control.status, Says(about="Show this node.", answer=StatusView)),
        get(
            "/api/v1/peers",
            control.peers,
            Says(about="List peers: connected, advertised, banned.", answer=PeersAnswer),
        ),
        get("/api/v1/models", control.models, Says(about="List the network's models.", answer=ModelsAnswer)),
        get("/api/v1/devices", control.devices, Says(about="List this node's devices.", answer=DevicesAnswer)),
        get("/api/v1/advert", control.advert, Says(about="Show what others see of us.", answer=AdvertAnswer)),
        get(
            "/api/v1/receipts",
            control.receipts,
            Says(about="List contracts, the latest first.", answer=ReceiptsAnswer, query=ReceiptsQuery),
        ),
        get(
            "/api/v1/receipts/{contract}",
            control.bundle,
            Says(about="Show the evidence of one contract, named by the start of its id.", answer=BundleAnswer),
        ),
        post(
            "/api/v1/connect",
            control.connect,
            Says(about="Dial a multiaddr.", body=ConnectRequest, answer=ConnectAnswer),
        ),
        post("/api/v1/shutdown", control.shutdown, Says(about="Stop the daemon.", status=202)),
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
        limit = read_query(request, ReceiptsQuery).limit
        return json_response(ReceiptsAnswer(receipts=tuple(await self._view.receipts(limit))))

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
        address = (await read_json(request, ConnectRequest)).address

        async def dial() -> Response:
            return json_response(ConnectAnswer(peer_id=peer_id_to_text(await self._services.connect(address))))

        return await run_unless_gone(request.receive, dial)

    async def shutdown(self, _request: Request) -> Response:
        async def stop() -> None:
            self._services.shutdown()

        # In the background, so that the answer is out before the daemon cuts its connections.
        return Response(status_code=202, background=BackgroundTask(stop))
