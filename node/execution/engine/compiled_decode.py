"""Decode steps on the CPU by a C program, ``decode.c``, which ``node.execution.decode_library`` compiles: opt-in.

It reads the model's own matrices, unpacked, and writes the engine's own cache. Prompts, steps beside them and
larger batches stay with ``attention.py`` and torch. Decision 0018.
"""

import ctypes
from collections.abc import Sequence as Items
from pathlib import Path

import torch
from torch import Tensor

from node.execution.engine.kv_cache import KvCache
from node.execution.engine.llama import Layer, Llama
from node.execution.engine.moe import GatedMatrices
from node.execution.engine.scheduler import Sequence, decode_inputs
from node.execution.memory_plan import DECODE_ROWS_MAX


class _Layer(ctypes.Structure):
    """``Layer`` of decode.c."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in (
            "attention_norm", "qkv", "qkv_bias", "qk_norm", "output", "mlp_norm", "gate", "up", "down", "keys",
            "values",
        )
    )  # fmt: skip


class _Model(ctypes.Structure):
    """``Model`` of decode.c."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                "layers", "hidden", "heads", "kv_heads", "head_size", "feed_forward", "vocabulary", "context",
                "cache_rows",
            )
        ),
        ("epsilon", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("embedding", "cos", "sin")),
        ("layer", ctypes.POINTER(_Layer)),
    )  # fmt: skip


class CompiledDecode:
    """The steps of one dense bfloat16 model, loaded with ``plain_layers``, over one cache."""

    def __init__(self, library: Path, model: Llama, cache: KvCache) -> None:
        """Raises: OSError: it is no library for this machine."""
        self._model, self._cache = model, cache
        self._threads = torch.get_num_threads()
        code = ctypes.CDLL(str(library))
        self._decode = code.decode
        self._decode.restype = ctypes.c_int64
        shape = model.shape
        assert cache.context_tokens <= shape.context_tokens and shape.qk_norm != "whole"
        self._layers = (_Layer * shape.layers)(
            *(_layer(layer, held) for layer, held in zip(model.layers, cache.rows, strict=True))
        )
        self._numbers = _Model(
            shape.layers,
            shape.hidden,
            shape.heads,
            shape.kv_heads,
            shape.head_size,
            shape.feed_forward,
            shape.vocabulary,
            cache.context_tokens,
            cache.spare_row,
            shape.norm_epsilon,
            _address(model.embedding),
            _address(model.cos),
            _address(model.sin),
            self._layers,
        )
        rows = min(DECODE_ROWS_MAX, cache.slots)
        code.decode_bytes.restype = ctypes.c_int64
        size = code.decode_bytes(ctypes.byref(self._numbers), ctypes.c_int64(rows), ctypes.c_int64(self._threads))
        self.memory_bytes: int = size
        self._memory = torch.empty(size, dtype=torch.uint8)
        self._hidden = torch.empty(rows, shape.hidden, dtype=torch.bfloat16)

    def run(self, decodes: Items[Sequence]) -> Tensor | None:
        """Return the last hidden states (N, D), overwritten by the next call; ``None``: more than it takes."""
        count = len(decodes)
        if count > len(self._hidden):
            return None
        inputs = decode_inputs(decodes, self._cache.context_tokens)
        refused = self._decode(
            ctypes.byref(self._numbers),
            ctypes.c_int64(count),
            (ctypes.c_int64 * (3 * count))(*(number for row in inputs for number in row)),
            ctypes.c_void_p(self._hidden.data_ptr()),
            ctypes.c_void_p(self._memory.data_ptr()),
            ctypes.c_int64(self._threads),
        )
        assert refused == 0, f"sequence {refused} of {count} is outside the model or its cache"
        return self._hidden[:count]


def _layer(layer: Layer, held: Tensor) -> _Layer:
    assert isinstance(layer.mlp, GatedMatrices)  # no experts: model_fit.decodes_compiled
    keys, values = held.unbind(0)
    tensors = (
        layer.attention_norm.scale,
        layer.qkv,
        layer.qkv_bias,
        layer.qk_norm,
        layer.output,
        layer.mlp_norm.scale,
        layer.mlp.gate,
        layer.mlp.up,
        layer.mlp.down,
        keys,
        values,
    )
    return _Layer(*(_address(tensor) for tensor in tensors))


def _address(tensor: Tensor | None) -> int | None:
    """Return where the numbers lie; the model and its cache outlive whoever reads them there."""
    if tensor is None:
        return None
    assert tensor.is_contiguous() and tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu"
    return tensor.data_ptr()
