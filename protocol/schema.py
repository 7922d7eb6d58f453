"""Typed messages over canonical values: one closed schema per message (spec 01, section 3).

A message is a frozen ``msgspec.Struct`` whose fields carry their bounds. Decoding is strict: no coercion,
no unknown keys, except those that start with ``x_``, which are kept in the bytes and ignored here.
"""

from typing import Any, Final, TypeVar

import msgspec

from protocol.encoding import Plain
from protocol.errors import LocalProtocolError, Reason, RemoteProtocolError

EXTENSION_PREFIX: Final = "x_"

# How the library begins the messages that quote the peer, and what is said instead.
_TEXTS_WITH_VALUES: Final = {
    "Invalid enum value": "a value outside the closed list",
    "Object contains unknown field": "a field that is not in the schema",
}


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=False):
    """Base of everything that travels: immutable, closed, named fields only."""


M = TypeVar("M", bound=Message)


def to_plain(message: Message) -> dict[str, Plain]:
    """Return the map that is encoded: a field that is ``None`` is left out.

    Raises:
        LocalProtocolError: a field breaks its own bounds, so that a peer would refuse the message.
    """
    plain = _plain(message)
    assert isinstance(plain, dict)
    try:
        msgspec.convert(plain, type(message), builtin_types=(bytes,))
    except msgspec.ValidationError as exc:
        raise LocalProtocolError(
            f"{type(message).__name__} breaks its schema: {exc}", reason=Reason.SCHEMA
        ) from exc
    return plain


def to_message_untrusted(value: Plain, kind: type[M]) -> M:
    """Return ``value`` as a checked ``kind``; raises nothing but ``RemoteProtocolError``."""
    try:
        return msgspec.convert(_without_extensions(value), kind, strict=True, builtin_types=(bytes,))
    except (msgspec.ValidationError, ValueError, RecursionError) as exc:
        raise RemoteProtocolError(f"{kind.__name__}: {_without_values(str(exc))}", reason=Reason.SCHEMA) from exc


def _without_values(text: str) -> str:
    """Keep the path and drop what the peer wrote: no payload reaches a log."""
    for start, instead in _TEXTS_WITH_VALUES.items():
        if text.startswith(start):
            _, _, path = text.rpartition(" - at `")
            return f"{instead} - at `{path}" if " - at `" in text else instead
    return text


def _plain(value: Any) -> Plain:  # Any: a field's value, whatever its type; checked by the caller's convert
    if isinstance(value, msgspec.Struct):
        return {
            name: _plain(item) for name in value.__struct_fields__ if (item := getattr(value, name)) is not None
        }
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, str) and type(value) is not str:
        return str.__str__(value)
    plain: Plain = value
    return plain


def _without_extensions(value: Plain) -> Plain:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not key.startswith(EXTENSION_PREFIX)}
        # A field without a value is left out; nil would be a second way to write the same message.
        if None in kept.values():
            raise RemoteProtocolError("nil where a field is to be left out", reason=Reason.SCHEMA)
        return {key: _without_extensions(item) for key, item in kept.items()}
    if isinstance(value, list):
        return [_without_extensions(item) for item in value]
    return value
