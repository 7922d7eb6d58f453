"""The journal's record of a contract that a peer has with us, as it begins."""

from node.market.journal import JobRecord, Step
from node.market.provider_job import ProviderJob
from protocol.units import JobId, MessageId, UnixMs


def sale_record(job: ProviderJob, contract_id: MessageId, *, is_queued: bool) -> JobRecord:
    """Return the record; ``is_queued``: more jobs hold places than the devices have slots."""
    record = JobRecord(
        role="worker",
        job_id=JobId(job.contract.message.job_id),
        contract_id=contract_id,
        peer_id=job.contract.signer,
        model=job.model_name,
        operation=job.operation,
        state=str(job.state),
        tokens_in=job.tokens_in,
        started_ms=UnixMs(job.accepted_at_ms),
    )
    if job.loading_at_ms is not None:
        record.note(Step(name="loading", at_ms=job.loading_at_ms, peer_id=record.peer_id))
    record.note(
        Step(
            name="contracted",
            at_ms=record.started_ms,
            peer_id=record.peer_id,
            contract_id=contract_id,
            price_max_microcredits=job.contract.message.price_max,
        )
    )
    if is_queued:
        record.note(Step(name="queued", at_ms=record.started_ms, peer_id=record.peer_id))
    return record
