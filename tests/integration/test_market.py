"""Real daemons on loopback: libp2p, workers, SQLite and the HTTP API, with the real chat model.

One network serves the whole module: nodes 1 and 2 have the model, nodes 3 to 5 buy.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from node.home import Home
from node.testnet.interrupts import Interrupts
from node.testnet.network import Network, Node, Plan
from protocol.evidence import describe_untrusted, verify_bundle_untrusted
from tests.test_metrics import parse

MODEL = "smollm2-135m-instruct"
STORE = Path(sys.prefix) / "share" / "models"
ANSWER_WAIT_S = 240.0
# fp32: an answer that goes on at another provider is then the same to the last letter.
BASE_CONFIG = (
    (Path(__file__).parents[2] / "configs" / "testnet.toml")
    .read_text("utf-8")
    .replace("[worker]\n", '[worker]\ndtype = "fp32"\n')
    .replace("[market]", '[market]\nsettlement = "manual"\nsettle_every_s = 0\n#')
)

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.real_model,
    pytest.mark.skipif(not STORE.is_dir(), reason="scripts/models has not imported the chat model"),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("market")
    running = Network(folder)
    plan = Plan(folder=folder, nodes=5, providers=2, models_dir=STORE, base_config=BASE_CONFIG)
    running.up(plan, Interrupts())
    try:
        yield running
    finally:
        running.down()


def call(node: Node, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    home = Home(Path(node.home))
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=ANSWER_WAIT_S)
    headers = {"authorization": f"Bearer {home.read_token()}", "content-type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def chat(node: Node, prompt: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "temperature": 0, **fields}
    return call(node, "POST", "/v1/chat/completions", body)


def text_of(answer: dict[str, Any]) -> str:
    text = answer["choices"][0]["message"]["content"]
    assert isinstance(text, str)
    return text


def receipts(node: Node) -> dict[str, dict[str, Any]]:
    _status, answer = call(node, "GET", "/api/v1/receipts?limit=1000")
    return {receipt["contract_id"]: receipt for receipt in answer["receipts"]}


def souk(node: Node, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "node.cli", "--home", node.home, *words],
        capture_output=True,
        text=True,
        timeout=ANSWER_WAIT_S,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.mark.parametrize("path", ["fast", "quote"])
def test_requester_gets_the_providers_own_text_when_the_seed_is_the_same(network: Network, path: str) -> None:
    provider, requester = network.nodes[0], network.nodes[2]
    sampling = {"temperature": 0.7, "seed": 11, "max_tokens": 48}
    status, own = chat(provider, "Why is the sky blue?", **sampling, souk={"on": "local"})
    assert status == 200, own
    status, bought = chat(
        requester, "Why is the sky blue?", **sampling, souk={"on": provider.peer_id, "path": path}
    )
    assert status == 200, bought
    assert text_of(bought) == text_of(own)
    assert own["souk"]["contract_id"] is None
    assert bought["souk"]["peer"] == provider.peer_id
    assert bought["souk"]["cost_microcredits"] > 0


def test_fifty_jobs_of_three_requesters_end_with_the_same_receipts_on_both_sides(network: Network) -> None:
    provider, requesters = network.nodes[0], network.nodes[2:]
    before = {contract for node in requesters for contract in receipts(node)}

    def one(number: int) -> tuple[int, dict[str, Any]]:
        node = requesters[number % 3]
        return chat(node, f"Count upwards from {number}.", max_tokens=12, souk={"on": provider.peer_id})

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(one, range(50)))
    assert [status for status, _answer in answers] == [200] * 50, answers
    sold = receipts(provider)
    bought = {contract: row for node in requesters for contract, row in receipts(node).items()}
    new = bought.keys() - before
    assert len(new) == 50
    for contract in new:
        mine, theirs = bought[contract], sold[contract]
        assert (mine["state"], theirs["state"]) == ("closed", "closed")
        for field in ("tokens_in", "tokens_out", "cost_microcredits", "job_id"):
            assert mine[field] == theirs[field], field


def test_both_sides_hold_evidence_that_verifies_without_them(network: Network) -> None:
    provider, requester = network.nodes[0], network.nodes[3]
    _status, answer = chat(requester, "Say hello.", max_tokens=40, souk={"on": provider.peer_id, "path": "quote"})
    contract_id = answer["souk"]["contract_id"]
    proofs = []
    for node in (provider, requester):
        status, found = call(node, "GET", f"/api/v1/receipts/{contract_id}")
        assert status == 200
        bundle = found["bundle"]
        kinds = [describe_untrusted(bytes.fromhex(it["envelope"]))["type"] for it in bundle["messages"]]
        assert kinds[:4] == ["ask", "quote", "contract", "accept"]
        assert kinds[-2:] == ["receipt", "closing"] or kinds[-3:] == ["receipt", "voucher", "closing"]
        proofs.append(verify_bundle_untrusted(json.dumps(bundle).encode()))
    assert proofs[0].receipt == proofs[1].receipt
    assert proofs[0].closing == proofs[1].closing
    assert proofs[0].vouchered == answer["souk"]["cost_microcredits"]


def test_payment_is_settled_by_a_statement_that_both_hold(network: Network, tmp_path: Path) -> None:
    payee, payer = network.nodes[0], network.nodes[3]
    assert chat(payer, "Say hello.", max_tokens=8, souk={"on": payee.peer_id})[0] == 200
    done = souk(payee, "ledger", "settle", payer.peer_id, "3", "-o", "json")
    assert done.returncode == 0, done.stderr
    settled = json.loads(done.stdout)
    assert (settled["number"], settled["settled_by_them_microcredits"]) == (1, 3)
    assert settled["promised_by_them_microcredits"] >= 3
    # The payer may ask as well, and finds nothing new.
    asked = json.loads(souk(payer, "ledger", "settle", payee.peer_id, "-o", "json").stdout)
    assert (asked["statements_new"], asked["settled_by_us_microcredits"]) == (0, 3)
    too_much = souk(payee, "ledger", "settle", payer.peer_id, str(10**15))
    assert too_much.returncode != 0 and "nothing was acknowledged" in too_much.stderr
    for node, other in ((payee, payer), (payer, payee)):
        (path := tmp_path / f"{node.name}.json").write_text(
            souk(node, "ledger", "statements", other.peer_id, "--evidence").stdout
        )
        verified = json.loads(souk(node, "receipts", "verify", str(path), "-o", "json").stdout)
        assert verified["valid"] and (verified["number"], verified["statements"]) == (1, 1)
        assert souk(node, "ledger", "verify").returncode == 0


def test_run_refuses_with_its_exit_code_and_a_reason_when_the_order_cannot_be_filled(network: Network) -> None:
    requester = network.nodes[4]
    unknown = souk(requester, "run", "no-such-model", "hi")
    assert unknown.returncode == 5
    assert MODEL in unknown.stderr
    dear = souk(requester, "run", MODEL, "hi", "--max-price", "1")
    assert dear.returncode == 6
    assert dear.stderr.count("price: ") == 2  # each peer's own line
    before = receipts(requester).keys()
    long = souk(requester, "run", MODEL, "word " * 3000)
    assert long.returncode == 2
    assert "context of 2048" in long.stderr
    offered = [row for contract, row in receipts(requester).items() if contract not in before]
    assert {row["state"] for row in offered} == {"declined"}
    second = souk(requester, "serve")
    assert second.returncode == 9
    assert str(requester.pid) in second.stderr


def test_node_shows_what_it_counted_after_a_job(network: Network) -> None:
    provider, requester = network.nodes[0], network.nodes[2]
    status, answer = chat(requester, "Count me.", max_tokens=8, souk={"on": provider.peer_id})
    assert status == 200, answer
    for node, role in ((provider, "worker"), (requester, "requester")):
        connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=ANSWER_WAIT_S)
        headers = {"authorization": f"Bearer {Home(Path(node.home)).read_token()}"}
        connection.request("GET", "/metrics", headers=headers)
        reply = connection.getresponse()
        assert reply.status == 200
        found = parse(reply.read())
        connection.close()
        assert found["souk_jobs_total", ("", role, "closed")] >= 1
        assert found["souk_tokens_total", ("out", MODEL, role)] >= answer["usage"]["completion_tokens"]
        assert found["souk_ready", ()] == 1
        assert found["souk_event_loop_lag_seconds_count", ()] >= 1
        assert found["souk_inter_token_seconds_count", (MODEL, role)] >= 1
        for direction in ("in", "out"):
            frames = found["souk_p2p_messages_total", (direction, "job")]
            assert found["souk_p2p_bytes_total", (direction, "job")] > frames >= 3
        if role == "worker":
            assert found["souk_model_loaded", ("cpu", MODEL)] == 1
            assert found["souk_model_load_seconds_count", (MODEL,)] == 1
            assert found["souk_queue_seconds_count", (MODEL,)] >= 1
            assert found["souk_kv_cache_usage_ratio", ("cpu", MODEL)] == 0
    assert found["souk_verifications_total", ("receipt", "ok")] >= 1
    assert found["souk_adverts_total", ("accepted",)] >= 1


def test_raw_prompt_gets_the_providers_own_text(network: Network) -> None:
    provider, requester = network.nodes[0], network.nodes[2]
    body = {"model": MODEL, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 8}
    status, bought = call(requester, "POST", "/v1/completions", {**body, "souk": {"on": provider.peer_id}})
    assert status == 200, bought
    status, own = call(provider, "POST", "/v1/completions", {**body, "souk": {"on": "local"}})
    assert status == 200, own
    assert bought["choices"][0]["text"] == own["choices"][0]["text"] != ""
    # No chat template: the tokens of the prompt itself, and no more.
    assert bought["usage"]["prompt_tokens"] == own["usage"]["prompt_tokens"] < 8


def test_node_serves_on_when_strangers_send_garbage(network: Network) -> None:
    provider, requester = network.nodes[0], network.nodes[2]
    port = int(provider.addresses[0].split("/")[4])
    for garbage in (b"\x00" * 4096, os.urandom(4096), b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 65536):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(garbage)
    status, answer = chat(requester, "Still there?", max_tokens=8, souk={"on": provider.peer_id})
    assert status == 200, answer


def test_serve_names_the_address_when_a_port_is_in_use(network: Network, tmp_path: Path) -> None:
    taken = network.nodes[0].url.removeprefix("http://")
    ended = subprocess.run(
        [
            sys.executable, "-m", "node.cli", "--home", str(tmp_path), "serve",
            "--set", f"api.bind={taken}", "--set", "node.role=client", "--set", "p2p.listen=/ip4/127.0.0.1/tcp/0",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )  # fmt: skip
    assert ended.returncode != 0
    assert taken in ended.stderr
    assert "Traceback" not in ended.stderr


def test_requester_takes_the_next_provider_when_one_freezes(network: Network) -> None:
    frozen, alive, requester = network.nodes[1], network.nodes[0], network.nodes[3]
    process = frozen.process()
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    try:
        status, answer = chat(requester, "Hello?", max_tokens=8, souk={"on": frozen.peer_id})
        assert status == 503
        assert answer["souk"]["refusals"][0]["code"] in ("silent", "unreachable")
        status, answer = chat(requester, "Hello?", max_tokens=8)
        assert status == 200, answer
        assert answer["souk"]["peer"] == alive.peer_id
    finally:
        process.send_signal(signal.SIGCONT)


def test_answer_goes_on_at_the_next_token_when_its_provider_is_killed(network: Network) -> None:
    requester = network.nodes[3]
    prompt, sampling = "Tell me a story about a fox.", {"temperature": 0.8, "seed": 5, "max_tokens": 64}
    status, undisturbed = chat(requester, prompt, **sampling)
    assert status == 200, undisturbed
    victims: list[Node] = []

    def kill_provider(phase: dict[str, Any], words: int) -> None:
        if phase and not victims and words == 10:
            victims.extend(node for node in network.nodes if node.peer_id == phase["peer"])
            os.kill(victims[0].pid, signal.SIGKILL)

    text, phases, souk_block = stream_chat(requester, prompt, kill_provider, **sampling)
    assert len(victims) == 1
    assert [phase["phase"] for phase in phases if phase["phase"] == "contracted"] == ["contracted"] * 2
    assert text == text_of(undisturbed)
    assert souk_block["peer"] != victims[0].peer_id
    assert souk_block["cost_microcredits"] > 0


def stream_chat(
    node: Node, prompt: str, watch: Callable[[dict[str, Any], int], None], **fields: Any
) -> tuple[str, list[dict[str, Any]], dict[str, Any]]:
    """Return (text, phases, souk block); after each piece ``watch`` sees the last contract and their number."""
    home = Home(Path(node.home))
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=ANSWER_WAIT_S)
    body = {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True, **fields}
    headers = {"authorization": f"Bearer {home.read_token()}", "content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    pieces: list[str] = []
    phases: list[dict[str, Any]] = []
    block: dict[str, Any] = {}
    while line := answer.readline().decode():
        if line.startswith(": souk "):
            phases.append(json.loads(line.removeprefix(": souk ")))
        elif line.startswith("data: {"):
            chunk = json.loads(line.removeprefix("data: "))
            assert "error" not in chunk, chunk
            block = chunk.get("souk", block)
            pieces += [choice["delta"].get("content", "") for choice in chunk["choices"]]
            contracts = [phase for phase in phases if phase["phase"] == "contracted"]
            watch(contracts[-1] if contracts else {}, len(pieces))
    connection.close()
    return "".join(pieces), phases, block


def test_node_started_after_the_others_finds_the_model(network: Network, tmp_path: Path) -> None:
    late = tmp_path / "late"
    process = subprocess.Popen(
        [
            sys.executable, "-m", "node.cli", "--home", str(late), "serve", "--no-worker",
            "--set", "api.bind=127.0.0.1:0", "--set", "p2p.listen=/ip4/127.0.0.1/tcp/0",
            "--set", "p2p.network=testnet", "--bootstrap", network.nodes[4].addresses[0],
        ],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("ready"):
                break
        info = Home(late).read_api()
        assert info is not None
        newcomer = Node(name="late", role="client", home=str(late), pid=process.pid, started_at=0.0, url=info.url)
        # Its only bootstrap peer serves nothing itself: what it has heard of others has to come across.
        status, answer = chat(newcomer, "Hello?", max_tokens=8)
        assert status == 200, answer
    finally:
        process.terminate()
        assert process.wait(timeout=20) == 0
