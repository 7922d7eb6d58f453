"""Vectors of the exposure rule (spec 05, section 7): peers of one node, and what each may still owe."""

from typing import Any, Final

from protocol.exposure import ExposureRule

RULE: Final = {"new_peer": 100_000, "peer_max": 10_000_000, "pool": 250_000, "earned_permille": 500}
ROWS: Final[list[tuple[dict[str, int], dict[str, tuple[int, int]]]]] = [
    # (limits that differ from RULE, (exposure, settled) by peer)
    ({}, {"stranger": (0, 0)}),
    ({}, {"newcomer at its limit": (100_000, 0), "stranger": (0, 0)}),
    ({}, {"earned three, owes two": (2, 6), "stranger": (0, 0)}),
    ({}, {"newcomer": (100_000, 0), "second": (100_000, 0), "third": (49_999, 0), "stranger": (0, 0)}),
    ({}, {"newcomer": (100_000, 0), "second": (100_000, 0), "third": (50_000, 0), "proven": (0, 300_000)}),
    ({}, {"proven": (240_000, 300_000), "newcomer": (100_000, 0), "stranger": (0, 0)}),
    ({"peer_max": 120_000}, {"proven": (90_000, 300_000)}),
    ({"earned_permille": 333}, {"share rounded down": (0, 1_000_001)}),
    ({"earned_permille": 0}, {"settles a lot": (100_000, 1 << 53)}),
    # After an operator lowered a limit: nothing is added, and what was earned is still there.
    ({"pool": 50_000}, {"newcomer": (100_000, 0), "proven": (10_000, 300_000), "stranger": (0, 0)}),
]


def exposure() -> Any:  # JSON
    """Return the file's value."""
    return {"valid": [_row({**RULE, **limits}, peers) for limits, peers in ROWS]}


def _row(limits: dict[str, int], peers: dict[str, tuple[int, int]]) -> dict[str, object]:
    rule = ExposureRule(**limits)
    used = sum(rule.from_pool(*peer) for peer in peers.values())
    return {
        "rule": limits,
        "pool_used": used,
        "peers": {
            name: {
                "exposure": exposure,
                "settled": settled,
                "limit": rule.limit(settled),
                "from_pool": rule.from_pool(exposure, settled),
                "room": rule.room(exposure=exposure, settled=settled, pool_used=used),
            }
            for name, (exposure, settled) in peers.items()
        },
    }
