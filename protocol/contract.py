"""The contract: all terms in one signed message, and the acceptance that forms it (spec 03, 5, 6 and 11).

Two signatures make a contract; there is no third step. The requester's signature binds it until ``accept_by_ms``.
"""

from hashlib import sha256
from typing import Annotated, ClassVar, Final

from msgspec import Meta

from protocol import limits
from protocol.errors import Reason, RemoteProtocolError
from protocol.fields import Bytes, Dtype, Hash, JobKey, Key, Money, SomeTokens, Task, TimeMs, Tokens
from protocol.price import Prices
from protocol.signed import Signed, SignedMessage
from protocol.task import Sampling
from protocol.units import MessageId, PeerId, UnixMs

INPUT_DOMAIN: Final = b"souk.input.v1\x00"
SALT_BYTES: Final = 16


class Contract(SignedMessage, frozen=True, kw_only=True):
    """Everything that was agreed, repeated: no message before it needs to be kept to judge it."""

    kind: ClassVar[str] = "contract"

    version: Annotated[int, Meta(ge=1, le=255)]
    job_id: JobKey
    requester: Key
    provider: Key
    answers: Hash
    """The id of the quote, or of the advert whose standing offer is taken."""
    made_at_ms: TimeMs
    accept_by_ms: TimeMs
    start_by_ms: TimeMs
    """When the first output must have been sent."""
    end_by_ms: TimeMs
    task: Task
    model_id: Hash
    dtype: Dtype
    sampling: Sampling
    input_hash: Hash
    """Over salt and input; the salt travels with the input and is in no signed message."""
    input_bytes: Bytes
    tokens_held: Tokens
    """Answer tokens of earlier providers that the input brings along: the first new one has this position."""
    tokens_in_max: SomeTokens
    """Prompt and held tokens together."""
    tokens_out_max: SomeTokens
    """New ones, that is without the held."""
    prices: Prices
    price_max: Money
    credit: Money
    voucher_window_tokens: SomeTokens


class Accept(SignedMessage, frozen=True, kw_only=True):
    """The provider's signature under a contract, with the prompt's length by its own tokeniser."""

    kind: ClassVar[str] = "accept"

    contract_id: Hash
    accepted_at_ms: TimeMs
    tokens_in: SomeTokens
    memory_bytes: Bytes | None = None
    """Of the device: weights, working memory, and the cache of prompt and longest answer together."""


class Cancel(SignedMessage, frozen=True, kw_only=True):
    """Either side ends a contract early; what is owed is what the last meter before it says."""

    kind: ClassVar[str] = "cancel"

    contract_id: Hash
    code: Annotated[str, Meta(pattern=r"^(user|meter|deadline|failed)\Z")]
    meter: Annotated[int, Meta(ge=0, le=1 << 32)]
    """Number of the last meter seen (by the requester) or sent (by the provider); 0 for none."""


def check_accept_untrusted(signed: Signed[Accept], *, contract_id: MessageId, contract: Contract) -> None:
    """Refuse, with ``RemoteProtocolError``, an acceptance that does not form this contract.

    ``accepted_at_ms`` is the provider's own note: a requester judges lateness by its own clock.
    """
    if signed.signer != contract.provider:
        raise RemoteProtocolError("accept: the signer is not the provider", reason=Reason.SIGNER)
    if signed.message.contract_id != contract_id:
        raise RemoteProtocolError("accept: for another contract", reason=Reason.MEANING)
    if signed.message.tokens_in > contract.tokens_in_max:
        raise RemoteProtocolError(
            f"accept: {signed.message.tokens_in} tokens in, at most {contract.tokens_in_max} were agreed",
            reason=Reason.MEANING,
        )


def hash_input(salt: bytes, data: bytes) -> bytes:
    """Return what a contract says of its input: without the salt nobody can test a guess of the prompt."""
    assert len(salt) == SALT_BYTES
    return sha256(INPUT_DOMAIN + salt + data).digest()


def check_contract_untrusted(signed: Signed[Contract], *, provider: PeerId, now_ms: UnixMs) -> None:
    """Refuse a contract whose parties, order of times or bounds make no sense.

    Whether the terms suit the provider is the market's to say. Raises nothing but ``RemoteProtocolError``.
    """
    contract = signed.message
    if contract.requester != signed.signer:
        raise RemoteProtocolError("contract: the signer is not its requester", reason=Reason.SIGNER)
    if contract.provider != provider:
        raise RemoteProtocolError("contract: made with another provider", reason=Reason.SIGNER)
    if contract.requester == contract.provider:
        raise RemoteProtocolError("contract: both parties are one peer", reason=Reason.MEANING)
    if contract.version != 1:
        raise RemoteProtocolError(
            f"contract: protocol version {contract.version}, this node speaks 1", reason=Reason.MEANING
        )
    times = (contract.made_at_ms, contract.accept_by_ms, contract.start_by_ms, contract.end_by_ms)
    if list(times) != sorted(times):
        raise RemoteProtocolError("contract: made, accept, start and end are out of order", reason=Reason.TIME)
    if contract.accept_by_ms - contract.made_at_ms > limits.ACCEPT_WAIT_MS_MAX:
        raise RemoteProtocolError("contract: the offer stands too long", reason=Reason.TIME)
    if contract.end_by_ms - contract.made_at_ms > limits.JOB_LIFE_MS_MAX:
        raise RemoteProtocolError("contract: the job may last too long", reason=Reason.TIME)
    if contract.made_at_ms > now_ms + limits.CLOCK_SKEW_MS_MAX:
        raise RemoteProtocolError("contract: made in the future", reason=Reason.TIME)
    if contract.accept_by_ms + limits.CLOCK_SKEW_MS_MAX < now_ms:
        raise RemoteProtocolError("contract: the offer has lapsed", reason=Reason.TIME)
    if not 0 < contract.input_bytes <= limits.INPUT_BYTES_MAX:
        raise RemoteProtocolError(f"contract: an input of {contract.input_bytes} bytes", reason=Reason.SIZE)
