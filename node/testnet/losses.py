"""What a lost stream must lead to while both nodes live and reach each other (spec 03, section 14).

The requester resumes the contract, and nobody else gets the job while its provider holds it.
"""

from typing import TYPE_CHECKING, Final

import trio

from node.testnet.checks import ContractFile
from node.testnet.witness import WatchedStream
from protocol.states import is_final
from protocol.units import MS_PER_S, MessageId, PeerId

if TYPE_CHECKING:
    from node.testnet.world import World

RESUMED_WITHIN_S: Final = 2.0
CALM_S: Final = 15.0
"""Longer than silence is borne and a resume is tried: a fault before it excuses nothing any more."""


class Losses:
    """Knows which streams were broken on purpose, and what excuses a requester."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._unclear: dict[frozenset[PeerId], float] = {}
        """When a stream between two nodes was last broken of which nobody can say what has to follow."""

    async def watch(self, own: PeerId, stream: WatchedStream) -> None:
        """Judge what comes of a stream of the node ``own`` that has just been broken."""
        checks, witness, began = self._world.checks, self._world.witness, trio.current_time()
        pair = frozenset((own, stream.peer_id))
        file = checks.files.get(stream.contract_id)
        resumes = witness.resumes[stream.contract_id]
        if file is None or not file.is_attached or file.may_be_left or stream.resumes != resumes:
            # One that was being resumed, or was in vain: whoever has another provider need not try twice.
            self._unclear[pair] = began
            return
        await trio.sleep(RESUMED_WITHIN_S)
        if self._unclear.get(pair, began) > began:
            # The stream that was to resume it was broken as well, before it could say so: that was the attempt.
            return
        if witness.resumes[stream.contract_id] > resumes or file.is_over or _is_overdue(file):
            return
        if self._calm_since(file) <= stream.opened_at:
            message = f"broken at {began:.3f}, no resume within {RESUMED_WITHIN_S:g} s"
            checks.fail("a lost stream was not resumed", message, job=file.job, contract=file.contract_id)

    def is_held(self, file: ContractFile) -> bool:
        """Return whether a provider still has the job and could have been asked to go on with it."""
        provider = self._world.node_of(file.provider)
        if provider.rooms is None or file.is_over or file.may_be_left or _is_overdue(file):
            return False
        job = provider.rooms.provider.jobs.get(MessageId(bytes.fromhex(file.contract_id)))
        calm_since = max(self._calm_since(file), *self._unclear.values(), -CALM_S)
        return job is not None and not is_final(job.state) and calm_since <= trio.current_time() - CALM_S

    def _calm_since(self, file: ContractFile) -> float:
        nodes = self._world.node_of(file.requester), self._world.node_of(file.provider)
        links = self._world.links.whole_since(file.requester, file.provider)
        return max(links, *(node.calm_since for node in nodes))


def _is_overdue(file: ContractFile) -> bool:
    """Return whether the contract's own time was up: then nobody has to wait for more."""
    body = file.body
    by_ms: int = body["end_by_ms"] if file.tokens_received else body["start_by_ms"]
    made_at_ms: int = body["made_at_ms"]
    return trio.current_time() >= file.sent_at + (by_ms - made_at_ms) / MS_PER_S
