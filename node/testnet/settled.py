"""What must hold when all has settled: books that agree, nothing paid twice, nothing left over.

Ledgers are read with SQL of its own from the simulated disks, as another program would.
"""

from collections import defaultdict
from hashlib import sha256
from typing import Final

import trio

from node.testnet.checks import Checks, ContractFile
from node.testnet.world import Rooms, SimulatedNode, World
from protocol.units import MessageId

FINAL: Final = {
    "provider": {"closed", "lapsed", "declined", "expired", "cancelled", "failed", "unpaid"},
    "requester": {"closed", "declined", "lapsed", "lost", "cancelled", "disputed"},
}


def check_settled(world: World) -> None:
    """Tell ``world.checks`` of everything that is not as it should be in the end."""
    _check_payments(world.checks)
    _check_books(world)
    for node in world.nodes:
        if node.rooms is not None and node.is_honest:
            _check_leaks(world.checks, node, node.rooms)


def _check_payments(checks: Checks) -> None:
    by_job: dict[str, list[ContractFile]] = defaultdict(list)
    for file in checks.files.values():
        if file.requester not in checks.liars:
            by_job[file.job].append(file)
    for job, files in by_job.items():
        paid_until = 0
        for file in sorted(files, key=lambda it: (it.body["tokens_held"], it.tokens_paid)):
            held = file.body["tokens_held"]
            if file.tokens_paid and held < paid_until:
                checks.fail(
                    "tokens paid twice",
                    f"{paid_until - held} tokens from {held} on",
                    job=job,
                    contract=file.contract_id,
                )
            if file.tokens_paid:
                paid_until = max(paid_until, held + file.tokens_paid)


def _check_books(world: World) -> None:
    checks = world.checks
    rows: dict[str, dict[str, tuple[str, int, int, int, SimulatedNode]]] = {"provider": {}, "requester": {}}
    for node in world.nodes:
        if not node.is_honest:
            continue
        _check_chain(checks, node)
        for contract_id, role, state, tokens_out, metered, vouchered in node.disk.db.execute(
            "SELECT contract_id, role, state, tokens_out, metered, vouchered FROM contract"
        ).fetchall():
            contract = contract_id.hex()
            rows[role][contract] = state, tokens_out, metered, vouchered, node
            if state not in FINAL[role]:
                checks.fail("a contract is not over", f"{role} {node.name}: {state}", contract=contract)
            if vouchered > metered:
                checks.fail("vouchers above the meter", f"{role} {node.name}", contract=contract)
    for contract, (state, tokens_out, _metered, vouchered, node) in rows["provider"].items():
        other = rows["requester"].get(contract)
        if state != "closed" or other is None:
            continue
        # A cancel that never arrived: the answer came whole, was paid and closed, and yet its user had left.
        is_closed = other[0] == "closed" or (other[0] == "cancelled" and _has_closing(checks, contract))
        if not is_closed or (other[1], other[3]) != (tokens_out, vouchered):
            checks.fail(
                "ledgers disagree about a closed contract",
                f"{node.name}: {tokens_out} tokens, {vouchered} µc; {other[4].name}: {other[:4]}",
                contract=contract,
            )


def _has_closing(checks: Checks, contract: str) -> bool:
    file = checks.files.get(MessageId(bytes.fromhex(contract)))
    return file is not None and bool(file.closings)


def _check_chain(checks: Checks, node: SimulatedNode) -> None:
    link = bytes(32)
    for message_id, raw, stored in node.disk.db.execute(
        "SELECT message_id, envelope, hash FROM entry ORDER BY seq"
    ).fetchall():
        link = sha256(link + message_id + sha256(raw).digest()).digest()
        if link != stored:
            checks.fail("a ledger's chain is broken", node.name)
            return


def _check_leaks(checks: Checks, node: SimulatedNode, rooms: Rooms) -> None:
    counts = {
        "streams": rooms.network.streams_open,
        "jobs as requester": len(rooms.requester.jobs),
        "jobs as provider": len(rooms.provider.jobs),
        "prompts in the worker": rooms.workers.held,
        "places": rooms.admission.running,
        "reserves": rooms.admission.unsettled,
        "slots": rooms.admission.slots - rooms.admission.slots_free(trio.current_time()),
        "tasks": max(node.count_tasks() - node.tasks_min, 0),
    }
    for what, count in counts.items():
        if count:
            checks.fail("something was left over", f"{node.name}: {count} {what}")
