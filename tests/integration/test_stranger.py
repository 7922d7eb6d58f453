"""A requester made from the specification alone buys from a real provider daemon."""

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from node.home import Home
from node.testnet.interrupts import Interrupts
from node.testnet.network import Network, Node, Plan
from tests.integration import stranger
from tests.integration.paced_model import NAME, write_paced_store

VECTORS = Path(__file__).parents[2] / "protocol" / "spec" / "vectors"
BASE_CONFIG = (
    (Path(__file__).parents[2] / "configs" / "testnet.toml")
    .read_text("utf-8")
    .replace("[worker]\n", '[worker]\ndtype = "fp32"\n')
)
NETWORK = "testnet"
PROMPT = {"messages": [{"role": "user", "content": "Count."}], "prompt": "", "stop": [], "held": b""}

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def vectors(name: str) -> Any:
    def plain(found: dict[str, Any]) -> Any:
        return bytes.fromhex(found["$hex"]) if found.keys() == {"$hex"} else found

    return json.loads((VECTORS / f"{name}.json").read_text("utf-8"), object_hook=plain)


def refusal(act: Any, *arguments: Any) -> str:
    with pytest.raises(stranger.Refused) as caught:
        act(*arguments)
    return caught.value.reason


def test_stranger_encodes_and_refuses_as_the_vectors_say() -> None:
    found = vectors("encoding")
    for case in found["valid"]:
        assert stranger.encode(case["value"]) == bytes.fromhex(case["hex"]), case["name"]
        assert stranger.decode(bytes.fromhex(case["hex"])) == case["value"], case["name"]
    for case in found["invalid"]:
        assert refusal(stranger.decode, bytes.fromhex(case["hex"])) == case["reason"], case["name"]


def test_stranger_signs_and_refuses_envelopes_as_the_vectors_say() -> None:
    found = vectors("envelope")
    network = bytes.fromhex(found["network"])
    assert stranger.network_id(found["network_config"]["name"]) == network
    keys = [SigningKey(bytes.fromhex(seed)) for seed in found["seeds"].values()]
    signers = {bytes(key.verify_key).hex(): key for key in keys}
    for case in found["valid"]:
        if case["type"] not in stranger.CHECKS:
            continue
        made = stranger.seal(case["type"], case["body"], network, signers[case["signer"]])
        assert (made.raw.hex(), made.id.hex()) == (case["envelope"], case["id"]), case["type"]
        assert stranger.unseal(made.raw, network, {case["type"]}) == made
    stranger.unseal(bytes.fromhex(found["valid_with_extension"]), network, {"voucher"})
    for case in found["invalid"]:
        arguments = bytes.fromhex(case["hex"]), network, set(case["allowed"])
        assert refusal(stranger.unseal, *arguments) == case["reason"], case["name"]


def test_stranger_judges_keys_and_signatures_as_the_vectors_say() -> None:
    found = vectors("keys")
    for case in found["peer_ids"]:
        assert stranger.key_of(f"/ip4/127.0.0.1/tcp/1/p2p/{case['text']}").hex() == case["key"]

    def judge(key: bytes, message: bytes, signature: bytes) -> None:
        stranger.check_key(key)
        stranger.check_signature(key, message, signature)

    for case in found["signatures"]:
        arguments = [bytes.fromhex(case[name]) for name in ("key", "message", "signature")]
        if case["reason"] is None:
            judge(*arguments)
        else:
            assert refusal(judge, *arguments) == case["reason"], case["name"]


def test_stranger_reads_frames_tasks_output_and_prices_as_the_vectors_say() -> None:
    found = vectors("frames")
    for case in found["valid"]:
        assert stranger.read_frame(bytes.fromhex(case["hex"])).wire().hex() == case["wire"]
    for case in found["invalid"]:
        frame = bytes.fromhex(case["hex"]) + bytes(case["zeros"])
        assert refusal(stranger.read_frame, frame) == case["reason"], case["name"]
    for case in vectors("task")["valid"]:
        data = stranger.encode(case["input"])
        assert data.hex() == case["hex"]
        assert stranger.digest(stranger.INPUT_HASH, bytes.fromhex(case["salt"]), data).hex() == case["input_hash"]
    found = vectors("output")
    link = stranger.digest(stranger.OUTPUT_CHAIN, bytes.fromhex(found["salt"]))
    for case in found["frames"]:
        assert stranger.encode(case["output"]).hex() == case["data"]
        link = stranger.digest(link, case["sequence"].to_bytes(4), bytes.fromhex(case["data"]))
        assert link.hex() == case["link"]
    for case in vectors("price")["valid"]:
        bounds = case["tokens_in"], case["tokens_out"], case["duration_ms"]
        assert stranger.cost(case["prices"], bounds, case["price_max"]) == case["cost"]


def test_stranger_answers_the_job_of_the_vectors_byte_for_byte() -> None:
    found, seeds = vectors("job"), vectors("envelope")["seeds"]
    network, key = bytes.fromhex(found["network"]), SigningKey(bytes.fromhex(seeds["requester"]))
    job, answers = None, []
    for step in found["steps"]:
        frame = stranger.read_frame(bytes.fromhex(step["wire"])[4:])
        assert frame.wire().hex() == step["wire"]
        if step["from"] == "requester" and frame.kind == stranger.ENVELOPE:
            message = step["message"]
            sealed = stranger.seal(message["type"], message["body"], network, key)
            assert sealed.raw.hex() == message["envelope"]
            if message["type"] == "contract":
                salt = bytes.fromhex(found["salt"])
                job = stranger.Job(sealed, salt, None, lambda kind, body: stranger.seal(kind, body, network, key))
                job.sent_at -= 60
            elif job is not None:
                answers.append(sealed)
        elif step["from"] == "provider" and step["stream"] == "job":
            assert job is not None
            if frame.kind == stranger.OUTPUT:
                job.take_output(frame)
            elif frame.kind == stranger.ENVELOPE:
                job.take(stranger.unseal(frame.data, network, {"accept", "meter", "receipt"}))
    assert job is not None
    assert [*job.vouchers, job.closing] == answers


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("stranger")
    store = write_paced_store(folder / "store")
    running = Network(folder)
    running.up(Plan(folder=folder, nodes=1, providers=1, models_dir=store, base_config=BASE_CONFIG), Interrupts())
    try:
        yield running.nodes[0]
    finally:
        running.down()


def state(node: Node, job: stranger.Job) -> str:
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=20)
    token = Home(Path(node.home)).read_token()
    connection.request("GET", "/api/v1/receipts?limit=1000", None, {"authorization": f"Bearer {token}"})
    found = json.loads(connection.getresponse().read())
    connection.close()
    [state] = [row["state"] for row in found["receipts"] if row["contract_id"] == job.contract.id.hex()]
    return str(state)


@pytest.mark.parametrize("quoted", [True, False], ids=["quote", "advert"])
async def test_stranger_buys_a_job(provider: Node, quoted: bool) -> None:
    async with stranger.dial(provider.addresses[0], NETWORK) as requester:
        job = await requester.buy(
            stranger.key_of(provider.addresses[0]), NAME, PROMPT, tokens_out_max=40, quoted=quoted
        )
    assert len(job.tokens) == 40
    assert job.text
    assert job.closing is not None
    assert job.closing.body["verdict"] == "ok"
    assert job.closing.body["cumulative"] > 0
    assert state(provider, job) == "closed"


CUTS: dict[str, Callable[[stranger.Job], bool]] = {
    "in mid-answer": lambda job: job.frames == 5,
    "with a voucher that never arrived": lambda job: job.meter["number"] == 2,
    "before the closing": lambda job: job.closing is not None,
}


@pytest.mark.parametrize("quoted", [True, False], ids=["quote", "advert"])
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
async def test_stranger_goes_on_with_a_job_whose_stream_was_cut(
    provider: Node, quoted: bool, cut: Callable[[stranger.Job], bool]
) -> None:
    key, cuts = stranger.key_of(provider.addresses[0]), []

    def once(job: stranger.Job) -> bool:
        if cut(job):
            cuts.append(job.frames)
        return bool(cuts)

    async with stranger.dial(provider.addresses[0], NETWORK) as requester:
        whole = await requester.buy(key, NAME, PROMPT, tokens_out_max=120, quoted=quoted)
        job = await requester.buy(key, NAME, PROMPT, tokens_out_max=120, quoted=quoted, cut=once)
    assert len(cuts) == 1
    assert (job.tokens, job.text) == (whole.tokens, whole.text)
    assert state(provider, job) == "closed"
