"""How a device's workers are started, how long they may be silent, and what follows from their deaths."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from node.execution.quarantine import QuarantineRules
from node.execution.spawn import COMMAND

# A pass of a full batch takes 0.2 s here; on a machine that swaps it has taken 20 s.
SILENCE_S_MAX: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRules:
    """What no operator sets; tests bring shorter waits, and workers that misbehave."""

    silence_s_max: float = SILENCE_S_MAX
    """For what is owed while nothing shorter is known; see ``watchdog.Patience``."""
    quarantine: QuarantineRules = field(default_factory=QuarantineRules)
    command: Sequence[str] = COMMAND
