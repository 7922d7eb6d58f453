"""What is told of a device's worker: to ``souk status``, ``souk why`` and the metrics."""

from dataclasses import dataclass
from typing import Literal

from protocol.units import ModelId

Life = Literal["starting", "serving", "restarting", "quarantined", "lost"]
Spare = Literal["none", "starting", "held", "loaded"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """One device's worker as of now."""

    device: str
    """``cuda:0`` or ``cpu``."""
    life: Life
    jail: str | None
    """What confines it, such as ``landlock+seccomp``, or ``none: why``; None before the first was ready."""
    spare: Spare
    """``held``: torch is loaded and no model, since two of each would not fit."""
    deaths: int
    """In the last ten minutes; counted up to three."""
    cause: str | None
    """Of the last death."""
    probe_in_s: float | None
    """When a quarantined device is tried again."""
    models: frozenset[ModelId] = frozenset()
    """That it was asked to serve."""

    def is_coming(self, model_id: ModelId) -> bool:
        """Whether this model is expected to answer in some seconds."""
        return self.life in ("starting", "restarting") and model_id in self.models
