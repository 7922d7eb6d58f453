"""The control routes of whoever operates the node: settings and reload, drain and resume (ux.md, section 6)."""

from typing import Annotated, Protocol, TypeAlias

from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from node.api.answers import json_response
from node.api.errors import ApiError
from node.api.operations import Operation, Says, get, post, read_json
from node.api.views import GateView, View
from node.errors import ConfigError

Value: TypeAlias = bool | int | str | tuple[str, ...]
"""What a setting can be."""


class SettingView(View, frozen=True, kw_only=True):
    """One setting as it is followed now."""

    name: str
    value: Value
    origin: str
    """default, a file with its line, a variable or an option."""
    live: bool
    """Whether a reload changes it; otherwise a restart does."""


class ConfigAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    path: str
    settings: tuple[SettingView, ...]


class ChangeView(View, frozen=True, kw_only=True):
    name: str
    before: Value
    after: Value
    origin: str


class ReloadAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    changed: tuple[ChangeView, ...]
    needs_restart: tuple[ChangeView, ...]
    """The new file has these otherwise, and the node goes on with what they were."""


class DrainRequest(View, frozen=True, kw_only=True, forbid_unknown_fields=True):
    grace_s: Annotated[float, Meta(ge=0, le=86_400)] | None = None
    """After so long, jobs that still run are handed back; None: they may take as long as they take."""


class GateAnswer(View, frozen=True, kw_only=True):
    schema: int = 1
    gate: GateView


class Operator(Protocol):
    """What the operator may tell the daemon."""

    def settings(self) -> ConfigAnswer: ...

    async def reload(self) -> ReloadAnswer:
        """Raises: ConfigError (nothing has changed)."""

    def drain(self, grace_s: float | None) -> None: ...

    def resume(self) -> None: ...

    def gate(self) -> GateView: ...


def operator_routes(operator: Operator) -> list[Operation]:
    """Return the routes of settings and of the gate."""
    routes = OperatorRoutes(operator)
    return [
        get("/api/v1/config", routes.config, Says(about="Show every setting.", answer=ConfigAnswer)),
        post(
            "/api/v1/reload",
            routes.reload,
            Says(about="Read the configuration again and follow what can be followed.", answer=ReloadAnswer),
        ),
        get("/api/v1/gate", routes.gate, Says(about="Tell whether peers' jobs are taken.", answer=GateAnswer)),
        post(
            "/api/v1/drain",
            routes.drain,
            Says(about="Take no more jobs of peers.", body=DrainRequest, answer=GateAnswer),
        ),
        post("/api/v1/resume", routes.resume, Says(about="Take jobs of peers again.", answer=GateAnswer)),
    ]


class OperatorRoutes:
    """One method for each route."""

    def __init__(self, operator: Operator) -> None:
        self._operator = operator

    async def config(self, _request: Request) -> Response:
        return json_response(self._operator.settings())

    async def reload(self, _request: Request) -> Response:
        try:
            return json_response(await self._operator.reload())
        except ConfigError as exc:
            message = "nothing was changed, the configuration is faulty:\n" + "\n".join(exc.problems)
            raise ApiError(message, status=409, code="config_invalid") from exc

    async def drain(self, request: Request) -> Response:
        wanted = await read_json(request, DrainRequest)
        self._operator.drain(wanted.grace_s)
        return self._gate()

    async def resume(self, _request: Request) -> Response:
        self._operator.resume()
        return self._gate()

    async def gate(self, _request: Request) -> Response:
        return self._gate()

    def _gate(self) -> Response:
        return json_response(GateAnswer(gate=self._operator.gate()))
