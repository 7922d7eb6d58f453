"""A requester written from the specification alone: no line of it imports the node or its protocol package.

Numbers in brackets name the page and section of ``protocol/spec`` that a piece follows.
"""

import re
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from hashlib import sha256
from secrets import token_bytes
from typing import Any, NamedTuple

import msgpack
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr
from nacl import bindings
from nacl.exceptions import BadSignatureError, CryptoError
from nacl.signing import SigningKey, VerifyKey

Body = dict[str, Any]
Sign = Callable[[str, Body], "Envelope"]
Cut = Callable[["Job"], bool] | None
Check = Callable[[Any], bool]
END = b"\xff" * 4
ENVELOPE, INPUT, OUTPUT, ALIVE = 1, 2, 3, 4
BODY_MAX, ADVERT_MAX, DATA_MAX, SKEW_MS, LIFE_MS = 16384, 4096, 65536, 60_000, 60_000
PEER_ID = b"\x00\x24\x08\x01\x12\x20"
OUTPUT_CHAIN, INPUT_HASH = b"souk.output.v1\0", b"souk.input.v1\0"


class Refused(Exception):
    """A peer broke the specification; ``reason`` is a word of (00, 3), or "declined"."""

    def __init__(self, reason: str, what: str = "") -> None:
        super().__init__(f"{reason}: {what}")
        self.reason = reason


class Lost(Exception):
    """The stream ended without the end mark."""


def require(holds: bool, reason: str, what: str = "") -> None:
    if not holds:
        raise Refused(reason, what)


# Canonical msgpack (01, 1): what the library writes is the shortest form; the rest is checked around it.


def _ordered(value: Any, depth: int = 0) -> tuple[Any, int]:
    """Return ``value`` with its maps sorted, and how many values are inside."""
    if value is None or isinstance(value, bool | int | str | bytes):
        return value, 1
    require(isinstance(value, list | dict), "encoding", f"no encoding of {type(value).__name__}")
    require(depth < 8 and len(value) <= 256, "encoding", "too deep or too wide")
    if isinstance(value, list):
        parts = [_ordered(entry, depth + 1) for entry in value]
        return [part for part, _ in parts], 1 + sum(count for _, count in parts)
    good = all(isinstance(key, str) and key.isascii() and 1 <= len(key) <= 32 for key in value)
    require(good, "encoding", "map key")
    entries = {key: _ordered(value[key], depth + 1) for key in sorted(value)}
    return {key: part for key, (part, _) in entries.items()}, 1 + sum(1 + count for _, count in entries.values())


def encode(value: Any) -> bytes:
    ordered, count = _ordered(value)
    require(count <= 4096, "encoding", "too many values")
    return msgpack.packb(ordered, use_bin_type=True)


def decode(data: bytes) -> Any:
    """Return the one value in ``data``; refuse what is not its only encoding."""
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=True, max_array_len=256, max_map_len=256)
        same = encode(value) == data
    except (ValueError, TypeError, OverflowError) as exc:
        raise Refused("encoding", str(exc)) from exc
    require(same, "encoding", "not the canonical form")
    return value


# Schemas (01, 3), in the words of the tables of 03, 04 and 06: "name type", with "?" where optional.
SCHEMA_TEXT = """
prices: fixed money, tokens_in money, tokens_out money, per_s money
sampling: temperature_milli? 0..10000, top_p_milli? 1..1000, seed? seed
turn: role system|user|assistant, content content
device: device cuda|cpu, name label, architecture label, memory_total_bytes bytes, memory_free_bytes bytes,
    dtypes dtype[0..4], matmul_gflops? count, read_mb_per_s? count
offer: model_id id, name name, task generate, dtype dtype, context_tokens tokens, prices prices,
    tokens_per_s_milli count
input: messages? turn[0..256], prompt? content, stop? stop[0..8], held? held
output: tokens token[1..256], text said, finish? stop|length
advert: sequence time, issued_at_ms time, expires_at_ms time, versions version[1..8], name label,
    addresses address[0..8], devices device[0..16], offers offer[0..16], slots_total count, slots_free count,
    queue_ms duration, credit money
ask: job_id job-key, provider key, sent_at_ms time, end_by_ms time, task generate, model_id id, input_bytes bytes,
    tokens_in_max tokens+, tokens_out_max tokens+, price_max money
quote: ask_id id, hold_until_ms time, dtype dtype, profile label, prices prices, price_max money, credit money,
    voucher_window_tokens tokens+, first_token_ms duration, memory_bytes? bytes
decline: refers_to id, code code, message text, retry_after_ms? duration, tokens_max? tokens, price_min? money
contract: version version, job_id job-key, requester key, provider key, answers id, made_at_ms time,
    accept_by_ms time, start_by_ms time, end_by_ms time, task generate, model_id id, dtype dtype,
    sampling sampling, input_hash id, input_bytes 1..1048576, tokens_held tokens, tokens_in_max tokens+,
    tokens_out_max tokens+, prices prices, price_max money, credit money, voucher_window_tokens tokens+
accept: contract_id id, accepted_at_ms time, tokens_in tokens+, memory_bytes? bytes
meter: contract_id id, number ordinal, tokens_in tokens+, tokens_out tokens, duration_ms duration,
    cumulative money, output_hash id, final bool
voucher: contract_id id, number ordinal, cumulative money, meter ordinal
receipt: contract_id id, status complete|partial|failed, finish? stop|length, tokens_in tokens+, tokens_out tokens,
    duration_ms duration, cumulative money, output_hash id, model_id id, profile label, started_at_ms time,
    ended_at_ms time
closing: contract_id id, receipt_id id, verdict ok|partial|bad|late, cumulative money
cancel: contract_id id, code user|meter|deadline|failed, meter count
resume: contract_id id, standing offered|open|over|unknown, frames count, meter count, voucher count
"""
TYPES_TEXT = """
id bin[32..32];key bin[32..32];job-key bin[16..16];held bin[0..262144];label str[1..64];text str[0..256]
address str[1..256];content str[0..1048576];said str[0..16384];stop str[1..128];money 0..9007199254740992
time money;bytes money;duration 0..1099511627776;count 0..4294967296;ordinal 1..4294967296;token 0..4294967295
tokens 0..16777216;tokens+ 1..16777216;version 1..255;seed 0..9223372036854775807;dtype fp32|bf16|fp16
code busy|model_unknown|task_unknown|profile|context_exceeded|price|credit|expired|input|draining|failed
"""
TYPES = dict(entry.split() for entry in TYPES_TEXT.strip().replace("\n", ";").split(";"))
CHECKS: dict[str, Check] = {
    "bool": lambda value: isinstance(value, bool),
    "name": lambda value: isinstance(value, str) and bool(re.fullmatch("[a-z0-9][a-z0-9._-]{0,63}", value)),
}


def _check(kind: str) -> Check:
    if kind in TYPES:
        return _check(TYPES[kind])
    if found := re.fullmatch(r"(?:(.+)\[)?(\d+)\.\.(\d+)\]?", kind):
        of, low, high = found[1], int(found[2]), int(found[3])
        if of is None:
            return lambda value: type(value) is int and low <= value <= high
        if of in ("bin", "str"):
            return lambda value: isinstance(value, bytes if of == "bin" else str) and low <= len(value) <= high
        each = _check(of)
        return lambda value: isinstance(value, list) and low <= len(value) <= high and all(map(each, value))
    return CHECKS.get(kind) or (lambda value: isinstance(value, str) and value in kind.split("|"))


def _record(fields: str) -> Check:
    checks = {name: _check(kind) for name, kind in (entry.split() for entry in fields.split(","))}
    needed = {name for name in checks if not name.endswith("?")}
    known = {name.rstrip("?"): check for name, check in checks.items()}

    def check(value: Any) -> bool:
        if not isinstance(value, dict) or not needed <= value.keys():
            return False
        rest = (name.startswith("x_") and value[name] is not None for name in value.keys() - known.keys())
        return all(rest) and all(known[name](value[name]) for name in value.keys() & known.keys())

    return check


for _line in SCHEMA_TEXT.replace("\n    ", " ").strip().split("\n"):
    _name, _, _fields = _line.partition(": ")
    CHECKS[_name] = _record(_fields)


class Envelope(NamedTuple):  # (01, 2)
    type: str
    signer: bytes
    body: Body
    raw: bytes
    id: bytes


def network_id(name: str) -> bytes:
    return sha256(b"souk.network\0" + encode({"name": name})).digest()


def _signed(kind: str, network: bytes, body: bytes) -> bytes:
    return b"souk.sig.v1\0" + bytes([len(kind)]) + kind.encode() + network + sha256(body).digest()


def seal(kind: str, body: Body, network: bytes, key: SigningKey) -> Envelope:
    assert CHECKS[kind](body), (kind, body)
    data, signer = encode(body), bytes(key.verify_key)
    signed = _signed(kind, network, data)
    raw = encode([1, kind, network, signer, data, key.sign(signed).signature])
    return Envelope(kind, signer, body, raw, sha256(signed + signer).digest())


def check_key(key: bytes) -> None:
    require(len(key) == 32 and bindings.crypto_core_ed25519_is_valid_point(key), "signer", "a bad key")


def check_signature(key: bytes, message: bytes, signature: bytes) -> None:
    try:
        VerifyKey(key).verify(message, signature)
    except (BadSignatureError, CryptoError, ValueError) as exc:
        raise Refused("signature") from exc


def unseal(raw: bytes, network: bytes, allowed: set[str]) -> Envelope:
    require(len(raw) <= BODY_MAX + 256, "size")
    match decode(raw):
        case [int(version), str(kind), bytes(of), bytes(signer), bytes(data), bytes(signature)]:
            require(type(version) is int and version == 1 and len(of) == 32, "envelope", "version or network")
        case _:
            raise Refused("envelope", "not six fields of these types")
    require(of == network, "network")
    require(kind in allowed, "type", kind)
    require(len(data) <= (ADVERT_MAX if kind == "advert" else BODY_MAX), "size", kind)
    require(len(signer) == 32 and len(signature) == 64, "envelope", "key or signature")
    check_key(signer)
    signed = _signed(kind, network, data)
    check_signature(signer, signed, signature)
    body = decode(data)
    require(CHECKS[kind](body), "schema", kind)
    return Envelope(kind, signer, body, raw, sha256(signed + signer).digest())


class Frame(NamedTuple):  # (02, 3)
    kind: int
    sequence: int = 0
    data: bytes = b""

    def wire(self) -> bytes:
        head = self.sequence.to_bytes(4) if self.kind in (INPUT, OUTPUT) else b""
        frame = bytes([self.kind]) + head + self.data
        return len(frame).to_bytes(4) + frame


def read_frame(frame: bytes) -> Frame:
    require(len(frame) > 0, "encoding", "an empty frame")
    kind, rest = frame[0], frame[1:]
    require(ENVELOPE <= kind <= ALIVE, "type", f"frame of kind {kind}")
    if kind in (INPUT, OUTPUT):
        require(4 <= len(rest) <= 4 + DATA_MAX, "size", "data frame")
        return Frame(kind, int.from_bytes(rest[:4]), rest[4:])
    require(kind != ENVELOPE or len(rest) <= BODY_MAX + 256, "size", "envelope")
    require(kind != ALIVE or not rest, "encoding", "alive says nothing")
    return Frame(kind, 0, rest)


class Stream:
    """One stream of ours over libp2p's."""

    def __init__(self, raw: Any) -> None:
        self.raw, self.buffer = raw, b""

    async def send(self, *envelopes: Envelope, inputs: Sequence[bytes] = (), end: bool = False) -> None:
        frames = [Frame(ENVELOPE, 0, envelope.raw) for envelope in envelopes]
        frames += [Frame(INPUT, number, data) for number, data in enumerate(inputs)]
        try:
            await self.raw.write(b"".join(frame.wire() for frame in frames) + (END if end else b""))
            if end:
                await self.raw.close_write()
        except BaseLibp2pError as exc:
            raise Lost from exc

    async def receive(self, *, silence_s: float) -> Frame | None:
        """Return the next frame, None for the end mark."""
        with trio.move_on_after(silence_s):
            if (length := await self._exactly(4)) == END:
                return None
            require(int.from_bytes(length) <= 5 + DATA_MAX, "size", "frame")
            return read_frame(await self._exactly(int.from_bytes(length)))
        raise Lost(f"nothing for {silence_s} s")

    async def _exactly(self, size: int) -> bytes:
        while len(self.buffer) < size:
            try:
                more = await self.raw.read(DATA_MAX)
            except BaseLibp2pError as exc:
                raise Lost from exc
            if not more:
                raise Lost
            self.buffer += more
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken


def cost(prices: Body, bounds: tuple[int, int, int], price_max: int) -> int:
    """``bounds``: tokens in, tokens out, milliseconds."""
    tokens_in, tokens_out, duration_ms = bounds
    parts = tokens_in * prices["tokens_in"] + tokens_out * prices["tokens_out"]
    parts += 1000 * duration_ms * prices["per_s"]
    return min(price_max, prices["fixed"] - -parts // 1_000_000)


def digest(domain: bytes, *parts: bytes) -> bytes:
    return sha256(domain + b"".join(parts)).digest()


class Job:
    """One contract's account (05); ``profile`` is what the quote said, None where there was none."""

    def __init__(self, contract: Envelope, salt: bytes, profile: str | None, sign: Sign) -> None:
        self.contract, self.terms, self.profile, self.sign = contract, contract.body, profile, sign
        self.sent_at, self.link = time.monotonic(), digest(OUTPUT_CHAIN, salt)
        self.accept: Envelope | None = None
        self.closing: Envelope | None = None
        self.tokens: list[int] = []
        self.vouchers: list[Envelope] = []
        self.text, self.finish, self.frames = "", None, 0
        self.meter: Body = {"number": 0, "tokens_out": 0, "duration_ms": 0, "cumulative": 0, "final": False}

    def say(self, kind: str, **fields: Any) -> Envelope:
        return self.sign(kind, {"contract_id": self.contract.id, **fields})

    def take(self, message: Envelope) -> Envelope | None:
        """Check an envelope of the provider's and return the answer to it, if there is one."""
        body, kind = message.body, message.type
        if kind == "decline":
            require(self.accept is None and body["refers_to"] == self.contract.id, "order", kind)
            raise Refused("declined", body["code"] + ": " + body["message"])
        require(body["contract_id"] == self.contract.id, "meaning", "another contract")
        require((self.accept is None) == (kind == "accept") and self.closing is None, "order", kind)
        if self.accept is None:
            require(body["tokens_in"] <= self.terms["tokens_in_max"], "meaning", "tokens_in")
            self.accept = message
            return None
        counts = {"tokens_out": len(self.tokens), "output_hash": self.link}
        counts["tokens_in"] = self.accept.body["tokens_in"]
        require(counts.items() <= body.items(), "meaning", f"{kind} counts otherwise")
        return self._take_meter(body) if kind == "meter" else self._take_receipt(message)

    def _take_meter(self, body: Body) -> Envelope:
        require(body["number"] == self.meter["number"] + 1 and not self.meter["final"], "order", "meter")
        own_ms = int((time.monotonic() - self.sent_at) * 1000) + 250
        require(self.meter["duration_ms"] <= body["duration_ms"] <= own_ms, "meaning", "duration_ms")
        bounds = body["tokens_in"], body["tokens_out"], body["duration_ms"]
        due = cost(self.terms["prices"], bounds, self.terms["price_max"])
        require(body["cumulative"] == due, "price", "meter")
        self.meter, fields = body, {"cumulative": body["cumulative"], "meter": body["number"]}
        self.vouchers.append(self.say("voucher", number=len(self.vouchers) + 1, **fields))
        return self.vouchers[-1]

    def _take_receipt(self, message: Envelope) -> Envelope:
        body, complete = message.body, message.body["status"] == "complete"
        promised = self.vouchers[-1].body["cumulative"] if self.vouchers else 0
        require(body["model_id"] == self.terms["model_id"], "meaning", "model")
        require(self.profile in (None, body["profile"]), "meaning", "profile")
        require(body.get("finish") == (self.finish if complete else None), "meaning", "finish")
        require(not complete or self.finish is not None, "meaning", "complete without an end")
        fair = body["cumulative"] == promised if complete else body["cumulative"] <= promised
        require(fair, "price", "receipt")
        verdict = "ok" if complete else "partial"
        self.closing = self.say("closing", receipt_id=message.id, verdict=verdict, cumulative=promised)
        return self.closing

    def take_output(self, frame: Frame) -> None:
        require(self.accept is not None and self.closing is None, "order", "output")
        require(frame.sequence == self.frames, "order", "sequence")
        output = decode(frame.data)
        require(CHECKS["output"](output), "schema", "output")
        tokens_out = len(self.tokens) + len(output["tokens"])
        more = self.finish is None and tokens_out <= self.terms["tokens_out_max"]
        require(more, "meaning", "output beyond its end")
        window = self.terms["voucher_window_tokens"] + 256
        require(tokens_out - self.meter["tokens_out"] <= window, "order", "output without a meter")
        self.link = digest(self.link, self.frames.to_bytes(4), frame.data)
        self.frames, self.finish = self.frames + 1, output.get("finish")
        self.tokens += output["tokens"]
        self.text += output["text"]


class Requester:
    def __init__(self, host: Any, key: SigningKey, network_name: str) -> None:
        self.host, self.key, self.network = host, key, network_id(network_name)

    def sign(self, kind: str, body: Body) -> Envelope:
        return seal(kind, body, self.network, self.key)

    async def open(self, provider: bytes, protocol: str) -> Stream:
        return Stream(await self.host.new_stream(ID(PEER_ID + provider), [protocol]))

    def unseal(self, frame: Frame | None, allowed: str, signer: bytes) -> Envelope:
        require(frame is not None and frame.kind == ENVELOPE, "order", f"expected {allowed}")
        found = unseal(frame.data, self.network, set(allowed.split()))
        require(found.signer == signer, "signer", found.type)
        return found

    async def advert(self, provider: bytes) -> Envelope:
        """Ask the provider itself for what it offers (06, 4)."""
        stream = await self.open(provider, "/souk/advert/1")
        await stream.send(end=True)
        found, now = self.unseal(await stream.receive(silence_s=5), "advert", provider), now_ms()
        begin, end = found.body["issued_at_ms"], found.body["expires_at_ms"]
        require(begin <= now + SKEW_MS and begin < end <= begin + 600_000 and end > now, "time", "advert")
        require(1 in found.body["versions"], "meaning", "speaks no version of ours")
        while await stream.receive(silence_s=5) is not None:
            pass
        return found

    async def quote(self, ask: Envelope) -> Envelope:
        stream = await self.open(ask.body["provider"], "/souk/quote/1")
        await stream.send(ask, end=True)
        found = self.unseal(await stream.receive(silence_s=5), "quote decline", ask.body["provider"])
        require(found.body.get("ask_id", found.body.get("refers_to")) == ask.id, "meaning", "another ask")
        require(found.type == "quote", "declined", str(found.body))
        require(found.body["hold_until_ms"] <= now_ms() + 15_000 + SKEW_MS, "time", "hold_until_ms")
        return found

    async def buy(
        self, provider: bytes, model: str, task: Body, *, tokens_out_max: int, quoted: bool, cut: Cut = None
    ) -> Job:
        """Buy one answer: by a quote or by the advert; go on when the stream is lost or ``cut``."""
        found = await self.advert(provider)
        offer = next(offer for offer in found.body["offers"] if offer["name"] == model)
        data, salt, now, profile = encode(task), token_bytes(16), now_ms(), None
        # The largest prompt that fits: only the provider can count, and only the bound of the price grows.
        counts = {"tokens_in_max": offer["context_tokens"], "tokens_out_max": tokens_out_max}
        wanted = {"job_id": token_bytes(16), "provider": provider, "input_bytes": len(data), **counts}
        wanted |= {"end_by_ms": now + LIFE_MS, "task": "generate", "model_id": offer["model_id"]}
        # The whole price as credit: so it covers the first window, however long the provider's window is.
        price_max = cost(offer["prices"], (*counts.values(), LIFE_MS), 2**53)
        terms = {"price_max": price_max, "credit": price_max, "voucher_window_tokens": 1}
        terms |= {"dtype": offer["dtype"], "prices": offer["prices"]}
        if quoted:
            found = await self.quote(self.sign("ask", {**wanted, "sent_at_ms": now, "price_max": price_max}))
            terms |= {name: found.body[name] for name in ("dtype", "prices", "voucher_window_tokens")}
            profile, now = found.body["profile"], now_ms()
        terms |= {"made_at_ms": now, "accept_by_ms": now + 5000, "start_by_ms": now + LIFE_MS // 2, "sampling": {}}
        terms |= {"version": 1, "requester": bytes(self.key.verify_key), "answers": found.id}
        terms |= {"input_hash": digest(INPUT_HASH, salt, data), "tokens_held": len(task.get("held", b"")) // 4}
        job = Job(self.sign("contract", {**wanted, **terms}), salt, profile, self.sign)
        pieces = [data[at : at + DATA_MAX] for at in range(0, len(data), DATA_MAX)]
        stream = await self.open(provider, "/souk/job/1")
        try:
            await stream.send(job.contract, inputs=[salt, *pieces])
            job.take(self.unseal(await stream.receive(silence_s=5), "accept decline", provider))
            await self._follow(job, stream, cut)
        except Lost:
            await self.resume(job)
        return job

    async def resume(self, job: Job) -> None:
        """Go on with a contract whose stream was lost (03, 12 and 14)."""
        stream = await self.open(job.terms["provider"], "/souk/job/1")
        standing = "over" if job.closing else "open" if job.accept else "offered"
        counts = {"frames": job.frames, "meter": job.meter["number"], "voucher": len(job.vouchers)}
        await stream.send(job.say("resume", standing=standing, **counts))
        found = self.unseal(await stream.receive(silence_s=10), "resume", job.terms["provider"]).body
        require(found["contract_id"] == job.contract.id, "meaning", "another contract")
        is_open = found["standing"] == "open"
        require(is_open or standing == found["standing"] == "over", "meaning", found["standing"])
        forgot = is_open and (found["frames"] < job.frames or found["meter"] < counts["meter"])
        require(not forgot and found["voucher"] <= len(job.vouchers), "meaning", "resume")
        lacking = job.vouchers[found["voucher"] :]
        await stream.send(*lacking, *([job.closing] if job.closing else []), end=job.closing is not None)
        await self._follow(job, stream)

    async def _follow(self, job: Job, stream: Stream, cut: Cut = None) -> None:
        """Take what comes and answer it, until both have said everything."""
        while (frame := await stream.receive(silence_s=6)) is not None:
            answer = None
            if frame.kind == OUTPUT:
                job.take_output(frame)
            elif frame.kind == ENVELOPE:
                answer = job.take(self.unseal(frame, "accept meter receipt", job.terms["provider"]))
            else:
                require(frame.kind == ALIVE, "type", "input")
            if cut is not None and cut(job):
                await stream.raw.reset()
                raise Lost("we cut it ourselves")
            if answer is not None:
                await stream.send(answer, end=answer is job.closing)
        require(job.closing is not None, "order", "the end mark came early")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def key_of(address: str) -> bytes:
    """Return the key in a multiaddr's last part (02, 1)."""
    peer = info_from_p2p_addr(Multiaddr(address)).peer_id.to_bytes()
    require(len(peer) == 38 and peer.startswith(PEER_ID), "signer", "no Ed25519 peer id")
    check_key(peer[6:])
    return peer[6:]


@asynccontextmanager
async def dial(address: str, network_name: str) -> AsyncIterator[Requester]:
    """Connect to the provider at ``address`` as somebody new (02, 2)."""
    seed = token_bytes(32)
    pair = create_new_key_pair(seed)
    noise = Noise(pair, noise_privkey=create_noise_key_pair().private_key)
    host = new_host(key_pair=pair, sec_opt={NOISE: noise}, muxer_opt={YAMUX: Yamux})
    async with host.run(listen_addrs=[]):
        await host.connect(info_from_p2p_addr(Multiaddr(address)))
        yield Requester(host, SigningKey(seed), network_name)
