"""The users of a simulated world: they place orders, read the answers, and sometimes change their mind.

Every token is compared with the scripted truth as it arrives.
"""

import random
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import trio

from node.market.order import Asking, Contracted, Finished, JobEvent, Order, OrderError, Output, PassedOver, Path
from node.testnet.script import MODEL, true_answer
from node.testnet.world import Rooms, SimulatedNode, World
from protocol.errors import DeclineCode
from protocol.task import GenerateInput, Sampling

FIRST_ORDER_S: Final = 8.0
EVENTS_MAX: Final = 16
CANCELS: Final = 0.12
PROBE_DEADLINE_S: Final = 60.0


@dataclass(kw_only=True)
class OrderFile:
    """One order and what became of it."""

    number: int
    node: SimulatedNode
    order: Order
    cancel_after_s: float | None = None
    must_finish: bool = False
    placed_at: float = 0.0
    ended_at: float = 0.0
    job: str = ""
    tokens: list[int] = field(default_factory=list)
    passed_over: set[str] = field(default_factory=set)
    outcome: str = ""
    """``finished``, ``failed``, ``cancelled``, ``crashed`` with its node, ``not_placed``; empty until it ends."""
    contracts: int = 0
    done: trio.Event = field(default_factory=trio.Event)

    @property
    def item(self) -> str:
        """Its name among what a run consists of."""
        return f"order/{self.number}"

    @property
    def due_at(self) -> float:
        return self.placed_at + self.order.deadline_s


def draw_orders(world: World, count: int) -> list[tuple[float, OrderFile]]:
    """Return when each order is placed, and by whom."""
    rng = world.rng("orders")
    last_s = world.scenario.faults_s
    orders = []
    for number in range(count):
        node = rng.choice([it for it in world.nodes if not it.serves or (it.lie is None and rng.random() < 0.3)])
        order = (
            _draw_order(rng, number, deadline_s=PROBE_DEADLINE_S)
            if world.scenario.must_finish
            else _draw_order(rng, number, deadlines_s=world.scenario.deadline_s)
        )
        file = OrderFile(number=number, node=node, order=order)
        if rng.random() < CANCELS:
            file.cancel_after_s = rng.uniform(0.05, 5.0)
        file.must_finish = world.scenario.must_finish and file.cancel_after_s is None
        orders.append((rng.uniform(FIRST_ORDER_S, last_s), file))
    return sorted(orders, key=lambda it: it[0])


def probes(world: World, first_number: int) -> list[OrderFile]:
    """Return orders that have to be filled once everything has healed."""
    rng = world.rng("probes")
    files: list[OrderFile] = []
    for node in world.nodes:
        if not node.serves and not node.is_stranger and node.lie is None:
            order = _draw_order(rng, first_number + len(files), deadline_s=PROBE_DEADLINE_S)
            files.append(OrderFile(number=first_number + len(files), node=node, order=order, must_finish=True))
    return files


def _draw_order(
    rng: random.Random,
    number: int,
    *,
    deadline_s: float | None = None,
    deadlines_s: tuple[float, float] = (0.0, 0.0),
) -> Order:
    """Return an order that has to be filled by ``deadline_s``, or one that may fail, with a drawn deadline."""
    # A provider may rightly refuse what was not asked for: a fast order that has to be filled would prove nothing.
    paths: tuple[Path, ...] = ("auto", "auto", "quote") if deadline_s else ("auto", "auto", "fast", "quote")
    return Order(
        model=MODEL,
        task_input=GenerateInput(prompt=f"order {number}: " + "x" * rng.randrange(400)),
        sampling=Sampling(temperature_milli=700, seed=rng.getrandbits(40)),
        tokens_out_max=rng.randint(1, 200),
        where="remote",
        path=rng.choice(paths),
        deadline_s=rng.uniform(*deadlines_s) if deadline_s is None else deadline_s,
    )


def place(world: World, file: OrderFile) -> None:
    """Give an order to its node, if that is up."""
    file.placed_at = trio.current_time()
    if file.node.inbox is None:
        file.outcome = "not_placed"
        file.done.set()
    else:
        file.node.inbox.send_nowait(partial(_follow, world, file))


async def _follow(world: World, file: OrderFile, rooms: Rooms) -> None:
    """Place an order at a node and follow it to its end."""
    sink, events = trio.open_memory_channel[JobEvent](EVENTS_MAX)
    error: Exception | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_read, world, file, rooms, events)
            with sink, trio.CancelScope() as user:
                if file.cancel_after_s is not None:
                    user.deadline = trio.current_time() + file.cancel_after_s
                try:
                    await rooms.requester.submit(file.order, sink)
                except Exception as exc:  # judged below: only some errors may end an order
                    error = exc
        if user.cancelled_caught:
            file.outcome = "cancelled"
        elif error is not None:
            file.outcome = "failed"
        if rooms.life.alive:
            _judge_end(world, file, error)
    finally:
        file.ended_at = trio.current_time()
        file.outcome = file.outcome or "crashed"
        if rooms.life.alive:
            world.witness.note(file.node.name, f"order {file.outcome}", job=file.job, detail=_cause(file, error))
        file.done.set()


def _cause(file: OrderFile, error: Exception | None) -> str:
    return f"{len(file.tokens)} tokens" + ("" if error is None else f", {type(error).__name__}: {error}")


async def _read(world: World, file: OrderFile, rooms: Rooms, events: trio.MemoryReceiveChannel[JobEvent]) -> None:
    assert isinstance(file.order.task_input, GenerateInput)
    truth, finish = true_answer(file.order.task_input.prompt, file.order.sampling.seed, file.order.tokens_out_max)
    async for event in events:
        if not rooms.life.alive:
            continue
        match event:
            case Asking(job_id=job_id):
                file.job = job_id.hex()
                world.witness.note(
                    file.node.name, "order asks", job=file.job, detail=f"{len(event.peer_ids)} peers"
                )
            case Contracted():
                file.contracts += 1
            case PassedOver(code=code, message=message):
                file.passed_over.add(str(code))
                world.witness.note(file.node.name, "passes over", job=file.job, detail=f"{code}: {message}")
            case Output(tokens=tokens):
                file.tokens += tokens
                if file.tokens != truth[: len(file.tokens)]:
                    world.checks.fail("the answer is not the true one", f"order {file.number}", job=file.job)
            case Finished():
                file.outcome = "finished"
                if file.tokens != truth or event.finish != finish or event.tokens_out != len(truth):
                    world.checks.fail(
                        "a finished answer is not whole",
                        f"{len(file.tokens)} of {len(truth)} tokens, {event.finish} for {finish}",
                        job=file.job,
                    )
            case _:
                pass


def _judge_end(world: World, file: OrderFile, error: Exception | None) -> None:
    if error is not None and not isinstance(error, OrderError):
        world.checks.fail("an order ended in another error", repr(error), job=file.job)
    # Debts of the time before may refuse it, rightly.
    excused = DeclineCode.CREDIT in file.passed_over and not world.scenario.must_finish
    if file.must_finish and file.outcome != "finished" and not excused:
        world.checks.fail("an order was not filled", f"order {file.number}: {error!r}", job=file.job)
