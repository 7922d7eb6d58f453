"""How a person names a model: by its name, or by the first digits of its id. Nothing is looked up here."""

from typing import Final

from protocol.units import ModelId

ID_DIGITS_MIN: Final = 8


def names_model(wanted: str, name: str, model_id: ModelId) -> bool:
    """Return whether a user who typed ``wanted`` means this model."""
    return wanted == name or begins_id(wanted, model_id)


def begins_id(wanted: str, model_id: ModelId) -> bool:
    """Return whether ``wanted`` is the beginning of this id, and long enough to be meant as one."""
    return len(wanted) >= ID_DIGITS_MIN and model_id.hex().startswith(wanted.lower())
