"""Which models make room for a new one: the ones used longest ago, never one that is pinned or served.

A pure plan with a reason for every model; carrying it out is ``store.py``'s business.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from protocol.units import ModelId


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A model of the store as far as its removal goes."""

    model_id: ModelId
    name: str
    size_bytes: int
    used_at_s: int
    pinned: bool
    served: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of one model, and why."""

    model_id: ModelId
    name: str
    size_bytes: int
    removed: bool
    reason: str


def plan_eviction(candidates: Iterable[Candidate], free_up_bytes: int) -> tuple[Decision, ...]:
    """Decide about every model, the one used longest ago first, until ``free_up_bytes`` are freed.

    What is removed may be less than was wished when the rest has to stay.
    """
    decisions = []
    for model in sorted(candidates, key=lambda found: (found.used_at_s, found.model_id)):
        used = datetime.fromtimestamp(model.used_at_s, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
        removed = False
        if model.pinned:
            reason = "pinned: souk models unpin lets it go"
        elif model.served:
            reason = "a daemon on this machine serves it: souk models unload lets it go"
        elif free_up_bytes <= 0:
            reason = f"there is room without removing it (last used {used})"
        else:
            removed, reason = True, f"used longest ago of those that may go ({used})"
            free_up_bytes -= model.size_bytes
        decisions.append(
            Decision(
                model_id=model.model_id,
                name=model.name,
                size_bytes=model.size_bytes,
                removed=removed,
                reason=reason,
            )
        )
    return tuple(decisions)


def freed_bytes(decisions: Iterable[Decision]) -> int:
    """Return how much room a plan makes."""
    return sum(decision.size_bytes for decision in decisions if decision.removed)
