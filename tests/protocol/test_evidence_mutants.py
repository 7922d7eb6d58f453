"""Hostile variants of the JSON that people mail: evidence bundles and proofs of equivocation.

Most are refused at the first envelope whose signature does not hold; so some have one message changed in its
values and signed anew, which only the sums and references can refuse.
"""

import json
import random
from collections.abc import Callable, Iterator
from hashlib import sha256

import pytest

from protocol.encoding import encode
from protocol.equivocation import contradiction_untrusted, verify_proof_untrusted
from protocol.evidence import verify_bundle_untrusted
from protocol.signed import Signed, SignedMessage
from scripts.spec import bundles, examples, vectors
from tests.protocol.mutants import JsonMutator, MsgpackMutator
from tests.protocol.ordeal import Ordeal

Figure = Callable[[str, str], None]

pytestmark = pytest.mark.slow
each_run = pytest.mark.parametrize(
    ("run", "count"),
    [pytest.param("gate", 10_000), pytest.param("deep", 40_000, marks=pytest.mark.deep)],
    ids=["gate", "deep"],
)
JUDGED = 10
"""One in so many is signed anew: ten signatures are verified for it."""


class Resigner:
    """Bundles in which one message was changed and signed by whoever had signed it."""

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed)
        self._job = bundles.signed_job()
        self._bodies = [
            MsgpackMutator(f"{seed}/{place}", item.envelope.body) for place, item in enumerate(self._job)
        ]

    def bundle(self) -> bytes:
        place = self._random.randrange(len(self._job))
        found = bundles.bundled(self._job)
        found["messages"][place]["envelope"] = resigned(self._job[place], self._bodies[place].on_values()).hex()
        return json.dumps(found).encode()


def resigned(signed: Signed[SignedMessage], body: bytes) -> bytes:
    own = examples.REQUESTER if signed.signer == examples.REQUESTER.peer_id else examples.PROVIDER
    name = signed.envelope.kind.encode()
    text = b"souk.sig.v1\x00" + bytes([len(name)]) + name + examples.NETWORK + sha256(body).digest()
    return encode([1, signed.envelope.kind, examples.NETWORK, own.peer_id, body, own.sign(text)])


@each_run
def test_bundle_reader_raises_one_class_when_fed_mutants(run: str, count: int, figure: Figure) -> None:
    ordeal = Ordeal("evidence bundles", f"bundles/{run}")
    good = bundles.text_of(bundles.signed_job())
    # A job that was only agreed on: two signatures, so that labels are tried more often.
    short = bundles.text_of([it for it in bundles.signed_job() if it.envelope.kind in ("contract", "accept")])
    texts = [JsonMutator(f"{ordeal.seed}/long", good), JsonMutator(f"{ordeal.seed}/short", short)]
    resigner = Resigner(ordeal.seed)

    def mutants() -> Iterator[bytes]:
        for turn in range(count):
            yield texts[turn % 5 != 0].variant() if turn % JUDGED else resigner.bundle()

    ordeal.run(mutants(), verify_bundle_untrusted)
    # About one in a hundred gets so far: with none, the rest of the reader would go untried.
    assert ordeal.share("meaning", "signer", "price") > 0.005
    figure("decoders: evidence bundles", ordeal.verdict())


@each_run
def test_proof_readers_raise_one_class_when_fed_mutants(run: str, count: int, figure: Figure) -> None:
    ordeal = Ordeal("equivocation proofs", f"proofs/{run}")
    rows = json.loads((vectors.FOLDER / "equivocation.json").read_text("utf-8"))["valid"]
    proofs = [row["proof"] for row in rows]
    texts = [JsonMutator(f"{ordeal.seed}/{place}", json.dumps(it).encode()) for place, it in enumerate(proofs)]
    raws = [[bytes.fromhex(item["envelope"]) for item in proof["messages"]] for proof in proofs]
    seconds = [MsgpackMutator(f"{ordeal.seed}/{place}", pair[1]) for place, pair in enumerate(raws)]

    ordeal.run((texts[turn % len(texts)].variant() for turn in range(count)), verify_proof_untrusted)
    pairs = Ordeal("pairs of envelopes", ordeal.seed)
    for place, (first, _second) in enumerate(raws):
        mutants = (seconds[place].on_bytes() for _ in range(count // 20))
        pairs.run(mutants, lambda raw, first=first: contradiction_untrusted(first, raw))  # type: ignore[misc]
    pairs.verdict()
    figure("decoders: equivocation proofs", ordeal.verdict())
