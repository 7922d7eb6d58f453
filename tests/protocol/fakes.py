"""What the protocol's tests share: a way to re-sign a changed message, and seeded mutants of bytes."""

import random
from collections.abc import Callable, Iterator
from hashlib import sha256

from node.keystore import Ed25519Signer
from protocol.encoding import Plain, encode
from protocol.envelope import seal
from protocol.errors import Reason, RemoteProtocolError
from protocol.schema import to_plain
from protocol.signed import Signed, SignedMessage, sign
from scripts.spec import examples


def sealed(kind: str) -> Signed[SignedMessage]:
    """Return the example message of this type, signed."""
    signer, message = examples.messages()[kind]
    return sign(message, network=examples.NETWORK, signer=signer)


def resealed(kind: str, body: Plain, signer: Ed25519Signer | None = None) -> bytes:
    """Return an envelope with a valid signature over any body."""
    signer = signer or examples.messages()[kind][0]
    return seal(kind, body, network=examples.NETWORK, signer=signer).raw


def body_of(kind: str) -> dict[str, Plain]:
    return to_plain(examples.messages()[kind][1])


def forced(kind: str, body: bytes, signer: Ed25519Signer | None = None) -> bytes:
    """Return an envelope with a valid signature over bytes that need not be canonical."""
    signer = signer or examples.messages()[kind][0]
    name = kind.encode()
    text = b"souk.sig.v1\x00" + bytes([len(name)]) + name + examples.NETWORK + sha256(body).digest()
    return encode([1, kind, examples.NETWORK, signer.peer_id, body, signer.sign(text)])


def reason_of(read: Callable[[bytes], object], data: bytes) -> Reason | None:
    """Return why ``data`` is refused, or None when it is read. Every other exception escapes."""
    try:
        read(data)
    except RemoteProtocolError as exc:
        return exc.reason
    return None


def mutants(seed: bytes, data: bytes, count: int) -> Iterator[bytes]:
    """Yield seeded variants of ``data``: flips, cuts, repeats, inserted headers and swapped pieces."""
    rng = random.Random(seed)
    for _ in range(count):
        mutant = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(mutant) + 1)
            match rng.randrange(6):
                case 0 if at < len(mutant):
                    mutant[at] ^= 1 << rng.randrange(8)
                case 1 if at < len(mutant):
                    mutant[at] = rng.choice((0x00, 0x80, 0x90, 0xC0, 0xC1, 0xC7, 0xCB, 0xD6, 0xDC, 0xDF, 0xFF))
                case 2:
                    del mutant[at : at + rng.randint(1, 8)]
                case 3:
                    mutant[at:at] = rng.randbytes(rng.randint(1, 8))
                case 4:
                    mutant[at:at] = mutant[at : at + rng.randint(1, 32)]
                case _:
                    mutant = mutant[at:] + mutant[:at]
            if not mutant:
                mutant = bytearray(b"\x00")
        if mutant != data:
            yield bytes(mutant)
