"""Loads whichever kind of model a ``Load`` frame names, by its task and its architecture."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from node.errors import ModelError
from node.execution.engine.classifier import load_classifier
from node.execution.engine.encoder import load_encoder
from node.execution.engine.items import Network, ServedItems
from node.execution.engine.served import ServedModel, load_served
from node.execution.engine.vad import load_voice_detector
from node.execution.frames import Load
from protocol.task import GENERATE

Served: TypeAlias = ServedModel | ServedItems

NETWORKS: Final[dict[str, Callable[[Path, torch.device], Network]]] = {
    "bert": load_encoder,
    "efficientnet-lite": load_classifier,
    "silero-vad": load_voice_detector,
}
"""By ``model_type`` of ``config.json``."""


def load_any(load: Load, device: torch.device) -> Served:
    """Load what ``load`` says.

    Raises:
        ModelError, KeyError, ValueError, OSError: the files are not a model that the engine runs.
    """
    if load.task == GENERATE:
        return load_served(load, device)
    folder = Path(load.folder)
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())  # Any: one use, checked below
    architecture = config.get("model_type")
    if architecture not in NETWORKS:
        raise ModelError(f"config.json: expected model_type {', '.join(NETWORKS)}, got {architecture!r}")
    network = NETWORKS[architecture](folder, device)
    if network.task != load.task:
        raise ModelError(f"config.json: a {architecture} does {network.task}, the manifest says {load.task}")
    return ServedItems(network, device=device, units_max=load.context_tokens)
