"""How a device's workers are started, how long they may be silent, and what follows from their deaths."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from node.execution.inventory import Inventory
from node.execution.quarantine import QuarantineRules
from node.execution.spawn import COMMAND

# A game that was started has its memory after so long; among 190 processes a look took 4 ms of CPU time.
LOOK_S: Final = 5.0
# Smaller changes are the usual coming and going of programs; each would be an advert to everybody.
MEMORY_STEP_BYTES: Final = 256 << 20
# A pass of a full batch takes 0.2 s here; on a machine that swaps it has taken 20 s.
SILENCE_S_MAX: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRules:
    """What no operator sets; tests bring shorter waits, and workers that misbehave."""

    silence_s_max: float = SILENCE_S_MAX
    """For what is owed while nothing shorter is known; see ``watchdog.Patience``."""
    look_s: float = LOOK_S
    """Between two looks at the devices' memory and load."""
    memory_step_bytes: int = MEMORY_STEP_BYTES
    """By so much free memory has to change before anything follows."""
    inventory: Inventory | None = None
    """In place of this machine's."""
    spare_pauses_s: tuple[float, ...] = (1.0, 10.0, 60.0, 600.0)
    """Before the first, the second … spare that follows one which died by itself."""
    quarantine: QuarantineRules = field(default_factory=QuarantineRules)
    command: Sequence[str] = COMMAND
