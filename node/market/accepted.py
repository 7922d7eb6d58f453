"""A contract that a provider has accepted, and its first row in the ledger. Values only."""

from collections.abc import Callable
from dataclasses import dataclass

from node.execution.interface import Prompt, ServedModel
from node.ledger.entries import ContractRow
from node.market.journal import Operation
from protocol.contract import Accept, Contract
from protocol.signed import Signed
from protocol.states import ProviderState
from protocol.units import JobId, Microcredits, ModelId, UnixMs


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A contract with both signatures, durable, and its prompt ready in a worker."""

    contract: Signed[Contract]
    accept: Signed[Accept]
    salt: bytes
    prompt: Prompt
    model: ServedModel
    may_owe: Callable[[Microcredits], bool]
    """Whether this contract may come to that sum in all (spec 05, section 7); asked before each window."""
    operation: Operation
    """What kind of work it is."""
    loading_at_ms: UnixMs | None = None
    """When its model began to be loaded, where it was not there."""


def first_row(contract: Signed[Contract], accept: Signed[Accept], *, model: str) -> ContractRow:
    """Return the ledger's row of a contract that has just been accepted."""
    return ContractRow(
        contract_id=contract.message_id,
        job_id=JobId(contract.message.job_id),
        role="provider",
        peer_id=contract.signer,
        model_id=ModelId(contract.message.model_id),
        model=model,
        state=ProviderState.FORMED,
        tokens_in=accept.message.tokens_in,
        tokens_out=0,
        metered=Microcredits(0),
        vouchered=Microcredits(0),
        at_ms=UnixMs(accept.message.accepted_at_ms),
    )
