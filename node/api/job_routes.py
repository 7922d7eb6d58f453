"""The control routes of jobs: their list, timelines, reasons, cancelling, quotes; and why this node does neither.

Nothing shown here holds a prompt or an answer: the journal that it comes from never had them.
"""

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
from node.api.job_views import CancelAnswer, JobTrace, QuoteRequest, QuotesAnswer, quote_view
from node.api.services import Services
from node.api.views import JobsAnswer
from node.api.why_job import why_job
from node.api.why_node import why_node
from node.market.quotes import Enquiry
from protocol.units import JobId

JOBS_DEFAULT: Final = 50
JOBS_MAX: Final = 1000
_ID_PREFIX: Final = re.compile(r"[0-9a-fA-F]{4,64}")
_quote_request = msgspec.json.Decoder(QuoteRequest)
_ROLES: Final = ("requester", "provider", "local")


def job_routes(services: Services) -> list[Route]:
    """Return the routes under ``/api/v1/jobs``, and ``/api/v1/why``."""
    jobs = JobRoutes(services)
    views = [
        ("/api/v1/why", jobs.why_node),
        ("/api/v1/jobs", jobs.list),
        ("/api/v1/jobs/{job}", jobs.show),
        ("/api/v1/jobs/{job}/why", jobs.why),
    ]
    acts = [("/api/v1/jobs/{job}/cancel", jobs.cancel), ("/api/v1/quote", jobs.quote)]
    return [
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in acts),
        *(Route(path, endpoint, methods=["GET"]) for path, endpoint in views),
    ]


class JobRoutes:
    """One method for each route."""

    def __init__(self, services: Services) -> None:
        self._view = services.view
        self._market = services.market
        self._ask_quotes = services.quotes

    async def why_node(self, _request: Request) -> Response:
        return json_response(why_node(self._view.facts()))

    async def list(self, request: Request) -> Response:
        """Newest first; ``state`` is open, over or the name of one, ``role`` some of three, with commas."""
        query = request.query_params
        limit, role, state = query.get("limit", str(JOBS_DEFAULT)), query.get("role"), query.get("state")
        if not re.fullmatch(r"[0-9]{1,4}", limit) or not 1 <= int(limit) <= JOBS_MAX:
            raise bad_request(f"expected a limit of 1 to {JOBS_MAX}, got {limit[:32]!r}", param="limit")
        roles = _ROLES if role is None else tuple(role.split(","))
        if not set(roles) <= set(_ROLES):
            raise bad_request(f"expected some of {','.join(_ROLES)}, got {str(role)[:64]!r}", param="role")
        found = [
            job
            for job in self._view.jobs()
            if job.role in roles and state in (None, job.state, "open" if job.ended_ms is None else "over")
        ]
        return json_response(JobsAnswer(jobs=tuple(found[: int(limit)])))

    async def show(self, request: Request) -> Response:
        return json_response(self._find(request))

    async def why(self, request: Request) -> Response:
        return json_response(why_job(self._find(request)))

    async def cancel(self, request: Request) -> Response:
        """End an order of this node's and answer when it has ended: the provider has been told, or is gone."""
        job = self._find(request).job
        if job.role == "provider":
            raise ApiError(
                "a peer's job is the peer's to cancel: the contract that this node signed stands",
                status=409,
                code="not_ours",
            )
        if not await self._market.cancel(JobId(bytes.fromhex(job.job_id))):
            raise ApiError(f"the job is over already: {job.state}", status=409, code="job_over")
        return json_response(CancelAnswer(job=self._find(request).job))

    async def quote(self, request: Request) -> Response:
        """Ask every peer with a model for binding terms; nothing is bought."""
        try:
            wanted = _quote_request.decode(await read_body(request.receive))
        except (msgspec.MsgspecError, UnicodeError) as exc:
            raise to_bad_request(exc) from exc
        enquiry = Enquiry(model=wanted.model, tokens_in=wanted.prompt_tokens, tokens_out_max=wanted.max_tokens)

        async def ask() -> Response:
            replies = await self._ask_quotes(enquiry)
            return json_response(QuotesAnswer(model=wanted.model, quotes=tuple(map(quote_view, replies))))

        return await run_unless_gone(request.receive, ask)

    def _find(self, request: Request) -> JobTrace:
        """Return the one job that the path names. Raises: ApiError."""
        prefix = request.path_params["job"]
        if not _ID_PREFIX.fullmatch(prefix):
            raise bad_request("expected the first 4 to 64 hex digits of a job's or contract's id", param="job")
        found = self._view.find_jobs(prefix.lower())
        if not found:
            raise ApiError(
                f"no job of this node since its start has an id that starts with {prefix}; souk job ls has the"
                " newest, souk receipts ls the contracts of all time",
                status=404,
                code="job_not_found",
                param="job",
            )
        if len(found) > 1:
            raise bad_request(
                f"{len(found)} jobs have an id that starts with {prefix}: give more digits", param="job"
            )
        return found[0]
