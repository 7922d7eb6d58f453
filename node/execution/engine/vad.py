"""Silero's voice activity detector at 16 kHz: audio to the chance of speech in each window of 32 ms (``vad``).

A short Fourier transform by convolution, four convolutions, one LSTM cell that carries on from window to window.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional

from node.errors import ModelError
from node.execution.engine.items import Item
from node.execution.engine.tensors import refuse_unless
from protocol.fields import Task
from protocol.tasks.registry import VAD, ItemInput, ItemOutput
from protocol.tasks.vad import SAMPLE_BYTES, SAMPLE_RATE_HZ, WINDOW_SAMPLES, VadInput, VadOutput

# A part of a job is two seconds of audio: 4 to 6 ms on one core of an EPYC.
WINDOWS_PER_STEP: Final = 64
_CONTEXT_SAMPLES: Final = 64
_STRIDE: Final = 128
_FREQUENCIES: Final = 129
_STATE: Final = 128
_FULL_SCALE: Final = 32768


@dataclass(slots=True)
class AudioState:
    """What one job carries from window to window."""

    h: Tensor
    c: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioItem:
    """Some windows of a job, one after the other; only the first part of a job that is left may be computed."""

    windows: Tensor
    """(N, 576) float32: each with the 64 samples before it."""
    state: AudioState

    @property
    def weight(self) -> int:
        return len(self.windows)


class VoiceDetector:
    """Implements ``items.Network``."""

    task: Task = VAD
    # One part at a time: two parts of one job need each other's state.
    budget = 1

    def __init__(self, weights: dict[str, Tensor], device: torch.device) -> None:
        self._weights, self._device = weights, device

    def items(self, task_input: ItemInput) -> tuple[int, list[Item]]:
        """See ``items.Network``."""
        assert isinstance(task_input, VadInput)
        raw = torch.frombuffer(bytearray(task_input.samples), dtype=torch.int16)
        count = task_input.units_in_max
        missing = count * WINDOW_SAMPLES - len(task_input.samples) // SAMPLE_BYTES
        audio = functional.pad(raw.float() / _FULL_SCALE, (_CONTEXT_SAMPLES, missing))
        windows = audio.unfold(0, _CONTEXT_SAMPLES + WINDOW_SAMPLES, WINDOW_SAMPLES)
        state = AudioState(*(torch.zeros(1, _STATE, device=self._device) for _ in range(2)))
        return count, [AudioItem(windows=part, state=state) for part in torch.split(windows, WINDOWS_PER_STEP)]

    def compute(self, items: Sequence[Item]) -> list[ItemOutput | None]:
        """See ``items.Network``."""
        return [self._detect(item) for item in items if isinstance(item, AudioItem)]

    def forward(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """See ``items.Network``."""
        h, c = self._carry(self._features(tensors["audio"]), AudioState(tensors["h"], tensors["c"]))
        return {"speech": self._chances(h), "h": h, "c": c}

    def check(self, tensors: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """See ``items.Network``."""
        rows = tensors["audio"].shape[0] if "audio" in tensors and tensors["audio"].dim() else None
        refuse_unless(
            tensors,
            {
                "audio": (torch.float32, (None, _CONTEXT_SAMPLES + WINDOW_SAMPLES)),
                "h": (torch.float32, (rows, _STATE)),
                "c": (torch.float32, (rows, _STATE)),
            },
        )
        assert rows is not None
        return {"speech": (rows,), "h": (rows, _STATE), "c": (rows, _STATE)}

    def example(self) -> tuple[int, list[Item]]:
        """See ``items.Network``."""
        return self.items(VadInput(samples=bytes(SAMPLE_BYTES * WINDOW_SAMPLES * WINDOWS_PER_STEP)))

    def _detect(self, item: AudioItem) -> VadOutput | None:
        # All windows at once up to the cell; then one after the other.
        features = self._features(item.windows.to(self._device))
        states = []
        for row in features:
            item.state.h, item.state.c = self._carry(row[None], item.state)
            states.append(item.state.h)
        chances = self._chances(torch.cat(states)).cpu()
        if not chances.isfinite().all():
            return None
        return VadOutput(speech_milli=tuple(round(chance * 1000) for chance in chances.tolist()))

    def _features(self, windows: Tensor) -> Tensor:
        """Return (N, 128) of windows (N, 576)."""
        padded = functional.pad(windows[:, None], (0, _CONTEXT_SAMPLES), mode="reflect")
        parts = functional.conv1d(padded, self._weights["stft_conv.weight"], stride=_STRIDE)
        x = (parts[:, :_FREQUENCIES].square() + parts[:, _FREQUENCIES:].square()).sqrt()
        for name, stride in (("conv1", 1), ("conv2", 2), ("conv3", 2), ("conv4", 1)):
            weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
            x = functional.relu(functional.conv1d(x, weight, bias, stride=stride, padding=1))
        return x.squeeze(-1)

    def _carry(self, features: Tensor, state: AudioState) -> tuple[Tensor, Tensor]:
        parts = [self._weights[f"lstm_cell.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        gates = functional.linear(features, parts[0], parts[2]) + functional.linear(state.h, parts[1], parts[3])
        into, forget, cell, out = gates.chunk(4, dim=-1)
        c = forget.sigmoid() * state.c + into.sigmoid() * cell.tanh()
        return out.sigmoid() * c.tanh(), c

    def _chances(self, h: Tensor) -> Tensor:
        weight, bias = self._weights["final_conv.weight"], self._weights["final_conv.bias"]
        return functional.linear(functional.relu(h), weight.squeeze(-1), bias).sigmoid().squeeze(-1)


def load_voice_detector(folder: Path, device: torch.device) -> VoiceDetector:
    """Load a detector in float32.

    Raises:
        ModelError, KeyError, ValueError, OSError: the files are no detector that runs here.
    """
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())  # Any: checked here
    if (rate := config["sampling_rate"]) != SAMPLE_RATE_HZ:
        raise ModelError(f"config.json: expected a sampling_rate of {SAMPLE_RATE_HZ}, got {rate!r}")
    with safe_open(str(folder / "model.safetensors"), "pt", device=str(device)) as file:
        weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - it is no dict
    return VoiceDetector(weights, device)
