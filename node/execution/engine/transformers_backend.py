"""Any decoder that the engine does not compute itself, through ``transformers``: slower, and served.

The library is an optional extra and imported here only, in a worker. It reads safetensors and JSON of one folder:
never code from a model, never the network, and no weights that the files do not have. Each sequence has its own
cache and its own forward pass in every step, so that no batch, padding or mask can change a text; tokens are
chosen by ``sampling.choose`` as everywhere.
"""

import json
import os
from collections import deque
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from node.errors import ModelError
from node.execution.engine.engine import Chosen, finish_of
from node.execution.engine.fingerprint import marks
from node.execution.engine.sampling import choose
from node.execution.engine.scheduler import Sequence
from node.execution.shape import DecoderShape

INSTALL: Final = "pip install 'souk[transformers]'"
_PROBE: Final = (1, 2, 3, 1, 2)
_PROBE_ERROR_MAX: Final = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


class TransformersModel:
    """A loaded model of any architecture."""

    def __init__(
        self,
        model: Any,  # Any: the library is not there when types are checked
        shape: DecoderShape,
        *,
        device: torch.device,
        dtype: torch.dtype,
        kernels: str = "transformers",
    ) -> None:
        self._model, self.kernels = model, kernels
        self.shape, self.device, self.dtype = shape, device, dtype

    def read(self, tokens: list[int], cache: object) -> tuple[Tensor, Tensor, object]:
        """Return hidden states (n, D), logits (n, V) float32 and the cache, after ``cache`` or from the start."""
        with torch.inference_mode():
            out = self._model(
                torch.tensor([tokens], device=self.device),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=True,
            )
        return out.hidden_states[-1][0], out.logits[0].float(), out.past_key_values


class TransformersReader:
    """See ``score.Reader``."""

    def __init__(self, model: TransformersModel) -> None:
        self._model = model
        self._cache: object = None
        self._logits = torch.empty(0)

    def read(self, tokens: list[int]) -> Tensor:
        hidden, self._logits, self._cache = self._model.read(tokens, self._cache)
        return hidden

    def logits(self, first: int, last: int) -> Tensor:
        return self._logits[first:last]


class TransformersEngine:
    """Runs the sequences of one model, one after the other in every step."""

    def __init__(self, model: TransformersModel, *, slots: int, context_tokens: int, prefill_tokens: int) -> None:
        self._model, self._slots, self._prefill_tokens = model, slots, prefill_tokens
        self._context_tokens = context_tokens
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._caches: dict[int, object] = {}

    @property
    def idle(self) -> bool:
        return not self._waiting and not self._running

    @property
    def context_tokens(self) -> int:
        """Prompt and answer together, of each sequence."""
        return self._context_tokens

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; the caller has checked that its whole answer fits the context."""
        assert sequence.tokens and sequence.tokens_out_max > 0
        assert len(sequence.tokens) + sequence.tokens_out_max <= self._context_tokens
        self._waiting.append(sequence)

    def cancel(self, request: int) -> None:
        """Forget ``request`` and its cache; does nothing when it is unknown."""
        self._waiting = deque(sequence for sequence in self._waiting if sequence.request != request)
        self._running = [sequence for sequence in self._running if sequence.request != request]
        self._caches.pop(request, None)

    def step(self) -> list[Chosen]:
        """Give every running answer a token and read on in prompts, within the budget of a step."""
        while self._waiting and len(self._running) < self._slots:
            self._running.append(self._waiting.popleft())
        budget = max(1, self._prefill_tokens - sum(not it.prefilling for it in self._running))
        answering, rows, states = [], [], []
        for sequence in self._running:
            count = min(budget, sequence.prompt_tokens - sequence.cached) if sequence.prefilling else 1
            if count == 0:
                continue
            budget -= count if sequence.prefilling else 0
            state, row = self._read(sequence, count)
            if not sequence.prefilling:
                answering.append(sequence)
                rows.append(row)
                states.append(state)
        return self._choose(answering, rows, states)

    def _read(self, sequence: Sequence, count: int) -> tuple[Tensor, Tensor]:
        """Return the last token's hidden states and logits."""
        tokens = sequence.tokens[sequence.cached : sequence.cached + count]
        cache = self._caches.get(sequence.request)
        hidden, logits, self._caches[sequence.request] = self._model.read(tokens, cache)
        sequence.cached += count
        return hidden[-1], logits[-1]

    def _choose(self, answering: list[Sequence], rows: list[Tensor], states: list[Tensor]) -> list[Chosen]:
        if not answering:
            return []
        tokens = choose(torch.stack(rows), [it.sampling for it in answering], [it.position for it in answering])
        chosen = []
        for sequence, token, mark in zip(answering, tokens, marks(torch.stack(states)), strict=True):
            sequence.tokens.append(token)
            finish = finish_of(sequence, token)
            chosen.append(Chosen(sequence.request, token, finish, mark))
            if finish:
                self.cancel(sequence.request)
        return chosen


def load_transformers(
    folder: Path, shape: DecoderShape, *, device: torch.device, dtype: torch.dtype
) -> TransformersModel:
    """Load any decoder of ``folder``, and try that it goes on from its cache as it reads at once.

    Raises:
        ModelError: the extra is not installed, or the library has no such decoder, or misses weights.
    """
    # Before the import, which reads them. Everything is asked for locally anyway.
    os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
    try:
        import transformers  # type: ignore[import-not-found, unused-ignore]  # an extra
    except ImportError as exc:
        raise ModelError(f"{shape.refused}; other decoders need an extra: {INSTALL}") from exc
    if "quantization_config" in json.loads((folder / "config.json").read_bytes()):
        raise ModelError("config.json: expected no quantization_config: its loaders are other packages' code")
    try:
        model, info = _from_folder(transformers.AutoModelForCausalLM, folder, dtype)
    except Exception as exc:  # every architecture fails in its own way; the worker lives, the model is left out
        raise ModelError(f"transformers {transformers.__version__} cannot load it: {exc}") from exc
    if missing := sorted(info["missing_keys"]) + sorted(str(key) for key in info["mismatched_keys"]):
        raise ModelError(f"expected every weight of a {shape.family}, got no {', '.join(missing[:3])}")
    kernels = f"transformers {transformers.__version__}"
    loaded = TransformersModel(model.to(device).eval(), shape, device=device, dtype=dtype, kernels=kernels)
    _probe(loaded)
    return loaded


def _from_folder(kind: Any, folder: Path, dtype: torch.dtype) -> tuple[Any, dict[str, Any]]:  # Any: as above
    def load(attention: str) -> tuple[Any, dict[str, Any]]:
        found: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            str(folder),
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        return found

    try:
        return load("sdpa")
    except ValueError:
        # Some architectures have no fused attention; anything else that is wrong shows again.
        return load("eager")


def _probe(model: TransformersModel) -> None:
    tokens = [token % model.shape.vocabulary for token in _PROBE]
    try:
        _, whole, _ = model.read(tokens, None)
        _, first, cache = model.read(tokens[:2], None)
        _, second, cache = model.read(tokens[2:3], cache)
        _, rest, cache = model.read(tokens[3:], cache)
    except Exception as exc:  # as for loading
        raise ModelError(f"a {model.shape.family} cannot be run as a decoder: {exc}") from exc
    error = float((torch.cat([first, second, rest]) - whole).abs().max())
    if cache is None or not error <= _PROBE_ERROR_MAX[model.dtype] * max(1.0, float(whole.abs().max())):
        raise ModelError(
            f"expected a {model.shape.family} to go on from its cache as it reads at once, its logits are "
            f"{error} apart"
        )
