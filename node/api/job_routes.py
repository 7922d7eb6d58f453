"""The control routes of jobs: their list, timelines, reasons, cancelling, quotes; and why this node does neither.

Nothing shown here holds a prompt or an answer: the journal that it comes from never had them.
"""

import re
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

from node.api.answers import json_response
from node.api.errors import ApiError, bad_request
from node.api.intake import run_unless_gone
from node.api.job_views import (
    CancelAnswer,
    JobsQuery,
    JobTrace,
    QuoteRequest,
    QuotesAnswer,
    WhyJobAnswer,
    WhyNodeAnswer,
    quote_view,
)
from node.api.operations import Operation, Says, get, post, read_json, read_query
from node.api.services import Services, View
from node.api.views import JobsAnswer
from node.api.why_job import why_job
from node.api.why_node import why_node
from node.market.quotes import Enquiry
from protocol.units import JobId

_ID_PREFIX: Final = re.compile(r"[0-9a-fA-F]{4,64}")


def job_routes(services: Services) -> list[Operation]:
    """Return the routes under ``/api/v1/jobs``, and ``/api/v1/why``."""
    jobs = JobRoutes(services)
    one = "/api/v1/jobs/{job}"
    return [
        post(f"{one}/cancel", jobs.cancel, Says(about="End an order of ours.", answer=CancelAnswer)),
        post(
            "/api/v1/quote",
            jobs.quote,
            Says(about="Ask all peers for binding terms.", body=QuoteRequest, answer=QuotesAnswer),
        ),
        get(
            "/api/v1/why",
            jobs.why_node,
            Says(about="Tell why nothing is sold or bought.", answer=WhyNodeAnswer),
        ),
        get("/api/v1/jobs", jobs.list, Says(about="List the newest jobs.", answer=JobsAnswer, query=JobsQuery)),
        get(one, jobs.show, Says(about="Show a job, by the start of its id.", answer=JobTrace)),
        get(f"{one}/why", jobs.why, Says(about="Tell why a job waits or failed.", answer=WhyJobAnswer)),
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
        wanted = read_query(request, JobsQuery)
        roles = wanted.role.split(",")
        found = [
            job
            for job in self._view.jobs()
            if job.role in roles and wanted.state in (None, job.state, "open" if job.ended_ms is None else "over")
        ]
        return json_response(JobsAnswer(jobs=tuple(found[: wanted.limit])))

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
        wanted = await read_json(request, QuoteRequest)
        enquiry = Enquiry(model=wanted.model, tokens_in=wanted.prompt_tokens, tokens_out_max=wanted.max_tokens)

        async def ask() -> Response:
            replies = await self._ask_quotes(enquiry)
            return json_response(QuotesAnswer(model=wanted.model, quotes=tuple(map(quote_view, replies))))

        return await run_unless_gone(request.receive, ask)

    def _find(self, request: Request) -> JobTrace:
        """Return the one job that the path names. Raises: ApiError."""
        return find_job(self._view, request.path_params["job"])


def read_prefix(text: str) -> str:
    """Return the beginning of an id as ids are written. Raises: ApiError."""
    if not _ID_PREFIX.fullmatch(text):
        raise bad_request("expected the first 4 to 64 hex digits of a job's or contract's id", param="job")
    return text.lower()


def find_job(view: View, prefix: str) -> JobTrace:
    """Return the one job whose own or whose contract's id starts so. Raises: ApiError."""
    found = view.find_jobs(read_prefix(prefix))
    if not found:
        raise ApiError(
            f"no job among this node's newest has an id that starts with {prefix}; souk job ls has the"
            " newest, souk receipts ls the contracts of all time",
            status=404,
            code="job_not_found",
            param="job",
        )
    if len(found) > 1:
        raise bad_request(f"{len(found)} jobs have an id that starts with {prefix}: give more digits", param="job")
    return found[0]
