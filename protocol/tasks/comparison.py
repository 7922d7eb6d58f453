"""How a verifier judges somebody's result by its own (spec 04, section 9). Pure arithmetic on what was decoded."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The distance of two results of one input; ``worst`` is in the task's own measure."""

    holds: bool
    worst: float
    message: str
    """What was expected and what came, for people."""
