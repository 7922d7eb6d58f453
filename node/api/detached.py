"""Detached jobs: orders that nobody's connection holds, and what came of them, for a while.

Specs and answers are kept in memory alone, bounded in number, bytes and time: no prompt and no answer ever reaches
a disk. What is forgotten, by age, for room or by a restart, is the text; contract, receipt and money are the
ledger's. Routes are ``detached_routes.py``'s.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from typing import Final

import msgspec
import trio

from node.api.bodies import SoukBlock
from node.api.detached_views import GenerateAnswer, JobAnswer, JobResult
from node.api.errors import ApiError, to_api_error, unfit_input
from node.api.job_specs import GenerateSpec, JobSpec, spec_field, task_of_spec
from node.api.relay import follow_order, souk_block
from node.api.services import Market
from node.api.task_bodies import TaskUsage
from node.api.tasks import to_answer
from node.config import ApiSection
from node.errors import NodeError
from node.market.order import Finished, JobEvent, Order, Output, UnfitInputError
from protocol.tasks.registry import ItemOutput
from protocol.units import JobId

log = logging.getLogger(__name__)

FORGOTTEN_MAX: Final = 4096
"""Jobs of which nothing is left but their id, key and why: for clients that come back too late."""
FULL_RETRY_S: Final = 5


@dataclass(slots=True, eq=False, kw_only=True)
class DetachedJob:
    """One job, from its order until it is forgotten; ``gone`` then says why."""

    job_id: JobId
    task: str
    model: str
    spec: bytes | None
    """In JSON, for a rerun: what is counted is what is kept, here and in ``result``."""
    work: tuple[JobSpec, Order] | None
    """What was asked and what is ordered for it, until it is over."""
    size_bytes: int
    place: ExitStack = field(default_factory=ExitStack)
    """Frees the job's place among the requests in work."""
    key: str | None = None
    digest: bytes = b""
    result: bytes | None = None
    """A ``JobResult`` in JSON."""
    gone: str = ""
    was_read: bool = False
    over: trio.Event = field(default_factory=trio.Event)
    keeping: trio.CancelScope = field(default_factory=trio.CancelScope)


class DetachedJobs:
    """All of one daemon. ``start`` never waits; ``run`` carries out what it was given."""

    def __init__(self, market: Market, config: ApiSection) -> None:
        self._market, self._config = market, config
        self._jobs: dict[JobId, DetachedJob] = {}
        """Those that run or are kept, the oldest first."""
        self._forgotten: dict[JobId, DetachedJob] = {}
        self._keys: dict[str, DetachedJob] = {}
        self._size_bytes = 0
        # As many as may have a place: there is always room in it.
        self._post, self._orders = trio.open_memory_channel[DetachedJob](config.max_queue)

    async def run(self) -> None:
        """Carry jobs out until cancelled, which ends those that run as if their clients had left."""
        async with trio.open_nursery() as nursery:
            async for job in self._orders:
                nursery.start_soon(self._carry_out, job)

    def replayed(self, key: str | None, digest: bytes) -> DetachedJob | None:
        """Return the job that an order with this key has made already.

        Raises:
            ApiError: 409 ``idempotency_conflict``: that order said something else.
        """
        job = None if key is None else self._keys.get(key)
        if job is not None and job.digest != digest:
            raise ApiError(
                f"the Idempotency-Key was used for job {job.job_id.hex()}, whose order said something else",
                status=409,
                code="idempotency_conflict",
                param="Idempotency-Key",
            )
        return job

    def start(self, spec: JobSpec, order: Order, *, key: str | None = None, digest: bytes = b"") -> DetachedJob:
        """Take a job on; whatever the caller gives it as ``place`` is closed when it has ended.

        Raises:
            ApiError: 429 ``results_full``.
        """
        assert order.job_id is not None and order.job_id not in self._jobs
        kept = msgspec.json.encode(spec)
        # Twice until it is over: the spec for a rerun, and the order, whose text is that of ``spec``.
        size = 2 * len(kept)
        if not self._make_room(size, jobs=1):
            raise ApiError(
                f"the {len(self._jobs)} detached jobs that run and their {self._size_bytes} bytes leave no room, "
                f"by api.results_max ({self._config.results_max}) and api.results_bytes_max "
                f"({self._config.results_bytes_max}); retry when one has ended",
                status=429,
                code="results_full",
                retry_after_s=FULL_RETRY_S,
            )
        job = DetachedJob(
            job_id=order.job_id,
            task=task_of_spec(spec),
            model=spec.model,
            spec=kept,
            work=(spec, order),
            size_bytes=size,
            key=key,
            digest=digest,
        )
        self._jobs[job.job_id] = job
        if key is not None:
            self._keys[key] = job
        self._size_bytes += size
        self._post.send_nowait(job)
        return job

    def find(self, prefix: str) -> list[DetachedJob]:
        """Return the jobs whose hex id starts so, the forgotten ones among them."""
        jobs = [*self._forgotten.values(), *self._jobs.values()]
        return [job for job in jobs if job.job_id.hex().startswith(prefix)]

    async def _carry_out(self, job: DetachedJob) -> None:
        await self._work(job)
        with job.keeping:
            await trio.sleep(self._config.results_keep_s)
            self._forget(job, f"it was kept for {self._config.results_keep_s} s (api.results_keep_s)")

    async def _work(self, job: DetachedJob) -> None:
        """See one job to its end. What that takes, and nobody counts, is free again when this returns."""
        assert job.work is not None
        spec, order = job.work
        collector, error = _Collector(spec, partial(self._grow, job)), None
        try:
            with collector.scope:
                await follow_order(self._market, order, collector)
        except NodeError as exc:
            error = _told(exc, spec)
        except Exception:  # the edge of one job: a bug that it meets must not end the others
            log.exception("detached job failed", extra={"job": job.job_id.hex()})
            error = ApiError("a fault of this node; its log has it", status=500, code="internal_error")
        finally:
            job.place.close()
        if collector.scope.cancelled_caught:
            error = self._too_large()
        self._finish(job, collector.answer, error)

    def _finish(self, job: DetachedJob, answer: JobAnswer | None, error: ApiError | None) -> None:
        """Keep how a job ended. A long list of numbers grows in JSON: it may be too much only now."""
        assert job.spec is not None
        spec_bytes, result = len(job.spec), _result(job, answer, error)
        if not self._make_room(spec_bytes + len(result) - job.size_bytes):
            result = _result(job, None, self._too_large())
        self._resize(job, spec_bytes + len(result))
        job.work, job.result = None, result
        job.over.set()

    def _too_large(self) -> ApiError:
        return ApiError(
            f"the answer does not fit into the {self._config.results_bytes_max} bytes of api.results_bytes_max "
            "beside the jobs that run; what came until then is paid",
            status=507,
            code="result_too_large",
        )

    def _grow(self, job: DetachedJob, size_bytes: int) -> bool:
        """Count more of an answer; return whether there is room for it."""
        has_room = self._make_room(size_bytes)
        if has_room:
            self._resize(job, job.size_bytes + size_bytes)
        return has_room

    def _resize(self, job: DetachedJob, size_bytes: int) -> None:
        self._size_bytes += size_bytes - job.size_bytes
        job.size_bytes = size_bytes

    def _make_room(self, size_bytes: int, *, jobs: int = 0) -> bool:
        """Forget jobs that are over until there is room: first those that were fetched, the oldest of them."""
        config = self._config
        while (
            self._size_bytes + size_bytes > config.results_bytes_max or len(self._jobs) + jobs > config.results_max
        ):
            over = [job for job in self._jobs.values() if job.result is not None]
            if not over:
                return False
            self._forget(min(over, key=lambda job: not job.was_read), "newer jobs needed the room")
        return True

    def _forget(self, job: DetachedJob, why: str) -> None:
        self._resize(job, 0)
        job.spec = job.result = None
        job.gone = why
        job.keeping.cancel()
        self._forgotten[job.job_id] = self._jobs.pop(job.job_id)
        while len(self._forgotten) > FORGOTTEN_MAX:
            oldest = self._forgotten.pop(next(iter(self._forgotten)))
            if oldest.key is not None:
                del self._keys[oldest.key]


class _Collector:
    """Keeps what comes of a job as long as there is room for it; ``answer`` is there after ``Finished``."""

    def __init__(self, spec: JobSpec, take: Callable[[int], bool]) -> None:
        self.answer: JobAnswer | None = None
        self.scope = trio.CancelScope()
        self._spec, self._take = spec, take
        # A list of tokens took 11 times what its text counts for.
        self._text = bytearray()
        self._outputs: list[ItemOutput] = []

    async def tell(self, event: JobEvent) -> None:
        match event:
            case Output(result=None):
                text = event.text.encode()
                self._text += text
                self._count(len(text))
            case Output(result=result) if result is not None:
                self._outputs.append(result)
                self._count(len(msgspec.msgpack.encode(result)))
            case Finished():
                usage = TaskUsage(units_in=event.tokens_in, units_out=event.tokens_out)
                self.answer = self._whole(event, usage, souk_block(event))
            case _:
                pass

    async def keep_alive(self) -> None:
        """Nobody listens."""

    def _count(self, size_bytes: int) -> None:
        if not self._take(size_bytes):
            self.scope.cancel()

    def _whole(self, event: Finished, usage: TaskUsage, souk: SoukBlock) -> JobAnswer:
        spec = self._spec
        if not isinstance(spec, GenerateSpec):
            return to_answer(spec, self._outputs, usage, souk)
        text = self._text.decode()
        return GenerateAnswer(model=spec.model, text=text, finish_reason=event.finish, usage=usage, souk=souk)


def digest_of(*parts: bytes) -> bytes:
    """Return what tells one order from another, for its Idempotency-Key."""
    return sha256(b"\0".join(parts)).digest()


def _told(exc: NodeError, spec: JobSpec) -> ApiError:
    if isinstance(exc, UnfitInputError):
        return unfit_input(exc, param=spec_field(spec))
    return to_api_error(exc)


_STATES: Final = {"deadline": "expired", "cancelled": "cancelled"}


def _result(job: DetachedJob, answer: JobAnswer | None, error: ApiError | None) -> bytes:
    told = None if error is None else error.answer()
    state = "closed" if told is None else _STATES.get(told.error.code, "failed")
    found = JobResult(
        job_id=job.job_id.hex(),
        state=state,
        is_over=True,
        task=job.task,
        model=job.model,
        answer=None if told is not None else answer,
        error=None if told is None else told.error,
        details=None if told is None or told.souk is msgspec.UNSET else told.souk,
    )
    return msgspec.json.encode(found)
