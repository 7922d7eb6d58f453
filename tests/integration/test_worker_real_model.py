"""The demo's chat model, as ``scripts/models`` puts it into the store: conversion and a known answer."""

import os
import sys
from pathlib import Path

import pytest
import trio

from node.config import WorkerSection
from node.execution.interface import Piece
from node.execution.pool import WorkerPool
from node.home import Home
from node.models.import_demo import DEMO_MODEL
from node.models.store import ModelStore
from protocol.profile import read_profile
from protocol.task import ChatMessage, GenerateInput, Sampling

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.real_model]

# sha256 of what the conversion gives on every machine.
CONVERTED = {
    "model.safetensors": "d8d8571b3af99053c8ad455ce009d8479eec5da515f80a417c075d0a7f317904",
    "tokenizer.json": "7d27c493c729a66ecefc837280b05d948b1ed50d130eebdbf911b1b36cf38ed7",
}


@pytest.fixture(scope="session")
def store() -> ModelStore:
    root = Path(os.environ.get("SOUK_VENV", sys.prefix)) / "share" / "models"
    if not root.is_dir():
        pytest.skip("no chat model: run scripts/models")
    return ModelStore(root)


def test_conversion_gives_the_known_bytes(store: ModelStore) -> None:
    model = store.find(DEMO_MODEL)
    hashes = {file.name: file.sha256.hex() for file in model.manifest.files}
    assert {name: hashes[name] for name in CONVERTED} == CONVERTED
    store.verify(model)


@pytest.mark.parametrize(
    ("dtype", "kernels"),
    [("fp32", "sdpa"), ("bf16", "sdpa"), ("bf16", "compiled")],
    ids=["fp32", "bf16", "compiled"],
)
async def test_chat_model_knows_the_capital_of_france(
    store: ModelStore, dtype: str, kernels: str, tmp_path: Path
) -> None:
    config = WorkerSection(devices="cpu", dtype=dtype, compiled_decode=kernels == "compiled")
    pool = WorkerPool(config, store, (DEMO_MODEL,), home=Home(tmp_path))
    question = GenerateInput(messages=(ChatMessage(role="user", content="Which city is the capital of France?"),))
    sink, pieces = trio.open_memory_channel[Piece](33)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            profiles = [read_profile(model.profile) for model in pool.models()]
            assert [profile and profile.kernels for profile in profiles] == [kernels]
            prompt = await pool.prepare("k", store.find(DEMO_MODEL).model_id, question, 32)
            await pool.generate(prompt, Sampling(), tokens_out_max=32, sink=sink)
            nursery.cancel_scope.cancel()
    sink.close()
    got = [piece async for piece in pieces]
    assert "Paris" in "".join(piece.text for piece in got)
    # The end of the turn ends the answer, and is not part of its text.
    assert got[-1].finish == "stop"
