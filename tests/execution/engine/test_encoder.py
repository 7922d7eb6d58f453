import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional

from node.errors import JobRefusedError, ModelError
from node.execution.engine.encoder import Encoder, load_encoder
from protocol.task import pack_tokens
from protocol.tasks.embed import EmbedInput, EmbedOutput, unpack_vector

HIDDEN, WIDE, HEADS, LAYERS, WORDS, POSITIONS = 16, 32, 4, 2, 20, 12
CONFIG = {
    "model_type": "bert",
    "num_hidden_layers": LAYERS,
    "hidden_size": HIDDEN,
    "num_attention_heads": HEADS,
    "vocab_size": WORDS,
    "max_position_embeddings": POSITIONS,
    "layer_norm_eps": 1e-12,
    "pooling": "mean",
    "tokens_max": 8,
}


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    shapes = {
        "embeddings.word_embeddings.weight": (WORDS, HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    pairs = {"embeddings.LayerNorm": (HIDDEN,)}
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            pairs[f"{prefix}attention.self.{name}"] = (HIDDEN, HIDDEN)
        pairs |= {
            f"{prefix}attention.output.dense": (HIDDEN, HIDDEN),
            f"{prefix}attention.output.LayerNorm": (HIDDEN,),
            f"{prefix}intermediate.dense": (WIDE, HIDDEN),
            f"{prefix}output.dense": (HIDDEN, WIDE),
            f"{prefix}output.LayerNorm": (HIDDEN,),
        }
    for name, shape in pairs.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(weights(), str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tokenizer = Tokenizer(models.WordLevel({f"w{n}": n for n in range(WORDS)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def encoder(folder: Path) -> Encoder:
    return load_encoder(folder, torch.device("cpu"))


def reference(tokens: list[int]) -> torch.Tensor:
    """Return the hidden states of one text, written out anew from the paper."""
    w = weights()

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return (
            centred / centred.pow(2).mean(-1, keepdim=True).add(1e-12).sqrt() * w[f"{name}.weight"]
            + w[f"{name}.bias"]
        )

    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.token_type_embeddings.weight"][0]
    x = norm(x + w["embeddings.position_embeddings.weight"][: len(tokens)], "embeddings.LayerNorm")
    for layer in range(LAYERS):
        prefix, size = f"encoder.layer.{layer}.", HIDDEN // HEADS
        parts = [linear(x, f"{prefix}attention.self.{name}") for name in ("query", "key", "value")]
        heads = []
        for head in range(HEADS):
            query, key, value = (part[:, head * size : (head + 1) * size] for part in parts)
            heads.append((query @ key.T / size**0.5).softmax(-1) @ value)
        attended = linear(torch.cat(heads, -1), f"{prefix}attention.output.dense")
        x = norm(x + attended, f"{prefix}attention.output.LayerNorm")
        wide = functional.gelu(linear(x, f"{prefix}intermediate.dense"))
        x = norm(x + linear(wide, f"{prefix}output.dense"), f"{prefix}output.LayerNorm")
    return x


def test_vectors_are_the_mean_of_the_reference_whatever_lies_beside_them(encoder: Encoder) -> None:
    units, items = encoder.items(EmbedInput(texts=("w1 w2 w3", "w4", "w5 w6 w7 w8 w9")))
    assert units == 9
    for item, output in zip(items, encoder.compute(items), strict=True):
        assert isinstance(output, EmbedOutput)
        expected = functional.normalize(reference(item.tokens).mean(0), dim=0)  # type: ignore[attr-defined]
        assert torch.allclose(torch.tensor(unpack_vector(output.vector)), expected, atol=1e-5)


def test_token_ids_give_what_their_text_gives(encoder: Encoder) -> None:
    _, texts = encoder.items(EmbedInput(texts=("w1 w2",)))
    _, ids = encoder.items(EmbedInput(tokens=(pack_tokens((1, 2)),)))
    assert encoder.compute(texts) == encoder.compute(ids)


def test_hidden_states_are_the_reference_up_to_the_mask(encoder: Encoder) -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    given = {"input_ids": ids, "attention_mask": mask}
    assert encoder.check(given) == {"hidden": (2, 3, HIDDEN)}
    hidden = encoder.forward(given)["hidden"]
    assert torch.allclose(hidden[0], reference([1, 2, 3]), atol=1e-4)
    assert torch.allclose(hidden[1, :2], reference([4, 5]), atol=1e-4) and not hidden[1, 2].any()


@pytest.mark.parametrize(
    ("task_input", "code"),
    [
        (EmbedInput(texts=(" ".join(["w1"] * 9),)), "context_exceeded"),
        (EmbedInput(texts=("x" * 801,)), "context_exceeded"),
        (EmbedInput(tokens=(pack_tokens([1] * 9),)), "context_exceeded"),
        (EmbedInput(tokens=(pack_tokens([WORDS]),)), "input"),
        (EmbedInput(texts=(" ",)), "input"),
    ],
    ids=["tokens of a text", "bytes", "token ids", "unknown id", "nothing"],
)
def test_text_is_refused_and_never_cut(encoder: Encoder, task_input: EmbedInput, code: str) -> None:
    with pytest.raises(JobRefusedError) as refused:
        encoder.items(task_input)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("ids", "mask"),
    [
        ([[1, 2]], [[0, 1]]),
        ([[1, 2]], [[1, 2]]),
        ([[1, 2]], [[0, 0]]),
        ([[1, WORDS]], [[1, 1]]),
        ([[-1, 2]], [[1, 1]]),
        ([[1] * 13], [[1] * 13]),
        ([[1, 2]], [[1, 1], [1, 1]]),
        ([[1.0]], [[1]]),
        ([1], [1]),
    ],
)
def test_tensors_are_refused_when_they_are_not_of_the_architecture(
    encoder: Encoder, ids: list[object], mask: list[object]
) -> None:
    with pytest.raises(JobRefusedError):
        encoder.check({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})


@pytest.mark.parametrize("change", [{"hidden_act": "relu"}, {"pooling": "max"}])
def test_model_is_refused_when_it_is_of_another_kind(folder: Path, change: dict[str, str]) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | change))
    with pytest.raises(ModelError):
        load_encoder(folder, torch.device("cpu"))
