"""Units and identifiers of the wire (spec 00, section 2): integers with their unit in the name."""

from typing import Final, NewType

PeerId = NewType("PeerId", bytes)
"""A peer: its raw Ed25519 public key, 32 bytes. Text form: ``protocol.identity.peer_id_to_text``."""

NetworkId = NewType("NetworkId", bytes)
"""SHA-256 of the network's canonical configuration, 32 bytes."""

MessageId = NewType("MessageId", bytes)
"""SHA-256 over what was signed and by whom, 32 bytes; never derived from the signature."""

JobId = NewType("JobId", bytes)
"""16 random bytes chosen by the requester; the same over every contract of one job."""

ModelId = NewType("ModelId", bytes)
"""SHA-256 of the model's canonical manifest, 32 bytes."""

Microcredits = NewType("Microcredits", int)
"""The unit of account. One credit is 1 000 000 microcredits (µc)."""

UnixMs = NewType("UnixMs", int)
"""Milliseconds since 1970-01-01T00:00:00Z, as the wire carries time."""

MICROCREDITS_PER_CREDIT: Final = 1_000_000
TOKENS_PER_PRICE_UNIT: Final = 1_000_000
"""Token prices are microcredits per this many tokens."""

MS_PER_S: Final = 1_000
