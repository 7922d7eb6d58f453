"""One message of every type, and one whole job, from fixed seeds: what the vectors hold and the tests start from.

The numbers are invented; keys, salts and ids are hashes of their names, so that every run makes the same bytes.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from node.keystore import Ed25519Signer
from protocol.account import ProviderAccount, RequesterAccount
from protocol.advert import Advert, DeviceClaim, Offer
from protocol.contract import Accept, Cancel, Contract, hash_input
from protocol.envelope import network_id
from protocol.errors import DeclineCode
from protocol.framing import AliveFrame, EnvelopeFrame, Frame, OutputFrame, split_input
from protocol.offer import Ask, Decline, Quote
from protocol.price import Prices
from protocol.receipt import Closing, Receipt
from protocol.resume import Resume
from protocol.signed import Signed, SignedMessage, sign
from protocol.statement import NO_HASH, Head, Parties, Settled, Statement, Sums, Tally, next_statement
from protocol.task import ChatMessage, GenerateInput, GenerateOutput, Sampling, encode_input
from protocol.units import MessageId, NetworkId, UnixMs
from protocol.voucher import Meter, Voucher


def named(name: str, size: int = 32) -> bytes:
    """Return bytes that stand for a random value."""
    return sha256(b"souk.example " + name.encode()).digest()[:size]


NETWORK_CONFIG: Final = {"name": "example"}
NETWORK: Final[NetworkId] = network_id({"name": "example"})
OTHER_NETWORK: Final[NetworkId] = network_id({"name": "other"})
SEEDS: Final = {"requester": named("requester"), "provider": named("provider"), "stranger": named("stranger")}
REQUESTER: Final = Ed25519Signer(SEEDS["requester"])
PROVIDER: Final = Ed25519Signer(SEEDS["provider"])
STRANGER: Final = Ed25519Signer(SEEDS["stranger"])
NOW_MS: Final = UnixMs(1_800_000_000_000)
SALT: Final = named("salt", 16)
JOB_ID: Final = named("job", 16)
MODEL_ID: Final = named("model")
PROFILE: Final = "cpu:bf16:eager"
PRICES: Final = Prices(fixed=100, tokens_in=200_000, tokens_out=800_000, per_s=50)
INPUT: Final = GenerateInput(
    messages=(
        ChatMessage(role="system", content="You answer in one sentence."),
        ChatMessage(role="user", content="Wie weit ist es zum Mond? 🌒"),
    ),
    stop=("\n\n",),
)
INPUT_BYTES: Final = encode_input(INPUT)
OUTPUTS: Final = (
    GenerateOutput(tokens=(9707,), text="Der"),
    GenerateOutput(tokens=(40, 61, 7), text=" Mond ist"),
    GenerateOutput(tokens=(1024, 77), text=" weit weg", finish=None),
    GenerateOutput(tokens=(2,), text=".", finish="stop"),
)


def advert() -> Advert:
    return Advert(
        sequence=NOW_MS,
        issued_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 90_000,
        versions=(1,),
        name="brook",
        addresses=("/ip4/192.0.2.7/tcp/11501",),
        devices=(
            DeviceClaim(
                device="cpu",
                name="x86-64, 8 cores",
                architecture="x86_64",
                memory_total_bytes=33_554_432_000,
                memory_free_bytes=21_474_836_480,
                dtypes=("fp32", "bf16"),
                matmul_gflops=310,
            ),
        ),
        offers=(
            Offer(
                model_id=MODEL_ID,
                name="tiny-chat",
                task="generate",
                dtype="bf16",
                context_tokens=2048,
                prices=PRICES,
                tokens_per_s_milli=41_500,
            ),
        ),
        slots_total=8,
        slots_free=7,
        queue_ms=0,
        credit=100_000,
    )


def ask() -> Ask:
    return Ask(
        job_id=JOB_ID,
        provider=PROVIDER.peer_id,
        sent_at_ms=NOW_MS,
        end_by_ms=NOW_MS + 60_000,
        task="generate",
        model_id=MODEL_ID,
        input_bytes=len(INPUT_BYTES),
        tokens_in_max=64,
        tokens_out_max=16,
        price_max=5_000,
    )


def quote(ask_id: MessageId) -> Quote:
    return Quote(
        ask_id=ask_id,
        hold_until_ms=NOW_MS + 15_000,
        dtype="bf16",
        profile=PROFILE,
        prices=PRICES,
        price_max=3_126,
        credit=1_000,
        voucher_window_tokens=4,
        first_token_ms=180,
        memory_bytes=272_171_008,
    )


def decline(refers_to: MessageId) -> Decline:
    return Decline(
        refers_to=refers_to,
        code=DeclineCode.CONTEXT_EXCEEDED,
        message="the prompt has 2100 tokens, 2048 fit with the answer",
        retry_after_ms=0,
        tokens_max=2_032,
    )


def contract(answers: MessageId) -> Contract:
    return Contract(
        version=1,
        job_id=JOB_ID,
        requester=REQUESTER.peer_id,
        provider=PROVIDER.peer_id,
        answers=answers,
        made_at_ms=NOW_MS + 40,
        accept_by_ms=NOW_MS + 5_040,
        start_by_ms=NOW_MS + 20_000,
        end_by_ms=NOW_MS + 60_000,
        task="generate",
        model_id=MODEL_ID,
        dtype="bf16",
        sampling=Sampling(temperature_milli=700, top_p_milli=950, seed=7),
        input_hash=hash_input(SALT, INPUT_BYTES),
        input_bytes=len(INPUT_BYTES),
        tokens_held=0,
        tokens_in_max=64,
        tokens_out_max=16,
        prices=PRICES,
        price_max=3_126,
        credit=1_000,
        voucher_window_tokens=4,
    )


def accept(contract_id: MessageId) -> Accept:
    return Accept(contract_id=contract_id, accepted_at_ms=NOW_MS + 95, tokens_in=23, memory_bytes=271_226_368)


def cancel(contract_id: MessageId) -> Cancel:
    return Cancel(contract_id=contract_id, code="user", meter=1)


def resume(contract_id: MessageId) -> Resume:
    return Resume(contract_id=contract_id, standing="open", frames=2, meter=1, voucher=1)


# After the example job (151 µc) the provider has bought for 40 µc of the requester, and was paid 100 µc outside.
PARTIES: Final = Parties.of(REQUESTER.peer_id, PROVIDER.peer_id)
SUMS: Final = Sums(first_promised=40, second_promised=151, first_paid=0, second_paid=100)


def tally() -> Tally:
    """Return what the provider's books say; its key sorts lower, so it is the first."""
    return Tally(
        first=PARTIES.first,
        second=PARTIES.second,
        number=0,
        last=NO_HASH,
        earned=SUMS.second_promised,
        promised=SUMS.first_promised,
        acknowledged=SUMS.second_paid,
    )


def statement() -> Statement:
    made = next_statement(PARTIES, Head(), SUMS, now_ms=UnixMs(NOW_MS + 60_000))
    assert made is not None and PARTIES.first == PROVIDER.peer_id
    return made


def settled() -> Settled:
    return Settled(payer=REQUESTER.peer_id, number=1, cumulative=SUMS.second_paid, made_at_ms=NOW_MS + 50_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One frame of a conversation."""

    sender: str
    stream: str
    frame: Frame
    signed: Signed[SignedMessage] | None = None


class Conversation:
    """Collects what both sides of one job send."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def say(self, sender: str, stream: str, message: SignedMessage) -> Signed[SignedMessage]:
        """Sign and send a message."""
        signer = REQUESTER if sender == "requester" else PROVIDER
        signed = sign(message, network=NETWORK, signer=signer)
        self.steps.append(
            Step(sender=sender, stream=stream, frame=EnvelopeFrame(signed.envelope.raw), signed=signed)
        )
        return signed

    def send(self, sender: str, frame: Frame) -> None:
        self.steps.append(Step(sender=sender, stream="job", frame=frame))


def whole_job() -> Conversation:
    """Return a job that goes well, from the ask to the closing."""
    talk = Conversation()
    asked = talk.say("requester", "quote", ask())
    quoted = talk.say("provider", "quote", quote(asked.message_id))
    terms = contract(quoted.message_id)
    offered = talk.say("requester", "job", terms)
    for frame in split_input(SALT, INPUT_BYTES):
        talk.send("requester", frame)
    contract_id = offered.message_id
    talk.say("provider", "job", accept(contract_id))
    talk.send("provider", AliveFrame())
    giving = ProviderAccount(contract_id, terms, salt=SALT, tokens_in=23)
    taking = RequesterAccount(contract_id, terms, salt=SALT, tokens_in=23)
    for place, output in enumerate(OUTPUTS):
        sequence, data = giving.output(output)
        talk.send("provider", OutputFrame(sequence, data))
        taking.output_untrusted(sequence, data)
        is_last = place == len(OUTPUTS) - 1
        if giving.window_is_full() or is_last:
            meter = giving.meter(200 * (place + 1), final=is_last)
            talk.say("provider", "job", meter)
            if is_last:
                break
            voucher = taking.meter_untrusted(meter, 200 * (place + 1) + 30)
            talk.say("requester", "job", voucher)
            giving.voucher_untrusted(voucher)
    receipt = giving.receipt(
        "complete", profile=PROFILE, started_ms=UnixMs(NOW_MS + 100), ended_ms=UnixMs(NOW_MS + 910)
    )
    done = talk.say("provider", "job", receipt)
    voucher = taking.meter_untrusted(meter, 850)
    talk.say("requester", "job", voucher)
    giving.voucher_untrusted(voucher)
    taking.receipt_untrusted(receipt)
    closing = taking.closing(done.message_id, receipt.status)
    talk.say("requester", "job", closing)
    giving.closing_untrusted(closing, done.message_id)
    return talk


def messages() -> dict[str, tuple[Ed25519Signer, SignedMessage]]:
    """Return one message of each type with who signs it; those of a job are of ``whole_job``."""
    job = {step.signed.envelope.kind: step.signed for step in whole_job().steps if step.signed is not None}
    contract_id = job[Contract.kind].message_id
    return {
        Advert.kind: (PROVIDER, advert()),
        Ask.kind: (REQUESTER, job[Ask.kind].message),
        Quote.kind: (PROVIDER, job[Quote.kind].message),
        Decline.kind: (PROVIDER, decline(job[Ask.kind].message_id)),
        Contract.kind: (REQUESTER, job[Contract.kind].message),
        Accept.kind: (PROVIDER, job[Accept.kind].message),
        Meter.kind: (PROVIDER, job[Meter.kind].message),
        Voucher.kind: (REQUESTER, job[Voucher.kind].message),
        Receipt.kind: (PROVIDER, job[Receipt.kind].message),
        Closing.kind: (REQUESTER, job[Closing.kind].message),
        Cancel.kind: (REQUESTER, cancel(contract_id)),
        Resume.kind: (REQUESTER, resume(contract_id)),
        Tally.kind: (PROVIDER, tally()),
        Statement.kind: (PROVIDER, statement()),
        Settled.kind: (PROVIDER, settled()),
    }
