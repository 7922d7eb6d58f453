import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from node.errors import JobRefusedError, ModelError
from node.execution.engine.vad import WINDOWS_PER_STEP, VoiceDetector, load_voice_detector
from protocol.tasks.vad import WINDOW_SAMPLES, VadInput, VadOutput

SHAPES = {
    "stft_conv.weight": (258, 1, 256),
    **{
        f"conv{n}.weight": shape
        for n, shape in enumerate([(128, 129, 3), (64, 128, 3), (64, 64, 3), (128, 64, 3)], 1)
    },
    **{f"conv{n}.bias": (size,) for n, size in enumerate([128, 64, 64, 128], 1)},
    "lstm_cell.weight_ih": (512, 128),
    "lstm_cell.weight_hh": (512, 128),
    "lstm_cell.bias_ih": (512,),
    "lstm_cell.bias_hh": (512,),
    "final_conv.weight": (1, 128, 1),
    "final_conv.bias": (1,),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(2)
    save_file(
        {name: torch.randn(shape) * 0.05 for name, shape in SHAPES.items()}, str(tmp_path / "model.safetensors")
    )
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "silero-vad", "sampling_rate": 16_000}))
    return tmp_path


@pytest.fixture
def detector(folder: Path) -> VoiceDetector:
    return load_voice_detector(folder, torch.device("cpu"))


def sound(windows: int, extra_samples: int = 0) -> VadInput:
    torch.manual_seed(3)
    count = windows * WINDOW_SAMPLES + extra_samples
    return VadInput(samples=struct.pack(f"<{count}h", *torch.randint(-20_000, 20_000, (count,)).tolist()))


def milli(detector: VoiceDetector, task_input: VadInput) -> list[int]:
    _, items = detector.items(task_input)
    return [
        value
        for item in items
        for it in detector.compute([item])
        if isinstance(it, VadOutput)
        for value in it.speech_milli
    ]


def test_long_audio_comes_in_parts_that_carry_on(detector: VoiceDetector) -> None:
    long = sound(WINDOWS_PER_STEP + 3, 5)
    units, items = detector.items(long)
    assert (units, len(items)) == (WINDOWS_PER_STEP + 4, 2)
    assert len(milli(detector, long)) == units
    # The beginning of a longer recording is judged as it is alone.
    assert milli(detector, sound(WINDOWS_PER_STEP)) == milli(detector, long)[:WINDOWS_PER_STEP]


def test_audio_has_no_result_when_the_weights_are_damaged(folder: Path) -> None:
    damaged = load_file(folder / "model.safetensors")
    damaged["final_conv.bias"][0] = float("nan")
    save_file(damaged, str(folder / "model.safetensors"))
    detector = load_voice_detector(folder, torch.device("cpu"))
    _, items = detector.items(sound(2))
    assert detector.compute(items) == [None]


def test_bare_network_gives_what_the_task_gives_window_by_window(detector: VoiceDetector) -> None:
    short = sound(4)
    audio = torch.tensor(struct.unpack(f"<{4 * WINDOW_SAMPLES}h", short.samples)) / 32768
    audio = torch.cat([torch.zeros(64), audio])
    h, c, found = torch.zeros(1, 128), torch.zeros(1, 128), []
    for at in range(4):
        given = {"audio": audio[None, at * 512 : at * 512 + 576], "h": h, "c": c}
        assert detector.check(given) == {"speech": (1,), "h": (1, 128), "c": (1, 128)}
        made = detector.forward(given)
        h, c = made["h"], made["c"]
        found.append(round(float(made["speech"]) * 1000))
    assert found == milli(detector, short)


@pytest.mark.parametrize("name", ["audio", "h", "c"])
def test_tensors_are_refused_when_one_is_missing_or_has_another_shape(detector: VoiceDetector, name: str) -> None:
    given = {"audio": torch.zeros(2, 576), "h": torch.zeros(2, 128), "c": torch.zeros(2, 128)}
    assert detector.check(given)
    with pytest.raises(JobRefusedError, match="takes the tensors audio"):
        detector.check({key: value for key, value in given.items() if key != name})
    with pytest.raises(JobRefusedError, match="takes the tensors audio"):
        detector.check(given | {name: torch.zeros(2, 5)})


def test_model_is_refused_when_it_hears_at_another_rate(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"sampling_rate": 8_000}))
    with pytest.raises(ModelError, match="16000"):
        load_voice_detector(folder, torch.device("cpu"))
