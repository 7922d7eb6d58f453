"""The engine over a scripted decoder, the loader where the library is missing, and the library where it is."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from node.errors import ModelError
from node.execution.engine.backend import load_backend
from node.execution.engine.scheduler import Sequence
from node.execution.engine.score import Scores, ScoreTask
from node.execution.engine.transformers_backend import (
    TransformersEngine,
    TransformersModel,
    TransformersReader,
    load_transformers,
)
from node.execution.frames import Load
from node.execution.shape import read_decoder_shape
from protocol.task import Sampling
from tests.execution.tiny_families import PROMPT, write_family

CPU = torch.device("cpu")
VOCABULARY = 64
HAS_LIBRARY = importlib.util.find_spec("transformers") is not None


class ScriptedDecoder:
    """Looks like a model of the library; what comes next depends on every token so far."""

    def __init__(self) -> None:
        self.passes: list[int] = []

    def __call__(self, tokens: Tensor, *, past_key_values: object, **_: object) -> object:
        before = past_key_values if isinstance(past_key_values, tuple) else ()
        new = tokens[0].tolist()
        self.passes.append(len(new))
        rows = []
        for end in range(1, len(new) + 1):
            noise = torch.Generator().manual_seed(hash((*before, *new[:end])) % (1 << 31))
            rows.append(torch.randn(VOCABULARY, generator=noise))
        logits = torch.stack(rows)
        return SimpleNamespace(logits=logits[None], hidden_states=[logits[None]], past_key_values=(*before, *new))


def model(decoder: ScriptedDecoder, folder: Path) -> TransformersModel:
    write_family(folder, "llama")
    return TransformersModel(decoder, read_decoder_shape(folder), device=CPU, dtype=torch.float32)


def sequence(request: int, prompt: list[int], *, sampling: Sampling, out: int = 12) -> Sequence:
    return Sequence(
        request=request,
        tokens=list(prompt),
        prompt_tokens=len(prompt),
        tokens_out_max=out,
        sampling=sampling,
        stop_tokens=frozenset(),
    )


def jobs() -> list[Sequence]:
    return [
        sequence(
            number,
            [(7 * number + step) % VOCABULARY for step in range(1 + 4 * number)],
            sampling=Sampling(temperature_milli=900 * (number % 2), top_p_milli=950, seed=number),
        )
        for number in range(5)
    ]


def engine(decoder: ScriptedDecoder, folder: Path, *, prefill_tokens: int = 6) -> TransformersEngine:
    return TransformersEngine(model(decoder, folder), slots=3, context_tokens=64, prefill_tokens=prefill_tokens)


def answers(running: TransformersEngine, wanted: list[Sequence]) -> list[list[int]]:
    for job in wanted:
        running.add(job)
    while not running.idle:
        running.step()
    return [job.tokens[job.prompt_tokens :] for job in wanted]


def test_answers_are_the_same_alone_and_together_with_chunked_prompts(tmp_path: Path) -> None:
    together = answers(engine(ScriptedDecoder(), tmp_path), jobs())
    alone = [answers(engine(ScriptedDecoder(), tmp_path, prefill_tokens=64), [job])[0] for job in jobs()]
    assert together == alone
    assert all(len(answer) == 12 for answer in alone)


def test_step_reads_no_more_of_prompts_than_its_budget(tmp_path: Path) -> None:
    decoder = ScriptedDecoder()
    running = engine(decoder, tmp_path)
    running.add(sequence(1, list(range(20)), sampling=Sampling()))
    running.add(sequence(2, [1], sampling=Sampling()))
    assert [running.step() for _ in range(3)] == [[], [], []]
    assert decoder.passes == [6, 6, 6]
    assert [chosen.request for chosen in running.step()] == [1, 2]
    assert decoder.passes[3:] == [2, 1]


def test_cancelling_gives_the_slot_to_the_next(tmp_path: Path) -> None:
    running = engine(ScriptedDecoder(), tmp_path)
    for number in range(4):
        running.add(sequence(number, [number], sampling=Sampling()))
    assert [chosen.request for chosen in running.step()] == [0, 1, 2]
    running.cancel(1)
    running.cancel(9)
    assert [chosen.request for chosen in running.step()] == [0, 2, 3]


def test_answer_is_scored_through_the_same_reader(tmp_path: Path) -> None:
    decoder = ScriptedDecoder()
    sampling = Sampling(temperature_milli=800, seed=4)
    job = sequence(1, [5, 6, 7], sampling=sampling, out=40)
    (answer,) = answers(engine(decoder, tmp_path), [job])
    loaded = model(decoder, tmp_path)
    scores = Scores(new_reader=lambda _: TransformersReader(loaded), tokens_alone=7, tokens_beside=7)
    scores.waiting.append(ScoreTask(request=1, prompt=[5, 6, 7], answer=answer, sampling=sampling))
    while (verdict := scores.step(alone=True)) is None:
        pass
    assert max(verdict.margins) == 0


def test_operator_is_told_what_to_install_when_the_extra_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=r"got 'gpt2'; other decoders need an extra: pip install"):
        load_backend(load(write_gpt2_config(tmp_path)), CPU)


def test_quantised_model_is_refused_before_its_loader_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", SimpleNamespace())
    write_gpt2_config(tmp_path, quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="quantization_config"):
        load_transformers(tmp_path, read_decoder_shape(tmp_path), device=CPU, dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBRARY, reason="the extra is not installed: pip install 'souk[transformers]'")
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_decoders_of_the_library_answer_as_its_own_generate_does(tmp_path: Path, family: str) -> None:
    transformers = importlib.import_module("transformers")
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if family == "gemma2":
        settings |= {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(family, **settings)
    reference = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    reference.save_pretrained(tmp_path)
    whole = reference.generate(
        torch.tensor([PROMPT]), max_new_tokens=12, do_sample=False, attention_mask=torch.ones(1, len(PROMPT))
    )
    expected = whole[0, len(PROMPT) :].tolist()
    backend = load_backend(load(tmp_path), CPU)
    assert isinstance(backend.engine, TransformersEngine)
    assert answers(backend.engine, [sequence(1, list(PROMPT), sampling=Sampling())]) == [expected]


def load(folder: Path) -> Load:
    return Load(
        request=1,
        model=b"m" * 32,
        folder=str(folder),
        dtype="fp32",
        slots=2,
        context_tokens=64,
        prefill_tokens=8,
        inter_token_ms=200,
    )


def write_gpt2_config(folder: Path, **more: object) -> Path:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2", **sizes, **more}))
    return folder
