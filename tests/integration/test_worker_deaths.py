"""Jobs while their worker is killed at random, again and again: none is lost, and serving goes on at once.

Each job does what a requester does: what it has of the answer goes along as held tokens to whoever serves next.
"""

import os
import random
import signal
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from node.config import WorkerSection
from node.errors import WorkerDiedError
from node.execution.interface import Piece
from node.execution.pool import WorkerPool
from node.execution.quarantine import QuarantineRules
from node.execution.worker_rules import WorkerRules
from node.models.store import ModelStore
from protocol.task import GenerateInput, Sampling, pack_tokens
from tests.integration.paced_model import write_paced_store

pytestmark = [pytest.mark.integration, pytest.mark.slow]

LANES = 4
TOKENS = 24
# The killer is this test and no device: quarantine has a test of its own.
RULES = WorkerRules(quarantine=QuarantineRules(deaths_max=10_000, restart_s=(0.0,)))


@dataclass(slots=True)
class Campaign:
    """Runs jobs on a pool, and kills its worker in the middle of answers."""

    pool: WorkerPool
    seed: int
    kills_max: int
    has_spare: bool
    texts: dict[int, str] = field(default_factory=dict)
    kills: int = 0
    failed_s: list[float] = field(default_factory=list)
    """From each kill to the last word that a job which it hit got."""
    back_s: list[float] = field(default_factory=list)
    """From each kill to the next piece of an answer."""
    _killed_at: float | None = None
    _pieces: int = 0
    _kill_at_piece: int = 0

    async def run(self, jobs: int) -> None:
        rng = random.Random(self.seed)
        waiting = list(range(jobs))

        async def lane() -> None:
            while waiting:
                number = waiting.pop()
                self.texts[number] = await self._answer(number, rng)

        async with trio.open_nursery() as lanes:
            for _ in range(LANES):
                lanes.start_soon(lane)

    async def _answer(self, number: int, rng: random.Random) -> str:
        tokens: list[int] = []
        text, attempt = "", 0
        while True:
            await self._wait_served()
            attempt += 1
            began = trio.current_time()
            try:
                model_id = self.pool.models()[0].model_id
                task = GenerateInput(prompt=f"job {number}: ", held=pack_tokens(tokens))
                prompt = await self.pool.prepare(f"{number}/{attempt}", model_id, task, TOKENS - len(tokens))
                post, pieces = trio.open_memory_channel[Piece](TOKENS + 1)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._generate, prompt, number, post)
                    async for piece in pieces:
                        self._note_piece(rng, began)
                        tokens += piece.tokens
                        text += piece.text
                        if piece.finish is not None:
                            return text
            except* WorkerDiedError:
                if self._killed_at is not None:
                    self.failed_s.append(trio.current_time() - self._killed_at)

    async def _generate(self, prompt: object, number: int, post: trio.MemorySendChannel[Piece]) -> None:
        with post:
            sampling = Sampling(temperature_milli=800, seed=number + 1)
            await self.pool.generate(prompt, sampling, tokens_out_max=TOKENS, sink=post)  # type: ignore[arg-type]

    async def _wait_served(self) -> None:
        while not self.pool.models() or (self._is_due and not self._may_strike):
            await self.pool.wait_change()

    @property
    def _is_due(self) -> bool:
        is_over = self.kills >= self.kills_max
        return not is_over and self._killed_at is None and self._pieces >= self._kill_at_piece

    @property
    def _may_strike(self) -> bool:
        return not self.has_spare or self.pool.workers()[0].spare == "loaded"

    def _note_piece(self, rng: random.Random, began: float) -> None:
        """Note a piece of an attempt that began then; what a dead worker said last proves nothing."""
        now = trio.current_time()
        if self._killed_at is not None and began > self._killed_at:
            self.back_s.append(now - self._killed_at)
            self._killed_at = None
            self._kill_at_piece = self._pieces + rng.randint(20, 120)
        self._pieces += 1
        if self._is_due and self._may_strike:
            self.kills += 1
            self._killed_at = now
            pid = self.pool._workers[0].process.pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)


async def campaign(folder: Path, *, jobs: int, kills: int, has_spare: bool) -> Campaign:
    store = ModelStore(write_paced_store(folder / "store"))
    config = WorkerSection(
        devices="cpu", dtype="fp32", threads=1, slots=LANES, context_tokens_max=128, warm_spare=has_spare
    )
    pool = WorkerPool(config, store, ("paced",), rules=RULES)
    async with trio.open_nursery() as nursery:
        await nursery.start(pool.run)
        undisturbed = Campaign(pool, seed=1, kills_max=0, has_spare=has_spare)
        await undisturbed.run(jobs)
        while has_spare and pool.workers()[0].spare != "loaded":
            await pool.wait_change()
        struck = Campaign(pool, seed=1, kills_max=kills, has_spare=has_spare)
        await struck.run(jobs)
        nursery.cancel_scope.cancel()
    # None lost, none cut, doubled or out of place.
    assert struck.texts == undisturbed.texts and len(struck.texts) == jobs
    assert all(len(text) == TOKENS for text in struck.texts.values())
    return struck


async def test_no_job_is_lost_when_its_worker_is_killed_and_the_spare_takes_over(tmp_path: Path) -> None:
    struck = await campaign(tmp_path, jobs=8, kills=1, has_spare=True)
    assert struck.kills == 1 and struck.failed_s
    assert max(struck.failed_s) <= 1.0
    # A second and a half: an idle machine takes a tenth of one.
    assert max(struck.back_s) <= 1.5


@pytest.mark.deep
@pytest.mark.parametrize(("has_spare", "bound_s"), [(False, 5.0), (True, 1.0)], ids=["no spare", "warm spare"])
async def test_no_job_of_300_is_lost_under_50_kills_of_their_worker(
    tmp_path: Path, figure: Callable[[str, str], None], has_spare: bool, bound_s: float
) -> None:
    struck = await campaign(tmp_path, jobs=300, kills=20 if has_spare else 52, has_spare=has_spare)
    name = "with a warm spare" if has_spare else "without a spare"
    figure(f"worker deaths, {name}", f"300 jobs, {struck.kills} SIGKILLs, 0 lost")
    for what, seconds in (("job told", struck.failed_s), ("serving again", struck.back_s)):
        figure(
            f"worker deaths, {name}, {what}",
            f"{statistics.median(seconds):.3f} s median, {max(seconds):.3f} s at most, of {len(seconds)}",
        )
    assert struck.kills == (20 if has_spare else 52)
    assert max(struck.failed_s) <= 1.0
    assert statistics.median(struck.back_s) <= bound_s
