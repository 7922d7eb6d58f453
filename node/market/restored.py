"""The journal after a restart: the newest jobs as the ledger's rows and messages prove them, and no more.

Who was asked, what was passed over, waiting, loading and first tokens are in no signed message: those steps are
lost, and ``is_restored`` says so. Jobs on our own devices leave nothing in the ledger.
"""

from collections.abc import Iterable
from typing import Final

from node.ledger.timelines import Timeline
from node.market.journal import JobRecord, Step, StepName
from node.market.provider_job import job_state
from node.metrics import JobState
from protocol.states import ProviderState, RequesterState
from protocol.units import JobId, UnixMs

_BOUGHT: Final[tuple[tuple[str, StepName], ...]] = (
    ("quote", "quoted"),
    ("contract", "offered"),
    ("decline", "passed_over"),
    ("accept", "contracted"),
    ("receipt", "done"),
    ("closing", "verified"),
)
# A receipt also ends what was cut: "done" is one that the requester has closed.
_SOLD: Final[dict[bool, tuple[tuple[str, StepName], ...]]] = {
    True: (("accept", "contracted"), ("receipt", "done"), ("closing", "paid")),
    False: (("accept", "contracted"),),
}
_ORDER_STATES: Final[dict[RequesterState, JobState]] = {
    RequesterState.CANCELLED: "cancelled",
    RequesterState.DISPUTED: "disputed",
}


def sale_of(line: Timeline) -> JobRecord:
    """Return the record of a contract that a peer had with us."""
    row = line.row
    assert isinstance(row.state, ProviderState)
    record = _begin(line, line.times.get("accept", row.at_ms))
    record.tokens_in, record.tokens_out = row.tokens_in, row.tokens_out
    record.cost_microcredits = row.vouchered
    record.energy_millijoules = row.energy_millijoules
    _add_steps(record, line, _SOLD[row.state is ProviderState.CLOSED])
    return _end(record, job_state(row.state), line.last_ms)


def orders_of(lines: Iterable[Timeline]) -> list[JobRecord]:
    """Return the records of our own orders; ``lines`` are in the order of their contracts."""
    by_job: dict[JobId, list[Timeline]] = {}
    for line in lines:
        by_job.setdefault(line.row.job_id, []).append(line)
    return [_order_of(its) for its in by_job.values()]


def _order_of(lines: list[Timeline]) -> JobRecord:
    """Return an order's record, whatever contracts it took."""
    began = min([lines[0].row.at_ms, *lines[0].times.values()])
    record, last = _begin(lines[0], began), lines[-1]
    for line in lines:
        row = line.row
        record.contract_id, record.peer_id = row.contract_id, row.peer_id
        record.tokens_in = record.tokens_in or row.tokens_in
        record.tokens_out += row.tokens_out
        record.cost_microcredits += row.vouchered
        _add_steps(record, line, _BOUGHT)
    state = last.row.state
    assert isinstance(state, RequesterState)
    if state is RequesterState.CLOSED and last.closed_ok:
        return _end(record, "closed", last.last_ms)
    return _end(record, _ORDER_STATES.get(state, "failed"), last.last_ms)


def _begin(line: Timeline, started_ms: UnixMs) -> JobRecord:
    row = line.row
    return JobRecord(
        role="worker" if row.role == "provider" else "requester",
        job_id=row.job_id,
        model=row.model,
        started_ms=started_ms,
        contract_id=row.contract_id,
        peer_id=row.peer_id,
        is_restored=True,
    )


def _add_steps(record: JobRecord, line: Timeline, names: tuple[tuple[str, StepName], ...]) -> None:
    for kind, name in names:
        if (at_ms := line.times.get(kind)) is not None:
            contract_id = None if kind == "quote" else line.row.contract_id
            record.note(Step(name=name, at_ms=at_ms, peer_id=line.row.peer_id, contract_id=contract_id))


def _end(record: JobRecord, state: JobState, at_ms: UnixMs) -> JobRecord:
    record.end(state, at_ms)
    return record
