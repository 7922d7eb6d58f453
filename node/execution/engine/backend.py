"""What every backend gives a worker: a model's sizes, an engine that chooses tokens, and a reader that re-checks.

``load_backend`` picks one by the configuration: the engine's own decoder for the families it knows,
``transformers`` for the rest, and vLLM's server for all where the operator has one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import torch

from node.execution.engine.compiled_decode import CompiledDecode
from node.execution.engine.cuda_graphs import CudaGraphs
from node.execution.engine.engine import Chosen, Engine
from node.execution.engine.llama import load_llama
from node.execution.engine.scheduler import Sequence
from node.execution.engine.score import LlamaReader, Scores
from node.execution.engine.static_decode import StaticDecode
from node.execution.engine.vllm_backend import VllmEngine, load_vllm
from node.execution.frames import COMPILED, SDPA, Load, VllmUse
from node.execution.shape import DecoderShape, LlamaShape, read_decoder_shape

TORCH_DTYPES: Final = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Of a pass of prompts, for each piece of a check beside jobs: it delays their next token by that much.
SCORE_SHARE: Final = 8


class Model(Protocol):
    """A loaded model, as much of it as is asked outside its backend."""

    @property
    def shape(self) -> DecoderShape: ...

    @property
    def dtype(self) -> torch.dtype: ...


class TokenEngine(Protocol):
    """Runs the sequences of one model; see ``engine.Engine``, whose contract this is."""

    @property
    def idle(self) -> bool: ...

    @property
    def context_tokens(self) -> int: ...

    def add(self, sequence: Sequence) -> None: ...

    def cancel(self, request: int) -> None: ...

    def step(self) -> list[Chosen]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One model with what runs and what re-checks it."""

    model: Model
    engine: TokenEngine
    scores: Scores | None
    """``None``: it cannot re-check answers."""
    kernels: str = SDPA
    """As ``frames.Loaded`` names them."""
    close: Callable[[], None] = lambda: None
    """Ends what would outlive the model's memory."""


def load_backend(load: Load, device: torch.device) -> Backend:
    """Load the weights in ``load.folder`` into the backend that computes them.

    Raises:
        ModelError, KeyError, ValueError, OSError: no backend here runs it; the message says why.
    """
    folder, dtype = Path(load.folder), TORCH_DTYPES[load.dtype]
    shape = read_decoder_shape(folder)
    if load.vllm is not None:
        return _vllm_backend(load, load.vllm, shape, device)
    beside = max(1, load.prefill_tokens // SCORE_SHARE)
    if not isinstance(shape, LlamaShape):
        # Its library takes seconds to import, and is not there unless somebody asked for it.
        from node.execution.engine.transformers_backend import (
            TransformersEngine,
            TransformersReader,
            load_transformers,
        )

        other = load_transformers(folder, shape, device=device, dtype=dtype)
        return Backend(
            model=other,
            engine=TransformersEngine(
                other,
                slots=load.slots,
                context_tokens=load.context_tokens,
                prefill_tokens=load.prefill_tokens,
            ),
            scores=Scores(
                new_reader=lambda _: TransformersReader(other),
                tokens_alone=load.prefill_tokens,
                tokens_beside=beside,
            ),
            kernels=other.kernels,
        )
    library = Path(load.decode_library) if load.decode_library else None
    model = load_llama(folder, shape, device=device, dtype=dtype, plain_layers=library is not None)
    engine = Engine(
        model,
        slots=load.slots,
        context_tokens=load.context_tokens,
        prefill_tokens=load.prefill_tokens,
        inter_token_s=load.inter_token_ms / 1000,
    )
    # Not for experts: how many rows each one has is a shape.
    if load.cuda_graphs and device.type == "cuda" and shape.experts is None:
        engine.decode_by(lambda model, cache: StaticDecode(model, cache, CudaGraphs(device)))
    if library is not None:
        engine.decode_by(partial(CompiledDecode, library))
    return Backend(
        model=model,
        engine=engine,
        scores=Scores(
            new_reader=lambda tokens: LlamaReader(model, tokens),
            tokens_alone=load.prefill_tokens,
            tokens_beside=beside,
        ),
        kernels=SDPA if library is None else COMPILED,
    )


def _vllm_backend(load: Load, use: VllmUse, shape: DecoderShape, device: torch.device) -> Backend:
    model, server = load_vllm(load, use, shape, device=device, dtype=TORCH_DTYPES[load.dtype])
    return Backend(
        model=model,
        engine=VllmEngine(server, slots=load.slots, context_tokens=load.context_tokens),
        scores=None,
        kernels=f"vllm {server.version}",
        close=server.close,
    )
