"""Signed messages and rows as the market would post them."""

from node.ledger.entries import ContractRow, Entry, Role
from node.ledger.ledger import Ledger
from protocol.envelope import seal
from protocol.states import ProviderState, RequesterState
from protocol.units import JobId, MessageId, Microcredits, ModelId, NetworkId, PeerId, UnixMs
from tests.fakes import signer_of

NETWORK = NetworkId(b"n" * 32)
JOB = JobId(b"j" * 16)
PEER = signer_of("peer").peer_id


def entry(number: int, *, contract: int | None = None, by: str = "me", job: bytes = JOB) -> Entry:
    return Entry(
        envelope=seal("meter", {"number": number}, network=NETWORK, signer=signer_of(by)),
        job_id=JobId(job),
        peer_id=PEER,
        contract_id=None if contract is None else contract_id(contract),
        at_ms=UnixMs(1_000 + number),
    )


def contract_id(number: int) -> MessageId:
    return MessageId(number.to_bytes(32, "big"))


def row(
    number: int,
    state: ProviderState | RequesterState = ProviderState.RUNNING,
    *,
    metered: int = 0,
    vouchered: int = 0,
    peer: PeerId = PEER,
) -> ContractRow:
    role: Role = "provider" if isinstance(state, ProviderState) else "requester"
    return ContractRow(
        contract_id=contract_id(number),
        job_id=JOB,
        role=role,
        peer_id=peer,
        model_id=ModelId(bytes(32)),
        model="tiny",
        state=state,
        tokens_in=1,
        tokens_out=2,
        metered=Microcredits(metered),
        vouchered=Microcredits(vouchered),
        at_ms=UnixMs(1_000 + number),
    )


async def unpaid(ledger: Ledger) -> dict[PeerId, int]:
    """Return what each peer owes that owes something, as the books show it to their owner."""
    return {it.peer_id: it.unpaid_by_them for it in await ledger.peer_accounts() if it.unpaid_by_them}
