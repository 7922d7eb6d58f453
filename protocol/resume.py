"""Resume: where each side stands with a contract after its stream was lost (spec 03, section 12).

The requester opens a new job stream with it, and the provider answers with its own. It binds nobody and is not
kept: what follows it is the very messages and frames that the other side lacks.
"""

from typing import ClassVar, Literal

from protocol.account import ProviderAccount, RequesterAccount
from protocol.errors import Reason, RemoteProtocolError
from protocol.fields import Count, Hash
from protocol.signed import SignedMessage
from protocol.units import MessageId

Standing = Literal["offered", "open", "over", "unknown"]


class Resume(SignedMessage, frozen=True, kw_only=True):
    """What its sender has of a contract; the other side sends the rest."""

    kind: ClassVar[str] = "resume"

    contract_id: Hash
    standing: Standing
    """``offered``: a requester without an answer to its contract. ``open``: the job goes on. ``over``: the sender
    neither sends nor takes output any more. ``unknown``: a provider that never took this contract."""
    frames: Count
    """Output frames received, or sent."""
    meter: Count
    """Number of the last meter received, or sent; 0 for none."""
    voucher: Count
    """Number of the last voucher sent, or received; 0 for none."""


def resume_of_requester(contract_id: MessageId, account: RequesterAccount | None, *, is_over: bool) -> Resume:
    """Return what a requester opens a new stream with; without an account its contract was never answered."""
    standing: Standing = "offered" if account is None else "open"
    return Resume(
        contract_id=contract_id,
        standing="over" if is_over else standing,
        frames=0 if account is None else account.delivered.frames,
        meter=0 if account is None else account.meters,
        voucher=0 if account is None else account.vouchers,
    )


def resume_of_provider(contract_id: MessageId, account: ProviderAccount, *, is_over: bool) -> Resume:
    """Return a provider's answer about a contract that it took."""
    return Resume(
        contract_id=contract_id,
        standing="over" if is_over else "open",
        frames=account.delivered.frames,
        meter=account.meters,
        voucher=account.vouchers,
    )


def check_requester_untrusted(resume: Resume, account: ProviderAccount, *, frames_kept_from: int) -> None:
    """Refuse, with ``RemoteProtocolError``, a requester that has what was never sent, or lacks what it paid."""
    if resume.standing == "unknown":
        raise RemoteProtocolError("resume: a requester knows its own contract", reason=Reason.MEANING)
    if resume.standing == "over":
        return
    frames, meters = account.delivered.frames, account.meters
    if resume.frames > frames or resume.meter > meters or resume.voucher < account.vouchers:
        raise RemoteProtocolError(
            f"resume: {resume.frames} frames, meter {resume.meter}, voucher {resume.voucher};"
            f" here {frames}, {meters} and {account.vouchers}",
            reason=Reason.MEANING,
        )
    if resume.frames < frames_kept_from:
        raise RemoteProtocolError(
            f"resume: {resume.frames} frames, but a voucher accepts {frames_kept_from}", reason=Reason.MEANING
        )


def check_provider_untrusted(resume: Resume, contract_id: MessageId, account: RequesterAccount | None) -> None:
    """Refuse, with ``RemoteProtocolError``, an answer that contradicts what the provider sent before."""
    if resume.contract_id != contract_id:
        raise RemoteProtocolError("resume: for another contract", reason=Reason.MEANING)
    if resume.standing == "offered":
        raise RemoteProtocolError("resume: a provider has nothing on offer", reason=Reason.MEANING)
    if resume.standing != "open":
        return
    frames, meters, vouchers = (
        (0, 0, 0) if account is None else (account.delivered.frames, account.meters, account.vouchers)
    )
    if resume.frames < frames or resume.meter < meters or resume.voucher > vouchers:
        raise RemoteProtocolError(
            f"resume: {resume.frames} frames, meter {resume.meter}, voucher {resume.voucher};"
            f" here {frames}, {meters} and {vouchers}",
            reason=Reason.MEANING,
        )
