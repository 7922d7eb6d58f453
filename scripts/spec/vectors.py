"""Makes ``protocol/spec/vectors/*.json``: what every implementation of the protocol must write, read and refuse.

Bytes are hex. Inside a value that stands for an encoded one, bytes are ``{"$hex": "…"}``.
"""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, TypeAlias

from protocol.account import first_link, next_link
from protocol.contract import hash_input
from protocol.encoding import Plain, encode
from protocol.envelope import SIGNATURE_DOMAIN
from protocol.framing import (
    END_MARK,
    ENVELOPE_FRAME_BYTES_MAX,
    FRAME_BYTES_MAX,
    AliveFrame,
    EnvelopeFrame,
    Frame,
    InputFrame,
    OutputFrame,
    encode_frame,
)
from protocol.identity import peer_id_to_text
from protocol.price import cost
from protocol.schema import to_plain
from protocol.signed import Signed, SignedMessage, sign
from protocol.task import GenerateInput, encode_input, encode_output, pack_tokens
from scripts.spec import examples
from scripts.spec.bundles import evidence
from scripts.spec.edge_keys import edge_cases
from scripts.spec.exposures import exposure
from scripts.spec.items import item_tasks
from scripts.spec.proofs import equivocation
from scripts.spec.settlements import settlement

FOLDER: Final = Path(__file__).parent.parent.parent / "protocol" / "spec" / "vectors"

Json: TypeAlias = Any  # whatever JSON can hold; made here, read by the tests' own types


def shown(value: Plain) -> Json:
    """Return a value for JSON, with bytes marked."""
    if isinstance(value, bytes):
        return {"$hex": value.hex()}
    if isinstance(value, list):
        return [shown(item) for item in value]
    if isinstance(value, dict):
        return {key: shown(item) for key, item in value.items()}
    return value


def encoding() -> Json:
    values: dict[str, Plain] = {
        "nil": None,
        "true": True,
        "false": False,
        "integers at the borders of their forms": [
            0, 127, 128, 255, 256, 65535, 65536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1,
            -1, -32, -33, -128, -129, -32768, -32769, -(1 << 31), -(1 << 31) - 1, -(1 << 63),
        ],
        "empty": [{}, [], "", b""],
        "text": ["a" * 31, "a" * 32, "ä€🌒"],
        "bytes": [b"\x00", b"\xff" * 255, b"\x01" * 256],
        "keys sorted by bytes": {"b": 1, "a": 2, "ab": 3, "B": 4, "_": 5},
        "sixteen entries": {f"k{place:02}": place for place in range(16)},
        "eight deep": [[[[[[[[]]]]]]]],
        "256 entries": [None] * 256,
    }  # fmt: skip
    refused = {
        "nothing": "", "cut": "9201", "one byte more": "c0c0",
        "duplicate keys": "82a16101a16102", "keys out of order": "82a16201a16101", "empty key": "81a001",
        "key not ASCII": "81a2c3a901", "key of 33 bytes": "81d921" + "6b" * 33 + "01",
        "key of bytes": "81c4016101", "key of an integer": "810101",
        "1 as uint8": "cc01", "255 as uint16": "cd00ff", "1 as int8": "d001", "-1 as int8": "d0ff",
        "1 as uint64": "cf0000000000000001", "text as str8": "d90161", "bytes as bin16": "c5000161",
        "array as array16": "dc000101", "map as map16": "de0001a16101",
        "float32": "ca3f800000", "float64": "cb3ff0000000000000", "not a number": "cb7ff8000000000000",
        "extension": "d40100", "timestamp": "d6ff00000000", "reserved byte": "c1",
        "text not UTF-8": "a2c328", "text with a surrogate": "a3eda080", "text with an overlong form": "a2c081",
        "array that claims 4 GiB": "ddffffffff", "bytes that claim 4 GiB": "c6ffffffff",
        "nine deep": "91" * 8 + "90", "257 entries": "dc0101" + "c0" * 257,
        "4113 values": "dc0010" + ("dc0100" + "c0" * 256) * 16,
    }  # fmt: skip
    return {
        "valid": [
            {"name": name, "value": shown(value), "hex": encode(value).hex()} for name, value in values.items()
        ],
        "invalid": [{"name": name, "hex": data, "reason": "encoding"} for name, data in refused.items()],
    }


def forced(kind: str, body: bytes) -> bytes:
    """Return an envelope with a valid signature over any body."""
    signer = examples.messages()[kind][0]
    name = kind.encode()
    text = SIGNATURE_DOMAIN + bytes([len(name)]) + name + examples.NETWORK + sha256(body).digest()
    return encode([1, kind, examples.NETWORK, signer.peer_id, body, signer.sign(text)])


def altered(kind: str, change: Callable[[dict[str, Plain]], object]) -> bytes:
    body = to_plain(examples.messages()[kind][1])
    change(body)
    return forced(kind, encode(body))


def described(signed: Signed[SignedMessage]) -> Json:
    envelope = signed.envelope
    return {
        "type": envelope.kind,
        "signer": envelope.signer.hex(),
        "body": shown(to_plain(signed.message)),
        "body_hex": envelope.body.hex(),
        "envelope": envelope.raw.hex(),
        "id": envelope.message_id.hex(),
    }


def envelopes() -> Json:
    messages = {
        kind: sign(message, network=examples.NETWORK, signer=signer)
        for kind, (signer, message) in examples.messages().items()
    }
    everything = sorted(messages)
    voucher = messages["voucher"]
    invalid = [
        {"name": name, "allowed": everything, "hex": data, "reason": why}
        for name, (data, why) in wrong_envelopes(voucher).items()
    ]
    invalid += [
        {"name": f"{kind}: {name}", "allowed": [kind], "hex": altered(kind, change).hex(), "reason": "schema"}
        for name, (kind, change) in wrong_bodies().items()
    ]
    invalid.append(
        {
            "name": "a type that is not allowed here",
            "allowed": ["meter"],
            "hex": voucher.envelope.raw.hex(),
            "reason": "type",
        }
    )
    return {
        "network_config": examples.NETWORK_CONFIG,
        "network": examples.NETWORK.hex(),
        "seeds": {name: seed.hex() for name, seed in examples.SEEDS.items()},
        "valid": [described(message) for message in messages.values()],
        "valid_with_extension": altered("voucher", lambda body: body.update(x_note="kept, ignored")).hex(),
        "invalid": invalid,
    }


def wrong_envelopes(good: Signed[SignedMessage]) -> dict[str, tuple[str, str]]:
    """Return (hex, reason) of envelopes, made from a good voucher, that are refused before any schema."""
    voucher = good.envelope

    def with_field(place: int, value: Plain) -> str:
        body, text = voucher.body, voucher.raw[-64:]
        fields: list[Plain] = [1, "voucher", examples.NETWORK, voucher.signer, body, text]
        fields[place] = value
        return encode(fields).hex()

    flipped = bytearray(voucher.raw)
    flipped[-1] ^= 1
    body = to_plain(good.message)
    unsorted = b"\x84" + b"".join(encode(key) + encode(body[key]) for key in sorted(body, reverse=True))
    return {
        "version 2": (with_field(0, 2), "envelope"),
        "version true": (with_field(0, True), "envelope"),
        "key of 31 bytes": (with_field(3, voucher.signer[:31]), "envelope"),
        "signature of 65 bytes": (with_field(5, voucher.raw[-64:] + b"\x00"), "envelope"),
        "five fields": (encode([1, "voucher", examples.NETWORK, voucher.signer, voucher.body]).hex(), "envelope"),
        "another network": (with_field(2, examples.OTHER_NETWORK), "network"),
        "a type that is not known": (with_field(1, "cheque"), "type"),
        "replayed as another type": (with_field(1, "closing"), "signature"),
        "another signer named": (with_field(3, examples.STRANGER.peer_id), "signature"),
        "the identity point as signer": (with_field(3, b"\x01" + bytes(31)), "signer"),
        "one bit of the signature": (flipped.hex(), "signature"),
        "a byte after the envelope": (voucher.raw.hex() + "00", "encoding"),
        "body that is no map": (forced("voucher", encode([1])).hex(), "schema"),
        "body that is not canonical": (forced("voucher", unsorted).hex(), "encoding"),
        "advert with a body of 4097 bytes": (forced("advert", bytes(4097)).hex(), "size"),
    }


def wrong_bodies() -> dict[str, tuple[str, Callable[[dict[str, Plain]], object]]]:
    """Return the type and the change of a body that breaks its schema."""
    return {
        "field that the schema lacks": ("voucher", lambda body: body.update(tip=1)),
        "field missing": ("voucher", lambda body: body.pop("meter")),
        "nil instead of leaving a field out": ("decline", lambda body: body.update(price_min=None)),
        "true for an integer": ("voucher", lambda body: body.update(meter=True)),
        "negative sum": ("voucher", lambda body: body.update(cumulative=-1)),
        "sum above 2^53": ("voucher", lambda body: body.update(cumulative=(1 << 53) + 1)),
        "number 0": ("voucher", lambda body: body.update(number=0)),
        "id of 31 bytes": ("voucher", lambda body: body.update(contract_id=bytes(31))),
        "text for bytes": ("voucher", lambda body: body.update(contract_id="c" * 32)),
        "code outside the list": ("decline", lambda body: body.update(code="no")),
        "text of 257 characters": ("decline", lambda body: body.update(message="x" * 257)),
        "newline after a code": ("cancel", lambda body: body.update(code="user\n")),
        "field that a nested schema lacks": (
            "contract",
            lambda body: body.update(prices={"fixed": 0, "tokens_in": 0, "tokens_out": 0, "per_s": 0, "tip": 0}),
        ),
    }


def keys() -> Json:
    return {
        "peer_ids": [
            {"seed": seed.hex(), "key": signer.peer_id.hex(), "text": peer_id_to_text(signer.peer_id)}
            for seed, signer in (
                (examples.SEEDS["requester"], examples.REQUESTER),
                (examples.SEEDS["provider"], examples.PROVIDER),
            )
        ],
        "peer_ids_invalid": [
            {"name": "empty", "text": ""},
            {"name": "not base58", "text": "0OIl"},
            {"name": "space at the end", "text": peer_id_to_text(examples.PROVIDER.peer_id) + " "},
            {"name": "RSA", "text": "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"},
            {
                "name": "identity point",
                "text": peer_id_to_text(type(examples.PROVIDER.peer_id)(b"\x01" + bytes(31))),
            },
        ],
        "signatures": [
            {
                "name": case.name,
                "key": case.key.hex(),
                "message": case.message.hex(),
                "signature": case.signature.hex(),
                "reason": case.reason,
            }
            for case in edge_cases()
        ],
    }


def prices() -> Json:
    rows = [
        ((0, 0, 0, 0), 5, 5, 5, 10),
        ((100, 200_000, 800_000, 50), 23, 4, 400, 3_126),
        ((100, 200_000, 800_000, 50), 23, 7, 800, 3_126),
        ((100, 200_000, 800_000, 50), 23, 7, 800, 120),
        ((0, 1, 0, 0), 1, 0, 0, 10),
        ((0, 1, 1, 0), 500_000, 500_000, 0, 10),
        ((0, 1, 1, 0), 500_000, 500_001, 0, 10),
        ((0, 1, 0, 1), 1, 0, 1, 10),
        ((0, 999_999, 0, 1), 1, 0, 1, 10),
        ((0, 0, 0, 1), 0, 0, 1_000, 10),
        ((0, 0, 0, 1), 0, 0, 1_001, 10),
        ((1 << 53, 1 << 53, 1 << 53, 1 << 53), 1 << 24, 1 << 24, 1 << 40, 1 << 53),
    ]
    table = []
    for (fixed, per_in, per_out, per_s), tokens_in, tokens_out, duration_ms, price_max in rows:
        tariff = type(examples.PRICES)(fixed=fixed, tokens_in=per_in, tokens_out=per_out, per_s=per_s)
        owed = cost(
            tariff, tokens_in=tokens_in, tokens_out=tokens_out, duration_ms=duration_ms, price_max=price_max
        )
        table.append(
            {
                "prices": shown(to_plain(tariff)),
                "tokens_in": tokens_in,
                "tokens_out": tokens_out,
                "duration_ms": duration_ms,
                "price_max": price_max,
                "cost": owed,
            }
        )
    return {"valid": table}


def chain() -> Json:
    link = first_link(examples.SALT)
    table = []
    for sequence, output in enumerate(examples.OUTPUTS):
        data = encode_output(output)
        link = next_link(link, sequence, data)
        table.append(
            {"sequence": sequence, "output": shown(to_plain(output)), "data": data.hex(), "link": link.hex()}
        )
    return {"salt": examples.SALT.hex(), "first_link": first_link(examples.SALT).hex(), "frames": table}


def frames() -> Json:
    made: dict[str, Frame] = {
        "alive": AliveFrame(),
        "envelope": EnvelopeFrame(b"\x96"),
        "input": InputFrame(0, examples.SALT),
        "input of one byte at place 258": InputFrame(258, b"a"),
        "output without data": OutputFrame((1 << 32) - 1, b""),
    }
    refused = {
        "nothing": (b"", "encoding"),
        "kind 0": (b"\x00", "type"),
        "kind 5": (b"\x05", "type"),
        "alive with a byte": (b"\x04\x00", "encoding"),
        "input without a number": (b"\x02\x00\x00\x00", "size"),
        "output over 64 KiB": (b"\x03" + bytes(FRAME_BYTES_MAX), "size"),
        "envelope over its bound": (b"\x01" + bytes(ENVELOPE_FRAME_BYTES_MAX), "size"),
    }
    return {
        "end_mark": END_MARK.to_bytes(4, "big").hex(),
        "valid": [
            {"name": name, "hex": (data := encode_frame(frame)).hex(), "wire": wire(data)}
            for name, frame in made.items()
        ],
        "invalid": [
            # Long ones are zeros at the end: a vector says how many.
            {"name": name, "hex": data[:5].hex(), "zeros": max(len(data) - 5, 0), "reason": why}
            for name, (data, why) in refused.items()
        ],
    }


def tasks() -> Json:
    raw = GenerateInput(prompt="Once upon a time")
    continued = GenerateInput(prompt="Once upon a time", held=pack_tokens((9707, 1 << 24)))
    refused: dict[str, Plain] = {
        "neither messages nor prompt": {},
        "both messages and prompt": {"messages": [{"role": "user", "content": "a"}], "prompt": "b"},
        "role outside the list": {"messages": [{"role": "tool", "content": "a"}]},
        "nine stop strings": {"prompt": "a", "stop": ["x"] * 9},
        "empty stop string": {"prompt": "a", "stop": [""]},
        "held bytes that are no tokens": {"prompt": "a", "held": b"\x00\x01"},
        "unknown field": {"prompt": "a", "top_k": 1},
    }
    return {
        "valid": [
            {
                "input": shown(to_plain(value)),
                "hex": (data := encode_input(value)).hex(),
                "salt": examples.SALT.hex(),
                "input_hash": hash_input(examples.SALT, data).hex(),
            }
            for value in (examples.INPUT, raw, continued)
        ],
        "invalid": [
            {"name": name, "hex": encode(value).hex(), "reason": "schema"} for name, value in refused.items()
        ],
    }


def wire(frame: bytes) -> str:
    """Return a frame as a stream carries it: a big-endian length, then the frame."""
    return (len(frame).to_bytes(4, "big") + frame).hex()


def job() -> Json:
    steps: list[Json] = []
    for step in examples.whole_job().steps:
        entry: Json = {"from": step.sender, "stream": step.stream, "wire": wire(encode_frame(step.frame))}
        match step.frame:
            case EnvelopeFrame() if step.signed is not None:
                entry |= {"frame": "envelope", "message": described(step.signed)}
            case InputFrame(sequence, data):
                entry |= {"frame": "input", "sequence": sequence, "data": data.hex()}
            case OutputFrame(sequence, data):
                entry |= {"frame": "output", "sequence": sequence, "data": data.hex()}
            case _:
                entry |= {"frame": "alive"}
        steps.append(entry)
    return {
        "network": examples.NETWORK.hex(),
        "requester": examples.REQUESTER.peer_id.hex(),
        "provider": examples.PROVIDER.peer_id.hex(),
        "salt": examples.SALT.hex(),
        "input": shown(to_plain(examples.INPUT)),
        "end_mark": END_MARK.to_bytes(4, "big").hex(),
        "steps": steps,
    }


FILES: Final[dict[str, Callable[[], Json]]] = {
    "encoding.json": encoding,
    "envelope.json": envelopes,
    "keys.json": keys,
    "price.json": prices,
    "output.json": chain,
    "frames.json": frames,
    "task.json": tasks,
    "tasks.json": item_tasks,
    "job.json": job,
    "evidence.json": evidence,
    "equivocation.json": equivocation,
    "settlement.json": settlement,
    "exposure.json": exposure,
}


def written(name: str) -> str:
    """Return the text of one file."""
    return json.dumps(FILES[name](), indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """Write all files anew."""
    FOLDER.mkdir(exist_ok=True)
    for name in FILES:
        (FOLDER / name).write_text(written(name), "utf-8")


if __name__ == "__main__":
    main()
