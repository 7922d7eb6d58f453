"""Whole signed jobs as either side would have entered them, for tests that look at what the messages say."""

from hashlib import sha256

from msgspec.structs import replace

from node.ledger.entries import ContractRow, Entry, Role
from protocol.account import ProviderAccount, RequesterAccount
from protocol.contract import Accept
from protocol.signed import Signed, SignedMessage, sign
from protocol.states import ProviderState, RequesterState
from protocol.task import GenerateOutput
from protocol.units import JobId, MessageId, Microcredits, ModelId, UnixMs
from scripts.spec import examples


def signed_job(number: int) -> list[Signed[SignedMessage]]:
    """Return ask, contract, accept, meters, vouchers, receipt and closing of job ``number``."""
    job_id = sha256(b"job %d" % number).digest()[:16]

    def by(signer: object, message: SignedMessage) -> Signed[SignedMessage]:
        made = sign(message, network=examples.NETWORK, signer=signer)  # type: ignore[arg-type]  # an Ed25519Signer
        said.append(made)
        return made

    said: list[Signed[SignedMessage]] = []
    asked = by(examples.REQUESTER, replace(examples.ask(), job_id=job_id))
    terms = replace(examples.contract(asked.message_id), job_id=job_id)
    contract_id = by(examples.REQUESTER, terms).message_id
    by(examples.PROVIDER, Accept(contract_id=contract_id, accepted_at_ms=terms.made_at_ms + 55, tokens_in=23))
    giving = ProviderAccount(contract_id, terms, salt=examples.SALT, tokens_in=23)
    taking = RequesterAccount(contract_id, terms, salt=examples.SALT, tokens_in=23)
    for place, finish in enumerate((None, "stop")):
        output = GenerateOutput(tokens=(1, 2, 3, 4), text="four", finish=finish)  # type: ignore[arg-type]  # literals
        sequence, data = giving.output(output)
        taking.output_untrusted(sequence, data)
        meter = giving.meter(200 * (place + 1), final=finish is not None)
        by(examples.PROVIDER, meter)
        voucher = taking.meter_untrusted(meter, 200 * (place + 1))
        by(examples.REQUESTER, voucher)
        giving.voucher_untrusted(voucher)
    started = UnixMs(terms.made_at_ms + 60)
    receipt = giving.receipt("complete", profile=examples.PROFILE, started_ms=started, ended_ms=started)
    done = by(examples.PROVIDER, receipt)
    by(examples.REQUESTER, taking.closing(done.message_id, "complete"))
    return said


def contract_of(job: list[Signed[SignedMessage]]) -> MessageId:
    return job[1].message_id


def entries_of(job: list[Signed[SignedMessage]], role: Role = "provider") -> list[Entry]:
    peer = examples.REQUESTER if role == "provider" else examples.PROVIDER
    return [
        Entry(
            envelope=it.envelope,
            job_id=JobId(job[0].message.job_id),  # type: ignore[attr-defined]  # an ask
            peer_id=peer.peer_id,
            contract_id=None if it.envelope.kind == "ask" else contract_of(job),
            at_ms=UnixMs(examples.NOW_MS + place),
        )
        for place, it in enumerate(job)
    ]


def row_of(job: list[Signed[SignedMessage]], role: Role = "provider") -> ContractRow:
    """Return the row of a job that was closed."""
    by_kind = {it.envelope.kind: it.message for it in job}
    contract, accept, receipt = by_kind["contract"], by_kind["accept"], by_kind["receipt"]
    return ContractRow(
        contract_id=contract_of(job),
        job_id=JobId(contract.job_id),  # type: ignore[attr-defined]  # by its kind, here and below
        role=role,
        peer_id=(examples.REQUESTER if role == "provider" else examples.PROVIDER).peer_id,
        model_id=ModelId(contract.model_id),  # type: ignore[attr-defined]
        model="tiny-chat",
        state=ProviderState.CLOSED if role == "provider" else RequesterState.CLOSED,
        tokens_in=accept.tokens_in,  # type: ignore[attr-defined]
        tokens_out=receipt.tokens_out,  # type: ignore[attr-defined]
        metered=Microcredits(receipt.cumulative),  # type: ignore[attr-defined]
        vouchered=Microcredits(receipt.cumulative),  # type: ignore[attr-defined]
        at_ms=UnixMs(accept.accepted_at_ms if role == "provider" else contract.made_at_ms),  # type: ignore[attr-defined]
    )
