"""What a model of the store takes on a device, and what computes it there, before anything is loaded.

The arithmetic is ``memory_plan.py``'s; what is done with it ``loading.py``'s.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from node.config import WorkerSection
from node.errors import ExecutionError
from node.execution.devices import DeviceChoice
from node.execution.frames import COMPILED, SDPA, VllmUse
from node.execution.memory_plan import MemoryPlan, kv_bytes_per_token, plan_items, plan_model, with_cpu_work
from node.execution.shape import DecoderShape, LlamaShape, read_decoder_shape
from protocol.fields import Dtype, Task
from protocol.task import GENERATE
from protocol.tasks.registry import INPUTS
from protocol.units import ModelId

VLLM: Final = "vllm"
# Prompt tokens in one pass at most, which bounds its memory; beside running answers the engine takes fewer. A
# core reads 512 tokens of a small model in 0.8 s, and more at once is no faster. The figure for CUDA is taken
# from the literature: not run on a GPU yet.
PREFILL_TOKENS: Final = {"cpu": 512, "cuda": 2048}


class LocalModel(Protocol):
    """What execution needs to know of a model on the disk; ``node.models.store.StoredModel`` is one."""

    @property
    def model_id(self) -> ModelId: ...

    @property
    def name(self) -> str: ...

    @property
    def task(self) -> str: ...

    @property
    def folder(self) -> Path: ...

    @property
    def parameters(self) -> int: ...

    def verify(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A model as it would be loaded, whatever room there is."""

    model: LocalModel
    task: Task
    cache_bytes_per_token: int
    attention: str
    """What computes it, for the profile."""
    dtype: Dtype
    largest: MemoryPlan
    """With all slots and the longest context that model and configuration allow."""


def fit_model(
    model: LocalModel,
    config: WorkerSection,
    kind: Literal["cuda", "cpu"],
    dtypes: tuple[Dtype, ...],
    *,
    decode_threads: int = 0,
) -> Fit:
    """Return what a model takes on a device that computes in ``dtypes``. Blocks.

    ``decode_threads`` are those of a compiled decode step; 0 where there is none.

    Raises:
        ModelError, ExecutionError: it cannot be served there, whatever room there is.
    """
    task = known_task(model.task)
    dtype: Dtype
    attention = SDPA
    if task == GENERATE:
        shape = read_decoder_shape(model.folder)
        dtype = choose_dtype(config.dtype, dtypes)
        if config.vllm_python:
            attention = VLLM
        elif shape.backend != "torch":
            attention = shape.backend
        elif decode_threads and decodes_compiled(shape, kind, dtype):
            attention = COMPILED
        per_token = kv_bytes_per_token(shape, dtype)
        largest = plan_model(
            shape,
            model.parameters,
            dtype=dtype,
            slots=config.slots,
            context_tokens=min(config.context_tokens_max, shape.context_tokens),
            prefill_tokens=PREFILL_TOKENS[kind],
        )
        if kind == "cpu":
            threads = decode_threads if attention == COMPILED else 0
            largest = with_cpu_work(largest, shape, dtype, decode_threads=threads)
    else:
        # Small models: what bf16 would save is less than what it costs a verifier in certainty.
        dtype, per_token = choose_dtype("fp32", dtypes), 0
        largest = plan_items(model.parameters, slots=config.slots)
    return Fit(
        model=model,
        task=task,
        attention=attention,
        cache_bytes_per_token=per_token,
        dtype=dtype,
        largest=largest,
    )


def decodes_compiled(shape: DecoderShape, kind: Literal["cuda", "cpu"], dtype: Dtype) -> bool:
    """Return whether ``engine/decode.c`` computes this model: dense, in bf16, on a CPU."""
    return kind == "cpu" and dtype == "bf16" and isinstance(shape, LlamaShape) and shape.experts is None


def vllm_use(config: WorkerSection, choice: DeviceChoice) -> VllmUse:
    return VllmUse(python=config.vllm_python, cards=choice.cards, arguments=config.vllm_args)


def choose_dtype(wanted: str, offered: tuple[Dtype, ...]) -> Dtype:
    """Return the dtype to serve in: the device's best one, or the one that the configuration names.

    Raises:
        ExecutionError: ``dtype``: the device does not compute in it.
    """
    if wanted == "auto":
        return offered[0]
    for dtype in offered:
        if dtype == wanted:
            return dtype
    raise ExecutionError(f"expected one of {', '.join(offered)} on this device, got {wanted!r}", code="dtype")


def known_task(task: str) -> Task:
    """Return the task that a model's manifest names.

    Raises:
        ExecutionError: ``task``: this version knows no such task.
    """
    for known in INPUTS:
        if known == task:
            return known
    raise ExecutionError(f"expected a task of {', '.join(INPUTS)}, got {task!r}", code="task")
