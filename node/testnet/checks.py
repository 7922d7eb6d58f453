"""What must hold at every border of a simulated node, judged as it happens from what the witness saw.

End-to-end checks alone miss most faults, because retries hide them. Nothing here uses the code under test: costs,
counts and order are worked out anew. What must hold when all has settled is in ``node.testnet.settled``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from node.testnet.witness import Body, Life, SeenMessage, SeenOutput, Witness
from protocol.units import PeerId

# Binds nobody, so no disk is spent on it.
NEVER_STORED: Final = ("decline", "advert", "resume", "tally")
DURATION_SLACK_MS: Final = 250


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A broken rule."""

    rule: str
    message: str
    at: float
    job: str = ""
    contract: str = ""


@dataclass(slots=True, kw_only=True)
class ContractFile:
    """All that was seen of one contract."""

    contract_id: str
    body: Body
    sent_at: float
    requester: PeerId
    provider: PeerId
    is_answered: bool = False
    """Whether the requester has heard yes or no."""
    accepts: set[bytes] = field(default_factory=set)
    accept_is_durable: bool = False
    tokens_in: int = 0
    meters: dict[int, Body] = field(default_factory=dict)
    bodies: dict[tuple[str, int], bytes] = field(default_factory=dict)
    """The message that took each number, by kind: what is told again has to be the same."""
    voucher_sum: int = 0
    """Promised by the requester."""
    tokens_paid: int = 0
    voucher_kept: int = 0
    """Durable at the provider."""
    frames_sent: list[bytes] = field(default_factory=list)
    tokens_sent: int = 0
    frames_received: int = 0
    tokens_received: int = 0
    tokens_made: int = 0
    starts: int = 0
    receipts: set[bytes] = field(default_factory=set)
    closings: set[bytes] = field(default_factory=set)
    is_attached: bool = False
    """Whether the requester has heard a yes on the newest stream."""
    is_resuming: bool = False
    resumed_at: int = -1
    """How many frames had come when it was resumed the last time."""
    gave_up: bool = False
    """Whether the requester took the contract for lost: what comes after that excuses nothing."""
    is_over: bool = False
    """Whether the requester had it all, or a reason of its own to want no more."""

    @property
    def may_be_left(self) -> bool:
        """Return whether a requester need not go on: it never began, or its last resume brought nothing."""
        return not self.is_resuming and (not self.is_attached or self.resumed_at == self.frames_received)

    @property
    def job(self) -> str:
        return str(self.body["job_id"].hex())

    @property
    def may_be_taken(self) -> bool:
        """Return whether the provider could still accept, by the clock of whoever offered it."""
        open_s = (self.body["accept_by_ms"] - self.body["made_at_ms"]) / 1000
        return not self.is_answered and trio.current_time() < self.sent_at + open_s

    def cost(self, tokens_out: int, duration_ms: int) -> int:
        """Return what is owed by the contract's prices, rounded up once."""
        prices = self.body["prices"]
        millionths = (
            self.tokens_in * prices["tokens_in"]
            + tokens_out * prices["tokens_out"]
            + duration_ms * prices["per_s"] * 1000
        )
        owed = prices["fixed"] + (millionths + 999_999) // 1_000_000
        return int(min(owed, self.body["price_max"]))


class Checks:
    """Judges what it is told; the first violation ends the run."""

    def __init__(
        self, witness: Witness, *, on_violation: Callable[[], None], is_held: Callable[[ContractFile], bool]
    ) -> None:
        """``is_held``: whether a contract's provider could go on with it, if it were asked."""
        self.witness = witness
        self._on_violation = on_violation
        self._is_held = is_held
        self.violations: list[Violation] = []
        self.liars: set[PeerId] = set()
        self.durable: dict[PeerId, set[bytes]] = {}
        self.files: dict[bytes, ContractFile] = {}
        self._adverts: dict[bytes, Body] = {}
        self._quotes: set[bytes] = set()
        self._by_job: dict[str, list[ContractFile]] = {}

    def fail(self, rule: str, message: str, *, job: str = "", contract: str = "") -> None:
        self.violations.append(
            Violation(rule=rule, message=message, at=trio.current_time(), job=job, contract=contract)
        )
        self._on_violation()

    def _require(self, holds: bool, rule: str, file: ContractFile, message: str = "") -> None:
        if not holds:
            self.fail(rule, message, job=file.job, contract=file.contract_id)

    # What the witness tells.

    def published(self, _life: Life, advert: SeenMessage) -> None:
        self._adverts[advert.message_id] = advert.body

    def became_durable(self, peer_id: PeerId, raw: bytes) -> None:
        self.durable.setdefault(peer_id, set()).add(raw)
        message = self.witness.read(raw)
        if message is None or "contract_id" not in message.body:
            return
        file = self.files.get(message.body["contract_id"])
        if file is None or peer_id in self.liars:
            return
        if peer_id == file.requester:
            file.gave_up |= message.kind == "cancel" and message.body["code"] == "failed"
            file.is_over |= message.kind in ("closing", "cancel") and not file.gave_up
            return
        if message.kind == "accept":
            file.accept_is_durable = True
        if message.kind == "voucher":
            self._keep_voucher(file, message.body)

    def _keep_voucher(self, file: ContractFile, voucher: Body) -> None:
        meter = file.meters.get(voucher["meter"])
        self._require(meter is not None, "voucher kept for an unknown meter", file)
        if meter is not None:
            self._require(
                file.voucher_kept <= voucher["cumulative"] <= meter["cumulative"],
                "voucher kept above its meter or below the last",
                file,
                f"{file.voucher_kept} <= {voucher['cumulative']} <= {meter['cumulative']}",
            )
        file.voucher_kept = voucher["cumulative"]

    def received(self, life: Life, message: SeenMessage, _conversation: bytes) -> None:
        if message.kind == "advert":
            self._adverts[message.message_id] = message.body
        if message.kind in ("accept", "decline"):
            file = self.files.get(message.body.get("contract_id") or message.body.get("refers_to") or b"")
            if file is not None:
                file.is_answered = True
        file = self.files.get(message.body.get("contract_id", b""))
        if file is None or life.peer_id != file.requester:
            return
        if message.kind == "accept" or (message.kind == "resume" and message.body["standing"] == "open"):
            file.is_attached, file.is_resuming = bool(file.accepts), False
        file.is_over |= message.kind == "receipt" and not file.gave_up

    def sent(self, life: Life, message: SeenMessage, conversation: bytes) -> None:
        if message.signer == life.peer_id and message.kind == "contract":
            self._sent_contract(life, message)
        if message.kind == "quote":
            self._quotes.add(message.message_id)
        if message.kind == "advert":
            self._adverts[message.message_id] = message.body
        file = self.files.get(message.body.get("contract_id", conversation))
        if life.peer_id in self.liars or message.signer != life.peer_id:
            if file is not None:
                self._believe(file, message)
            return
        if message.kind not in NEVER_STORED and message.raw not in self.durable.get(life.peer_id, set()):
            job = conversation.hex()
            self.fail("sent before it was durable", message.kind, contract=job, job=self.witness.jobs.get(job, ""))
        if file is not None:
            if message.kind == "resume" and life.peer_id == file.requester and message.body["standing"] != "over":
                file.is_resuming, file.is_attached = file.is_attached, False
                file.resumed_at = file.frames_received
            self._judge(file, message)

    def _believe(self, file: ContractFile, message: SeenMessage) -> None:
        """Note what a liar told: whoever believes too much of it is judged later."""
        if message.kind == "accept":
            file.tokens_in = message.body["tokens_in"]
        if message.kind == "meter":
            file.meters.setdefault(message.body["number"], message.body)

    def output(self, life: Life, output: SeenOutput, *, is_sent: bool) -> None:
        """Count a frame once at each end, however often it comes; what is sent again has to be the same."""
        file = self.files.get(output.contract_id)
        if file is None:
            return
        if not is_sent:
            if output.sequence == file.frames_received:
                file.frames_received += 1
                file.tokens_received += len(output.tokens)
            return
        is_new = output.sequence == len(file.frames_sent)
        if is_new:
            file.frames_sent.append(output.data)
            file.tokens_sent += len(output.tokens)
        if life.peer_id not in self.liars:
            self._require(file.accept_is_durable, "output before acceptance", file)
            self._require(output.sequence == output.due, "output with a gap, or twice on one stream", file)
            is_same = file.frames_sent[output.sequence : output.sequence + 1] == [output.data]
            self._require(is_same, "output sent again is not the same", file, f"frame {output.sequence}")
            self._require(
                file.tokens_sent <= file.body["tokens_out_max"], "more output than the contract allows", file
            )

    def ended(self, life: Life, heard: list[SeenMessage]) -> None:
        """Judge an end mark that answers the peer's: what the peer brought has to be in the books."""
        kept = self.durable.get(life.peer_id, set())
        for message in heard:
            if message.kind in ("voucher", "closing") and not {life.peer_id, message.signer} & self.liars:
                file = self.files[message.body["contract_id"]]
                self._require(message.raw in kept, "ended before all was in the books", file, message.kind)

    # What the executor tells.

    def started(self, peer_id: PeerId, job_key: str, tokens_allowed: int) -> None:
        file = self.files.get(bytes.fromhex(job_key))
        if file is None or peer_id in self.liars:
            return
        file.starts += 1
        self._require(file.starts == 1, "contract executed twice", file)
        self._require(file.accept_is_durable, "executed before the acceptance was durable", file)
        self._require(tokens_allowed <= file.body["tokens_out_max"], "executed beyond the contract", file)

    def made(self, job_key: str) -> None:
        file = self.files.get(bytes.fromhex(job_key))
        if file is not None:
            file.tokens_made += 1
            self._require(file.tokens_made <= file.body["tokens_out_max"], "executed beyond the contract", file)

    # Rules by kind.

    def _sent_contract(self, life: Life, message: SeenMessage) -> None:
        body = message.body
        if message.message_id in self.files:
            return  # told again by a liar: what its provider does with it is judged there
        file = ContractFile(
            contract_id=message.message_id.hex(),
            body=body,
            sent_at=trio.current_time(),
            requester=life.peer_id,
            provider=PeerId(body["provider"]),
        )
        self.files[message.message_id] = file
        if life.peer_id in self.liars:
            return
        for other in self._by_job.setdefault(file.job, []):
            self._require(not other.may_be_taken, "two offers of one job stand at once", file, other.contract_id)
            is_held = self._is_held(other)
            self._require(not is_held, "a job moved while its provider held it", file, other.contract_id)
        self._by_job[file.job].append(file)
        advert = self._adverts.get(body["answers"])
        if advert is None:
            self._require(body["answers"] in self._quotes, "contract without a quote or an advert", file)
            return
        self._require(
            body["made_at_ms"] < advert["expires_at_ms"],
            "contract on an advert that had expired",
            file,
            f"made {body['made_at_ms']}, advert until {advert['expires_at_ms']}",
        )

    def _judge(self, file: ContractFile, message: SeenMessage) -> None:
        body = message.body
        if "number" in body:
            key = message.kind, body["number"]
            what = f"{key[0]} {key[1]}"
            if key in file.bodies:
                self._require(file.bodies[key] == message.message_id, "two messages of one number", file, what)
                return  # told again after a resume
            file.bodies[key] = message.message_id
            is_next = key[1] == 1 or (key[0], key[1] - 1) in file.bodies
            self._require(is_next, "a number was left out", file, what)
        match message.kind:
            case "accept":
                file.accepts.add(message.message_id)
                file.tokens_in = body["tokens_in"]
                self._require(len(file.accepts) == 1, "contract accepted twice", file)
            case "meter":
                self._meter(file, body)
            case "voucher":
                self._voucher(file, body)
            case "receipt":
                file.receipts.add(message.message_id)
                self._require(len(file.receipts) == 1, "two receipts of one contract", file)
                self._require(body["tokens_out"] <= file.tokens_sent, "receipt for tokens never sent", file)
            case "closing":
                self._closing(file, message)

    def _meter(self, file: ContractFile, meter: Body) -> None:
        before = file.meters.get(meter["number"] - 1)
        self._require(meter["number"] == len(file.meters) + 1, "meter out of order", file)
        self._require(before is None or before["cumulative"] <= meter["cumulative"], "meter decreases", file)
        elapsed_ms = int((trio.current_time() - file.sent_at) * 1000) + DURATION_SLACK_MS
        self._require(
            meter["duration_ms"] <= elapsed_ms,
            "meter above the time that passed",
            file,
            f"{meter['duration_ms']} ms within {elapsed_ms} ms",
        )
        owed = file.cost(file.tokens_sent, meter["duration_ms"])
        self._require(
            meter["cumulative"] <= owed,
            "meter above what was sent",
            file,
            f"{meter['cumulative']} for {file.tokens_sent} tokens, the prices give {owed}",
        )
        file.meters[meter["number"]] = meter

    def _voucher(self, file: ContractFile, voucher: Body) -> None:
        elapsed_ms = int((trio.current_time() - file.sent_at) * 1000) + DURATION_SLACK_MS
        owed = file.cost(file.tokens_received, elapsed_ms)
        meter = file.meters.get(voucher["meter"])
        self._require(meter is not None, "voucher for an unknown meter", file)
        self._require(
            file.voucher_sum <= voucher["cumulative"] <= owed,
            "voucher above what came, or below the last",
            file,
            f"{file.voucher_sum} <= {voucher['cumulative']} <= {owed} for {file.tokens_received} tokens",
        )
        if meter is not None:
            self._require(voucher["cumulative"] <= meter["cumulative"], "voucher above its meter", file)
            file.tokens_paid = min(meter["tokens_out"], file.tokens_received)
        file.voucher_sum = voucher["cumulative"]

    def _closing(self, file: ContractFile, message: SeenMessage) -> None:
        body = message.body
        file.closings.add(message.message_id)
        self._require(len(file.closings) == 1, "two closings of one contract", file)
        self._require(body["cumulative"] == file.voucher_sum, "closing differs from the vouchers", file)
        receipt = self.witness.by_id.get(body["receipt_id"])
        is_kept = receipt is not None and receipt.raw in self.durable.get(file.requester, set())
        self._require(is_kept, "closing of a receipt that is not kept", file)
        if receipt is not None:
            self._require(
                receipt.body["tokens_out"] == file.tokens_received
                and receipt.body["cumulative"] <= file.voucher_sum,
                "closing of a wrong receipt",
                file,
            )
