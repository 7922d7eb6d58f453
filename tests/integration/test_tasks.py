"""Jobs that make no text, with real models: through a worker, and over contracts between real daemons."""

import base64
import http.client
import json
import math
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from node.config import WorkerSection
from node.execution.interface import Piece
from node.execution.pool import WorkerPool
from node.home import Home
from node.models.import_demo import CLASSIFY_MODEL, EMBED_MODEL, VAD_MODEL
from node.models.store import ModelStore
from node.testnet.interrupts import Interrupts
from node.testnet.network import Network, Node, Plan
from protocol.task import Sampling
from protocol.tasks.classify import ClassifyInput, ClassifyOutput, Image
from protocol.tasks.embed import EmbedInput, EmbedOutput, unpack_vector
from protocol.tasks.forward import ForwardInput, ForwardOutput
from protocol.tasks.registry import ItemInput, TaskOutput, compare
from protocol.tasks.vad import VadInput, VadOutput
from protocol.tensors import read_tensors, values_of
from scripts.spec.items import tensor_file

STORE = Path(sys.prefix) / "share" / "task-models"
ANSWER_WAIT_S = 120.0
TEXTS = ("A man is eating food.", "A man eats something.", "The stock market fell sharply today.")
BASE_CONFIG = (Path(__file__).parents[2] / "configs" / "testnet.toml").read_text("utf-8")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.real_model,
    pytest.mark.skipif(not STORE.is_dir(), reason="scripts/models has not imported the models of the tasks"),
]


def voice(seconds: float) -> list[float]:
    """Return something like a vowel: harmonics of 120 Hz under three formants, swelling four times a second."""
    formants = ((700, 130, 1.0), (1200, 150, 0.6), (2600, 250, 0.3))
    waves = []
    for tone in range(1, 30):
        gain = sum(share * math.exp(-(((tone * 120 - at) / width) ** 2)) for at, width, share in formants)
        waves.append((math.tau * 120 * tone / 16_000, gain))
    made = [sum(gain * math.sin(step * n) for step, gain in waves) for n in range(round(seconds * 16_000))]
    loudest = max(map(abs, made))
    return [0.4 * value / loudest * (0.6 + 0.4 * math.sin(math.tau * n / 4000)) for n, value in enumerate(made)]


def picture(step: int) -> Image:
    """Return a pattern; what the network sees in it was compared with the authors' own code, by hand."""
    width, height = 240, 200
    rows, columns = ([math.cos(y / (9 + 2 * step)) for y in range(height)], range(width))
    waves = [[math.sin(x / (5 + 3 * step) + colour) for colour in range(3)] for x in columns]
    rgb = bytes(round(127 + 100 * wave * row) for row in rows for pixel in waves for wave in pixel)
    return Image(width=width, height=height, rgb=rgb)


def cosine(left: tuple[float, ...], right: tuple[float, ...]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


async def compute(pool: WorkerPool, name: str, task_input: ItemInput) -> list[TaskOutput]:
    sink, pieces = trio.open_memory_channel[Piece](math.inf)
    (model,) = [model for model in pool.models() if model.name == name]
    prompt = await pool.prepare(name, model.model_id, task_input, task_input.units_out)
    with sink:
        await pool.generate(prompt, Sampling(), tokens_out_max=task_input.units_out, sink=sink)
    outputs = [piece.output async for piece in pieces]
    assert [output.finish for output in outputs] == [None] * (len(outputs) - 1) + ["stop"]
    assert sum(output.units for output in outputs) <= task_input.units_out
    return outputs


async def test_worker_computes_each_task_with_its_real_model(figure: Callable[[str, str], None]) -> None:
    audio = [*[0.0] * 16_000, *voice(1.0), *[0.0] * 8_000]
    sound = VadInput(samples=struct.pack(f"<{len(audio)}h", *(round(value * 32_767) for value in audio)))
    state = ("F32", (1, 128), bytes(512))
    silence = tensor_file(("audio", "F32", (1, 576), bytes(2304)), ("h", *state), ("c", *state))
    pool = WorkerPool(WorkerSection(devices="cpu"), ModelStore(STORE), ("*",))
    with trio.fail_after(ANSWER_WAIT_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            vectors = await compute(pool, EMBED_MODEL, EmbedInput(texts=TEXTS))
            alone = await compute(pool, EMBED_MODEL, EmbedInput(texts=TEXTS[:1]))
            windows = await compute(pool, VAD_MODEL, sound)
            answer = await compute(pool, VAD_MODEL, ForwardInput(tensors=silence, output_bytes_max=4096))
            again = await compute(pool, VAD_MODEL, ForwardInput(tensors=silence, output_bytes_max=4096))
            images = await compute(pool, CLASSIFY_MODEL, ClassifyInput(images=(picture(0), picture(3)), top=3))
            lone = await compute(pool, CLASSIFY_MODEL, ClassifyInput(images=(picture(3),), top=64))
            nursery.cancel_scope.cancel()
    # Space bar and tie, says ImageNet.
    assert [it.classes[0].index for it in images if isinstance(it, ClassifyOutput)] == [810, 906]
    likeness = compare(images[1:], lone)
    assert likeness.holds
    first, near, far = (unpack_vector(it.vector) for it in vectors if isinstance(it, EmbedOutput))
    # The model's own page says what this sentence's vector begins with elsewhere; here, meaning orders them.
    assert cosine(first, near) > 0.8 and cosine(first, far) < 0.1
    judged = compare(alone, vectors[:1])
    assert judged.holds
    chances = [milli for it in windows if isinstance(it, VadOutput) for milli in it.speech_milli]
    assert len(chances) == sound.units_out
    assert max(chances[:31]) < 100 and sum(milli > 500 for milli in chances[32:62]) > 15
    data = b"".join(it.data for it in answer if isinstance(it, ForwardOutput))
    tensors = read_tensors(data)
    assert set(tensors) == {"speech", "h", "c"} and values_of(data, tensors["speech"])[0] < 0.1
    assert compare(answer, again).holds
    figure("tasks: an image alone and in a batch", f"{likeness.worst * 1e6:.0f} ppm apart")
    figure("tasks: a text alone and in a batch", f"cosine {judged.worst:.7f}")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    folder = tmp_path_factory.mktemp("tasks")
    running = Network(folder)
    plan = Plan(folder=folder, nodes=3, providers=2, models_dir=STORE, base_config=BASE_CONFIG)
    running.up(plan, Interrupts())
    try:
        yield running
    finally:
        running.down()


def call(node: Node, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(node.url.removeprefix("http://"), timeout=ANSWER_WAIT_S)
    token = Home(Path(node.home)).read_token()
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    found = json.loads(answer.read())
    connection.close()
    return answer.status, found


def test_texts_become_vectors_over_a_contract_between_daemons(network: Network) -> None:
    buyer = network.nodes[-1]
    # More texts than a voucher window has tokens: paid in several steps.
    texts = [*TEXTS, *(f"{number} sheep" for number in range(37))]
    status, answer = call(buyer, "POST", "/v1/embeddings", {"model": EMBED_MODEL, "input": texts})
    assert status == 200, answer
    vectors = [tuple(entry["embedding"]) for entry in answer["data"]]
    assert [entry["index"] for entry in answer["data"]] == list(range(len(texts)))
    assert cosine(vectors[0], vectors[1]) > 0.8 and cosine(vectors[0], vectors[2]) < 0.1
    assert answer["usage"]["total_tokens"] > len(texts) and answer["souk"]["cost_microcredits"] > 0
    _, receipts = call(buyer, "GET", "/api/v1/receipts?limit=10")
    mine = [it for it in receipts["receipts"] if it["contract_id"] == answer["souk"]["contract_id"]]
    assert len(mine) == 1

    body = {"model": EMBED_MODEL, "input": TEXTS[0], "encoding_format": "base64"}
    status, answer = call(buyer, "POST", "/v1/embeddings", body)
    assert status == 200
    packed = unpack_vector(base64.b64decode(answer["data"][0]["embedding"]))
    assert cosine(packed, vectors[0]) > 0.9999


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def bought(network: Network, task: str, body: dict[str, Any]) -> dict[str, Any]:
    """Return what the node without a model gets for its order, once its receipt lies in the books."""
    buyer = network.nodes[-1]
    status, answer = call(buyer, "POST", f"/api/v1/tasks/{task}", body)
    assert status == 200, answer
    _, receipts = call(buyer, "GET", "/api/v1/receipts?limit=10")
    mine = [it for it in receipts["receipts"] if it["contract_id"] == answer["souk"]["contract_id"]]
    assert len(mine) == 1 and answer["souk"]["cost_microcredits"] > 0
    return answer


def test_buyer_sees_what_each_model_does(network: Network) -> None:
    _, found = call(network.nodes[-1], "GET", "/api/v1/models")
    tasks = {model["name"]: model["tasks"] for model in found["models"]}
    assert tasks == {EMBED_MODEL: ["embed"], CLASSIFY_MODEL: ["classify"], VAD_MODEL: ["vad"]}


def test_images_get_names_over_a_contract_between_daemons(network: Network) -> None:
    images = [
        {"width": it.width, "height": it.height, "rgb": base64_of(it.rgb)} for it in (picture(0), picture(3))
    ]
    answer = bought(network, "classify", {"model": CLASSIFY_MODEL, "images": images, "top": 2})
    best = [it["classes"][0] for it in answer["images"]]
    assert [(it["index"], it["label"]) for it in best] == [(810, "space bar"), (906, "Windsor tie")]
    assert answer["usage"] == {"units_in": 2 * 188, "units_out": 2}


def test_speech_is_found_over_a_contract_between_daemons(network: Network) -> None:
    audio = [*[0.0] * 16_000, *voice(1.0), *[0.0] * 8_000]
    samples = struct.pack(f"<{len(audio)}h", *(round(value * 32_767) for value in audio))
    answer = bought(network, "vad", {"model": VAD_MODEL, "samples": base64_of(samples), "silence_ms_min": 500})
    (segment,) = answer["segments"]
    assert 900 <= segment["start_ms"] <= 1300 and 1500 <= segment["end_ms"] <= 2300
    assert answer["duration_ms"] == 2500 and len(answer["speech_milli"]) == answer["usage"]["units_out"]


def test_tensors_run_through_a_model_over_a_contract_between_daemons(network: Network) -> None:
    state = ("F32", (1, 128), bytes(512))
    silence = tensor_file(("audio", "F32", (1, 576), bytes(2304)), ("h", *state), ("c", *state))
    answer = bought(network, "forward", {"model": VAD_MODEL, "tensors": base64_of(silence)})
    data = base64.b64decode(answer["tensors"])
    tensors = read_tensors(data)
    assert set(tensors) == {"speech", "h", "c"} and values_of(data, tensors["speech"])[0] < 0.1


def test_buyer_is_told_when_the_model_does_another_task_or_the_text_is_too_long(network: Network) -> None:
    buyer = network.nodes[-1]
    status, answer = call(buyer, "POST", "/v1/embeddings", {"model": VAD_MODEL, "input": "a"})
    assert (status, answer["error"]["code"]) == (400, "task_not_served")
    status, answer = call(buyer, "POST", "/v1/embeddings", {"model": EMBED_MODEL, "input": "word " * 300})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
