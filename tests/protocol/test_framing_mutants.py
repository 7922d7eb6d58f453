"""Hostile variants of everything else in msgpack that a peer sends: frames, task data, manifests, DHT records."""

from collections.abc import Callable, Iterator

import pytest

from node.discovery.directory import Directory
from node.discovery.discovery import Discovery
from node.models.manifest import Manifest, ModelFile, decode_manifest_untrusted, encode_manifest
from node.net.interface import RecordRules
from node.net.memory import MemoryFabric
from protocol.errors import Reason, RemoteProtocolError
from protocol.framing import EnvelopeFrame, InputFrame, OutputFrame, decode_frame_untrusted, encode_frame
from protocol.identity import peer_id_to_text
from protocol.task import (
    ChatMessage,
    GenerateInput,
    decode_input_untrusted,
    decode_output_untrusted,
    encode_input,
    encode_output,
    pack_tokens,
)
from scripts.spec import examples
from tests.protocol.fakes import sealed
from tests.protocol.mutants import MsgpackMutator
from tests.protocol.ordeal import Ordeal

Figure = Callable[[str, str], None]

pytestmark = pytest.mark.slow
each_run = pytest.mark.parametrize(
    ("run", "count"),
    [pytest.param("gate", 100_000), pytest.param("deep", 1_000_000, marks=pytest.mark.deep)],
    ids=["gate", "deep"],
)

# Not signed, and read by as few lines as the bodies of messages: a fifth of their million.
each_data = pytest.mark.parametrize(
    ("run", "count"),
    [pytest.param("gate", 100_000), pytest.param("deep", 200_000, marks=pytest.mark.deep)],
    ids=["gate", "deep"],
)
each_hint = pytest.mark.parametrize(
    ("run", "count"),
    [pytest.param("gate", 20_000), pytest.param("deep", 100_000, marks=pytest.mark.deep)],
    ids=["gate", "deep"],
)

# As large as a client makes them: a long conversation that has been continued once.
LONG_INPUT = encode_input(
    GenerateInput(
        messages=tuple(
            ChatMessage(role="user" if turn % 2 else "assistant", content="word " * 40) for turn in range(60)
        ),
        held=pack_tokens(range(300)),
    )
)
MANIFEST = encode_manifest(
    Manifest(
        task="generate",
        architecture="llama",
        context_tokens=2048,
        files=tuple(
            ModelFile(name=name, size=7, sha256=bytes(32), chunks=bytes(32))
            for name in ("config.json", "model.safetensors", "tokenizer.json")
        ),
    )
)


def both(mutator: MsgpackMutator, count: int) -> Iterator[bytes]:
    for _ in range(count // 2):
        yield mutator.on_bytes()
        yield mutator.on_values()


@each_run
def test_frame_reader_raises_one_class_when_fed_mutants(run: str, count: int, figure: Figure) -> None:
    voucher = EnvelopeFrame(sealed("voucher").envelope.raw)
    output = OutputFrame(3, encode_output(examples.OUTPUTS[1]))
    frames = [encode_frame(frame) for frame in (voucher, InputFrame(0, examples.SALT), output)]
    ordeal = Ordeal("frames", f"frames/{run}")
    mutators = [MsgpackMutator(f"{ordeal.seed}/{frame[0]}", frame, frames, header=5) for frame in frames]

    def read(data: bytes) -> None:
        assert encode_frame(decode_frame_untrusted(data)) == data

    ordeal.run((mutators[turn % 3].on_bytes() for turn in range(count)), read)
    figure("decoders: frames", ordeal.verdict())


@each_data
@pytest.mark.parametrize(
    ("name", "examples_of_it", "read"),
    [
        (
            "task input",
            (examples.INPUT_BYTES, encode_input(GenerateInput(prompt="Wie weit?"))),
            decode_input_untrusted,
        ),
        ("task output", tuple(map(encode_output, examples.OUTPUTS)), decode_output_untrusted),
    ],
    ids=["input", "output"],
)
def test_reader_of_data_raises_one_class_when_fed_mutants(
    run: str,
    count: int,
    figure: Figure,
    *,
    name: str,
    examples_of_it: tuple[bytes, ...],
    read: Callable[[bytes], object],
) -> None:
    ordeal = Ordeal(name, f"{name}/{run}")
    for place, data in enumerate(examples_of_it):
        mutator = MsgpackMutator(f"{ordeal.seed}/{place}", data, examples_of_it)
        ordeal.run(both(mutator, count // len(examples_of_it)), read)
    assert ordeal.count() == count and ordeal.share("accepted") > 0.02
    figure(f"decoders: {name}", ordeal.verdict())


@pytest.mark.parametrize(
    ("run", "count"), [("gate", 5_000), pytest.param("deep", 20_000, marks=pytest.mark.deep)], ids=["gate", "deep"]
)
def test_reader_of_a_long_input_raises_one_class_when_fed_mutants(run: str, count: int, figure: Figure) -> None:
    ordeal = Ordeal("long task input", f"long/{run}")
    ordeal.run(both(MsgpackMutator(ordeal.seed, LONG_INPUT), count), decode_input_untrusted)
    figure(f"decoders: task input of {len(LONG_INPUT)} bytes", ordeal.verdict())


@each_hint
def test_manifest_reader_raises_one_class_when_fed_mutants(run: str, count: int, figure: Figure) -> None:
    ordeal = Ordeal("model manifests", f"manifests/{run}")
    ordeal.run(both(MsgpackMutator(ordeal.seed, MANIFEST), count), decode_manifest_untrusted)
    figure("decoders: model manifests", ordeal.verdict())


class Rules:
    """The rules of a node's DHT records, and its directory, at the time of the examples."""

    def __init__(self) -> None:
        owner = examples.STRANGER.peer_id
        self.records: list[RecordRules] = []
        network = MemoryFabric().network("node", owner)
        network.keep_records = self.records.append  # type: ignore[method-assign, assignment]  # what a network is told
        self.directory = Directory(examples.NETWORK, owner)
        Discovery(
            network,
            self.directory,
            network_id=examples.NETWORK,
            compose=lambda _life: None,
            wall_clock=lambda: examples.NOW_MS,
        ).attach()

    def judge(self, value: bytes) -> None:
        """Judge a record as the DHT has it judged: an answer comes, never an exception."""
        (rules,) = self.records
        key = f"/cap/{peer_id_to_text(examples.PROVIDER.peer_id)}"
        is_valid, rank = rules.is_valid(key, value), rules.rank(value)
        assert rank >= 0 or not is_valid
        if not is_valid:
            raise RemoteProtocolError("refused by the rules", reason=Reason.MEANING)

    def hear(self, raw: bytes) -> None:
        self.directory.hear_untrusted(raw, examples.NOW_MS)


@each_hint
@pytest.mark.parametrize("name", ["DHT record", "heard advert"])
def test_adverts_of_strangers_raise_one_class_when_they_are_mutants(
    run: str, count: int, name: str, figure: Figure
) -> None:
    rules = Rules()
    ordeal = Ordeal(name, f"{name}/{run}")
    raw = sealed("advert").envelope.raw
    # The directory knows no advert but changed ones: whatever it takes in was signed anew.
    ordeal.run(
        (mutant for mutant in both(MsgpackMutator(ordeal.seed, raw), count) if mutant != raw),
        rules.judge if name == "DHT record" else rules.hear,
    )
    assert not ordeal.stages["accepted"] and not rules.directory.listings(examples.NOW_MS)
    figure(f"decoders: {name}", ordeal.verdict())


def test_record_key_is_judged_without_an_exception_when_it_is_anything() -> None:
    (rules,) = Rules().records
    value = sealed("advert").envelope.raw
    good = peer_id_to_text(examples.PROVIDER.peer_id)
    other = peer_id_to_text(examples.STRANGER.peer_id)
    assert rules.is_valid(f"/cap/{good}", value)
    for name in ("", " ", f"{good} ", f"/{good}", f"{good}/x", "\x00", "é", "1" * 5000, "\ud800", other):
        key = f"/cap/{name}"
        assert not rules.is_valid(key, value), key
