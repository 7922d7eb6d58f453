"""Ed25519 keys and signatures on which verifiers differ, made with plain integers.

The classes are those of "Taming the many EdDSAs" (Chalkias, Garillot, Nikolaenko, 2020). Slow and not for
secrets: it only makes test vectors.
"""

from dataclasses import dataclass
from hashlib import sha512
from typing import Final, TypeAlias

P: Final = 2**255 - 19
L: Final = 2**252 + 27742317777372353535851937790883648493
D: Final = -121665 * pow(121666, -1, P) % P
ROOT_OF_MINUS_ONE: Final = pow(2, (P - 1) // 4, P)

Point: TypeAlias = tuple[int, int]

IDENTITY: Final[Point] = (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeCase:
    name: str
    key: bytes
    message: bytes
    signature: bytes
    reason: str | None
    """Why it is refused: ``signer`` by the key's check, ``signature`` by verification; None: it verifies."""


def add(one: Point, other: Point) -> Point:
    """Add two points of the curve −x² + y² = 1 + d·x²·y²."""
    (x1, y1), (x2, y2) = one, other
    product = D * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + product, -1, P) % P
    y = (y1 * y2 + x1 * x2) * pow(1 - product, -1, P) % P
    return x, y


def multiply(scalar: int, point: Point) -> Point:
    result = IDENTITY
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def point_of(y: int, sign: int = 0) -> Point | None:
    """Return the point with this y, or None where the curve has none."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * ROOT_OF_MINUS_ONE % P
    if x * x % P != square:
        return None
    return (P - x if x % 2 != sign else x), y % P


def encode(point: Point) -> bytes:
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def encode_raw(y: int, sign: int = 0) -> bytes:
    """Return an encoding that need not be canonical."""
    return (y | sign << 255).to_bytes(32, "little")


_BASE = point_of(4 * pow(5, -1, P) % P)
assert _BASE is not None
BASE: Final[Point] = _BASE


def point_of_order_8() -> Point:
    """Return a generator of the small subgroup: any point times L, until one has order 8."""
    y = 2
    while True:
        point = point_of(y)
        if point is not None:
            small = multiply(L, point)
            if multiply(4, small) != IDENTITY:
                return small
        y += 1


def challenge(nonce_point: bytes, key: bytes, message: bytes) -> int:
    return int.from_bytes(sha512(nonce_point + key + message).digest(), "little") % L


SECRET: Final = int.from_bytes(sha512(b"souk.example edge secret").digest(), "little") % L
NONCE: Final = int.from_bytes(sha512(b"souk.example edge nonce").digest(), "little") % L


def signed(key: bytes, nonce_point: bytes, message: bytes, secret: int = SECRET, nonce: int = NONCE) -> bytes:
    """Return R and S = r + h·a for any encodings of R and A."""
    s = (nonce + challenge(nonce_point, key, message) * secret) % L
    return nonce_point + s.to_bytes(32, "little")


def message_with(key: bytes, nonce_point: bytes, *, torsion_vanishes: bool) -> bytes:
    """Return a message whose challenge is a multiple of 8, or is odd."""
    for counter in range(1000):
        message = b"message %d" % counter
        h = challenge(nonce_point, key, message)
        if (h % 8 == 0) if torsion_vanishes else (h % 2 == 1):
            return message
    raise AssertionError("no such message in a thousand")


def edge_cases() -> list[EdgeCase]:
    """Return all cases; the first two verify."""
    return [*_valid_and_malleated(), *_small_order_keys(), *_mixed_order()]


def _valid_and_malleated() -> list[EdgeCase]:
    key, nonce_point = encode(multiply(SECRET, BASE)), encode(multiply(NONCE, BASE))
    message = b"a contract"
    good = signed(key, nonce_point, message)
    other_nonce = NONCE + 1
    again = signed(key, encode(multiply(other_nonce, BASE)), message, nonce=other_nonce)
    s = int.from_bytes(good[32:], "little")

    def case(name: str, signature: bytes, reason: str | None = "signature") -> EdgeCase:
        return EdgeCase(name=name, key=key, message=message, signature=signature, reason=reason)

    return [
        case("valid", good, None),
        case("a second valid signature over the same message", again, None),
        case("S + L", good[:32] + (s + L).to_bytes(32, "little")),
        case("S + 2L", good[:32] + (s + 2 * L).to_bytes(32, "little")),
        case("63 bytes", good[:63]),
        case("65 bytes", good + b"\x00"),
    ]


def _small_order_keys() -> list[EdgeCase]:
    eighth = point_of_order_8()
    cases = []
    for name, point in (
        ("A is the identity", IDENTITY),
        ("A has order 2", multiply(4, eighth)),
        ("A has order 4", multiply(2, eighth)),
        ("A has order 8", eighth),
    ):
        key, nonce_point = encode(point), encode(multiply(NONCE, BASE))
        # The challenge is a multiple of 8: h·A vanishes, so S·B = R holds without a secret.
        message = message_with(key, nonce_point, torsion_vanishes=True)
        signature = signed(key, nonce_point, message, secret=0)
        cases.append(EdgeCase(name=name, key=key, message=message, signature=signature, reason="signer"))
    identity = encode(IDENTITY)
    key = encode(eighth)
    cases.append(
        EdgeCase(
            name="A and R of small order, S = 0",
            key=key,
            message=message_with(key, identity, torsion_vanishes=True),
            signature=identity + bytes(32),
            reason="signer",
        )
    )
    for name, key in (
        ("A not canonical: y = p + 1", encode_raw(P + 1)),
        ("A with a sign bit on x = 0", encode_raw(1, sign=1)),
    ):
        nonce_point = encode(multiply(NONCE, BASE))
        signature = signed(key, nonce_point, b"a contract", secret=0)
        cases.append(EdgeCase(name=name, key=key, message=b"a contract", signature=signature, reason="signer"))
    return cases


def _mixed_order() -> list[EdgeCase]:
    eighth = point_of_order_8()
    good_key, good_nonce = encode(multiply(SECRET, BASE)), encode(multiply(NONCE, BASE))
    mixed_key = encode(add(multiply(SECRET, BASE), eighth))
    mixed_nonce = encode(add(multiply(NONCE, BASE), eighth))
    raw_nonce = encode_raw(P + 1)
    odd = message_with(mixed_key, good_nonce, torsion_vanishes=False)
    eighths = message_with(mixed_key, good_nonce, torsion_vanishes=True)

    def case(name: str, key: bytes, message: bytes, signature: bytes, reason: str) -> EdgeCase:
        return EdgeCase(name=name, key=key, message=message, signature=signature, reason=reason)

    return [
        case("A of mixed order, only the cofactored equation holds", mixed_key, odd,
             signed(mixed_key, good_nonce, odd), "signer"),
        case("A of mixed order, the cofactorless equation holds", mixed_key, eighths,
             signed(mixed_key, good_nonce, eighths), "signer"),
        case("R of mixed order", good_key, b"a contract",
             signed(good_key, mixed_nonce, b"a contract"), "signature"),
        case("R not canonical: y = p + 1", good_key, b"a contract",
             signed(good_key, raw_nonce, b"a contract", nonce=0), "signature"),
    ]  # fmt: skip
