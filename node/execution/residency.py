"""Which models lie on a device, what they take of its budget, and who makes room for whom. Pure bookkeeping.

Loading and unloading itself is ``loading.py``'s; what a model takes is ``memory_plan.py``'s arithmetic.
"""

import itertools
from dataclasses import dataclass
from typing import Final

from node.errors import ExecutionError
from protocol.units import ModelId

MODEL_BUSY: Final = "model_busy"
DEVICE_BUSY: Final = "device_busy"
MEMORY: Final = "memory"


@dataclass(slots=True, kw_only=True)
class Resident:
    """A loaded model. One with users or a pin is never asked to leave."""

    memory_bytes: int
    is_pinned: bool
    users: int = 0
    last_use: int = 0
    """Counted uses, not seconds: only the order matters."""


class Residency:
    """The models of one device within a budget that may change while they lie there."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self._residents: dict[ModelId, Resident] = {}
        self._uses = itertools.count(1)

    @property
    def free_bytes(self) -> int:
        """What is left; below zero when the budget has shrunk under the models that are there."""
        return self.budget_bytes - sum(resident.memory_bytes for resident in self._residents.values())

    @property
    def kept_bytes(self) -> int:
        """What models take that cannot leave now: pinned ones, and those with jobs."""
        return sum(it.memory_bytes for it in self._residents.values() if it.is_pinned or it.users)

    def idle(self) -> tuple[ModelId, ...]:
        """Return the models that may leave, the longest unused first."""
        by_age = sorted(self._residents.items(), key=lambda item: item[1].last_use)
        return tuple(model_id for model_id, it in by_age if not it.users and not it.is_pinned)

    @property
    def pinned_bytes(self) -> int:
        """What pinned models take: room that nothing else can ever have."""
        return sum(resident.memory_bytes for resident in self._residents.values() if resident.is_pinned)

    def __contains__(self, model_id: ModelId) -> bool:
        return model_id in self._residents

    def add(self, model_id: ModelId, memory_bytes: int, *, is_pinned: bool = False) -> None:
        """Note that a model was loaded."""
        assert model_id not in self._residents and memory_bytes <= self.free_bytes
        self._residents[model_id] = Resident(
            memory_bytes=memory_bytes, is_pinned=is_pinned, last_use=next(self._uses)
        )

    def remove(self, model_id: ModelId) -> None:
        """Note that a model was unloaded.

        Raises:
            ExecutionError: ``model_busy``: jobs use it.
        """
        users = self._residents[model_id].users
        if users:
            raise ExecutionError(f"{users} jobs use this model; unload it when they are done", code=MODEL_BUSY)
        del self._residents[model_id]

    def begin_use(self, model_id: ModelId) -> None:
        """Keep a model where it is until ``end_use``."""
        resident = self._residents[model_id]
        resident.users += 1
        resident.last_use = next(self._uses)

    def end_use(self, model_id: ModelId) -> None:
        """Let it go again; its age counts from here."""
        resident = self._residents[model_id]
        assert resident.users > 0
        resident.users -= 1
        resident.last_use = next(self._uses)

    def victims(self, needed_bytes: int) -> tuple[ModelId, ...]:
        """Return the models to unload so that ``needed_bytes`` are free: the longest unused first, none in vain.

        Raises:
            ExecutionError: ``model_busy``: it would fit once running jobs are done; ``memory``: it never would.
        """
        if needed_bytes > self.budget_bytes - self.pinned_bytes:
            raise ExecutionError(
                f"expected {needed_bytes} bytes for the model, this device has {self.budget_bytes}, "
                f"of which pinned models keep {self.pinned_bytes}",
                code=MEMORY,
            )
        chosen, free = [], self.free_bytes
        for model_id in self.idle():
            if free >= needed_bytes:
                break
            chosen.append(model_id)
            free += self._residents[model_id].memory_bytes
        if free < needed_bytes:
            raise ExecutionError(
                "the models that are in the way have running jobs; try again soon", code=MODEL_BUSY
            )
        return tuple(chosen)
