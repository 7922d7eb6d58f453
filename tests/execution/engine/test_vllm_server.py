from dataclasses import replace
from pathlib import Path

import pytest

from node.errors import ModelError
from node.execution.engine.vllm_server import VllmSettings, start_vllm

SETTINGS = VllmSettings(
    python="/opt/vllm/bin/python",
    folder=Path("/models/m"),
    dtype="bf16",
    slots=8,
    context_tokens=2048,
    cache_bytes=1 << 30,
    cards=2,
    extra=("--enforce-eager",),
    first_card=2,
    memory_share=0.904,
)


def value(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_server_is_told_what_was_planned_and_no_taste_of_the_model() -> None:
    command = SETTINGS.command(Path("/run/s"))
    assert command[:3] == ["/opt/vllm/bin/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert (value(command, "--uds"), value(command, "--dtype")) == ("/run/s", "bfloat16")
    assert (value(command, "--max-num-seqs"), value(command, "--max-model-len")) == ("8", "2048")
    assert (value(command, "--kv-cache-memory-bytes"), value(command, "--tensor-parallel-size")) == (
        str(1 << 30),
        "2",
    )
    assert (value(command, "--generation-config"), value(command, "--load-format")) == ("vllm", "safetensors")
    assert value(command, "--gpu-memory-utilization") == "0.90" and command[-1] == "--enforce-eager"
    assert "--gpu-memory-utilization" not in replace(SETTINGS, memory_share=None).command(Path("s"))
    assert not [word for word in command if "trust" in word or "log-requests" in word]


@pytest.mark.parametrize(
    ("visible", "seen"), [(None, "2,3"), ("4,5,6,7", "6,7"), ("GPU-a,GPU-b,GPU-c,GPU-d", "GPU-c,GPU-d")]
)
def test_server_sees_its_own_cards_and_nothing_of_our_environment(visible: str | None, seen: str) -> None:
    ours = {"PATH": "/bin", "PYTHONPATH": "/ours", "HOME": "/root", "SECRET": "x"}
    found = SETTINGS.environment(ours | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {}))
    assert found["CUDA_VISIBLE_DEVICES"] == seen and found["PATH"] == "/bin" and found["HF_HUB_OFFLINE"] == "1"
    assert not {"PYTHONPATH", "HOME", "SECRET"} & found.keys()


def test_server_sees_no_card_when_the_device_is_the_cpu() -> None:
    found = replace(SETTINGS, memory_share=None).environment({"CUDA_VISIBLE_DEVICES": ""})
    assert found["CUDA_VISIBLE_DEVICES"] == ""


@pytest.mark.slow
def test_last_words_are_told_when_the_server_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho the model is too large >&2\nexit 7\n")
    python.chmod(0o755)
    with pytest.raises(ModelError, match=r"the model is too large.*status 7"):
        start_vllm(replace(SETTINGS, python=str(python)))
    assert list(tmp_path.glob("souk-vllm-*")) == []
