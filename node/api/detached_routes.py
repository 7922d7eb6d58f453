"""The routes of detached jobs: order one by its spec, fetch what came of it, order it again, ask what it costs.

What is kept, and how long, is ``detached.py``'s.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

import msgspec
import trio
from starlette.requests import Request
from starlette.responses import Response

from node.api.answers import json_response
from node.api.detached import DetachedJob, DetachedJobs, digest_of
from node.api.detached_views import JobResult, ResultQuery, SubmitAnswer
from node.api.errors import ApiError, bad_request
from node.api.intake import Admission, read_body, run_unless_gone
from node.api.job_routes import find_job, read_prefix
from node.api.job_specs import JobSpec, read_spec, spec_order
from node.api.job_views import QuotesAnswer, quote_view
from node.api.operations import Operation, Says, get, post, read_query
from node.api.services import Services

KEY_HEADER: Final = "idempotency-key"
_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")
_NOT_KEPT: Final = (
    "texts of jobs are kept in memory only, and of detached ones only (souk job submit, POST /api/v1/jobs); its "
    "contract and receipt are in souk receipts"
)


def detached_routes(services: Services, admission: Admission, detached: DetachedJobs) -> list[Operation]:
    """Return the routes; ``admission`` is shared with all that orders a job."""
    routes = DetachedRoutes(services, admission, detached)
    one = "/api/v1/jobs/{job}"
    return [
        post(
            "/api/v1/jobs",
            routes.submit,
            Says(
                about="Order a job that runs without its client; an Idempotency-Key makes it once.",
                body=JobSpec,
                answer=SubmitAnswer,
                status=202,
            ),
        ),
        post(
            "/api/v1/jobs/quote",
            routes.quote,
            Says(about="Ask all peers for binding terms of a spec.", body=JobSpec, answer=QuotesAnswer),
        ),
        get(
            f"{one}/result",
            routes.result,
            Says(
                about="Fetch what came of a detached job.",
                answer=JobResult,
                also={202: "It is not over yet."},
                query=ResultQuery,
            ),
        ),
        post(
            f"{one}/rerun",
            routes.rerun,
            Says(about="Order a detached job once more, by the spec it had.", answer=SubmitAnswer, status=202),
        ),
    ]


class DetachedRoutes:
    """One method for each route."""

    def __init__(self, services: Services, admission: Admission, detached: DetachedJobs) -> None:
        self._services, self._admission, self._detached = services, admission, detached

    async def submit(self, request: Request) -> Response:
        spec = read_spec(await read_body(request.receive))
        return self._start(request, digest_of(b"submit", msgspec.json.encode(spec)), lambda: spec)

    async def rerun(self, request: Request) -> Response:
        job, why = self._find(request)
        job_id = request.path_params["job"].lower() if job is None else job.job_id.hex()

        def spec() -> JobSpec:
            if job is None or job.spec is None:
                raise ApiError(
                    f"the spec of job {job_id} is not here any more: {why}; submit it again",
                    status=410,
                    code="spec_gone",
                    param="job",
                )
            return read_spec(job.spec)

        return self._start(request, digest_of(b"rerun", job_id.encode()), spec)

    async def result(self, request: Request) -> Response:
        """Answer with what there is, after waiting for the end for as long as the query says."""
        wait_s = read_query(request, ResultQuery).wait_s
        job, why = self._find(request)
        if job is None:
            raise _gone(request.path_params["job"], why)
        if not job.over.is_set() and wait_s:

            async def wait() -> bool:
                with trio.move_on_after(wait_s):
                    await job.over.wait()
                return True

            await run_unless_gone(request.receive, wait)
        if job.result is not None:
            job.was_read = True
            return Response(job.result, media_type="application/json")
        if job.gone:
            raise _gone(job.job_id.hex(), job.gone)
        traced = self._services.view.find_jobs(job.job_id.hex())
        return json_response(
            JobResult(
                job_id=job.job_id.hex(),
                state=traced[0].job.state if traced else "submitted",
                is_over=False,
                task=job.task,
                model=job.model,
            ),
            status=202,
        )

    async def quote(self, request: Request) -> Response:
        """Ask every peer with the model for binding terms of this very job; nothing is bought."""
        spec = read_spec(await read_body(request.receive))
        order = spec_order(spec, self._services.draw_seed())
        if order.where == "local":
            raise bad_request("a job on this node's own devices costs nothing and asks nobody", param="souk.on")

        async def ask() -> Response:
            replies = await self._services.quotes(order)
            return json_response(QuotesAnswer(model=spec.model, quotes=tuple(map(quote_view, replies))))

        return await run_unless_gone(request.receive, ask)

    def _start(self, request: Request, digest: bytes, spec_of: Callable[[], JobSpec]) -> Response:
        """Take a job on, unless its key has made it already. Nothing is awaited: two of one key make one job."""
        key = request.headers.get(KEY_HEADER)
        if key is not None and not _KEY.fullmatch(key):
            raise bad_request("expected 1 to 255 visible ASCII characters", param="Idempotency-Key")
        if (known := self._detached.replayed(key, digest)) is not None:
            return json_response(SubmitAnswer(job_id=known.job_id.hex(), is_new=False), status=202)
        spec = spec_of()
        order = replace(spec_order(spec, self._services.draw_seed()), job_id=self._services.draw_job_id())
        with ExitStack() as place:
            place.enter_context(self._admission.place())
            job = self._detached.start(spec, order, key=key, digest=digest)
            job.place = place.pop_all()
        return json_response(SubmitAnswer(job_id=job.job_id.hex()), status=202)

    def _find(self, request: Request) -> tuple[DetachedJob | None, str]:
        """Return the job that the path names, and why its text is gone; None for one that was not detached.

        Raises:
            ApiError: 400, 404.
        """
        prefix = request.path_params["job"]
        found = self._detached.find(read_prefix(prefix))
        known = {it.job_id.hex() for it in found}
        if found:
            known |= {trace.job.job_id for trace in self._services.view.find_jobs(prefix.lower())}
        if len(known) > 1:
            raise bad_request(
                f"{len(known)} jobs have an id that starts with {prefix}: give more digits", param="job"
            )
        if found:
            return found[0], found[0].gone
        job = find_job(self._services.view, prefix).job
        if job.role == "provider":
            raise ApiError(
                "a peer's job: what it said and was told is the peer's", status=409, code="not_ours", param="job"
            )
        return None, _NOT_KEPT


def _gone(job_id: str, why: str) -> ApiError:
    return ApiError(
        f"the result of job {job_id} is not here any more: {why}", status=410, code="result_gone", param="job"
    )
