"""Two nodes end with one chain of statements, whatever is lost between them, and a liar gets no signature."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from msgspec.structs import replace

from node.config import MarketSection
from node.errors import LedgerError, StreamLostError
from node.ledger.audit import audit
from node.ledger.settlement import PairBooks, settled_rows
from node.ledger.store import put_contract
from node.market.party import Line
from node.market.settlement import SettlementError
from node.market.settlement_exchange import Settler
from node.net.memory import MemoryFabric
from protocol.equivocation import verify_proof_untrusted
from protocol.errors import RemoteProtocolError
from protocol.framing import CONTROL_PROTOCOL
from protocol.settlement import verify_settlement_untrusted
from protocol.signed import Signed
from protocol.statement import NO_HASH, Settled, Statement, Tally
from protocol.states import ProviderState, RequesterState
from protocol.units import Microcredits, PeerId
from tests.fakes import ScriptedExecutor
from tests.ledger.fakes import row
from tests.market.world import Node, World, buy, order

pytestmark = pytest.mark.slow
MANUAL = MarketSection(settlement="manual", settle_every_s=0)


async def make_pair(world: World, market: MarketSection = MANUAL) -> tuple[Node, Node]:
    """Return two nodes that both sell, the one whose key sorts lower first."""
    nodes = [await world.node(name, executor=ScriptedExecutor(), market=market) for name in ("a", "b")]
    first, second = sorted(nodes, key=lambda node: node.peer_id)
    world.introduce(first, second)
    world.introduce(second, first)
    return first, second


async def trade(buyer: Node, tokens: int = 200) -> None:
    assert (await buy(buyer, order(tokens=tokens))).error is None


async def books(node: Node, other: Node) -> PairBooks:
    return await node.ledger.pair_books(node.peer_id, other.peer_id)


def promise(payer: Node, payee: Node, number: int, sum_: int) -> None:
    """Let both books say what a contract between them would leave."""
    for node, other, state in ((payer, payee, RequesterState.CLOSED), (payee, payer, ProviderState.CLOSED)):
        entered = row(number, state, metered=sum_, vouchered=sum_, peer=other.peer_id)
        put_contract(node.ledger._store.db, entered)


@contextmanager
def lost_after(nodes: tuple[Node, Node], frames: int) -> Iterator[None]:
    """Let the stream break in the place of the frame that comes after so many, whoever sends it."""
    left = [frames]

    def watch(_frame: bytes) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise StreamLostError("lost")

    kept = [node.network._watch for node in nodes]
    for node in nodes:
        node.network._watch = watch
    try:
        yield
    finally:
        for node, before in zip(nodes, kept, strict=True):
            node.network._watch = before


async def check_one_chain(first: Node, second: Node) -> None:
    """Hold both ledgers against each other."""
    ours, theirs = await books(first, second), await books(second, first)
    assert ours.head == theirs.head and ours.unfinished is None is theirs.unfinished
    assert (ours.received, ours.settled_by_us) == (theirs.settled_by_us, theirs.received)
    for node, other in ((first, second), (second, first)):
        found = await node.ledger.settlement_envelopes(other.peer_id)
        if ours.head.number:
            assert found is not None and verify_settlement_untrusted(found.encode()).last == ours.head.statement
        rows = [it for _key, it in sorted(settled_rows(node.ledger._store.db).items())]
        assert [it.number for it in rows] == list(range(1, ours.head.number + 1))
        for name in ("received", "paid"):
            sums = [getattr(it, name) for it in rows]
            assert sums == sorted(sums)
        assert (await node.ledger.proofs(1))[0] == 0
    for mine in (ours, theirs):
        assert mine.received <= mine.earned and mine.settled_by_us <= mine.promised


@pytest.mark.parametrize("opener", [0, 1])
async def test_both_net_what_they_promised_when_either_asks(world: World, opener: int) -> None:
    pair = await make_pair(world)
    await trade(pair[0], 300)
    await trade(pair[1], 100)
    asking, other = pair[opener], pair[1 - opener]
    outcome = await asking.settler.settle(other.peer_id)
    assert (outcome.number, outcome.statements) == (1, 1)
    assert outcome.received == outcome.paid == min(outcome.earned, outcome.promised) > 0
    assert (await asking.settler.settle(other.peer_id)).statements == 0
    await check_one_chain(*pair)
    for node in pair:
        assert node.sent_kinds().count("statement") == 1
        # With vouchers, statements and rows from the real thing: everything is derived again and compared.
        assert audit(node.ledger._store.db, lambda: None).holds
    # Settled promises leave room for new ones.
    now = trio.current_time()
    left = [node.admission.credit_left(peer.peer_id, now) for node, peer in (pair, pair[::-1])]
    assert max(left) >= MANUAL.credit_new_peer


async def test_payment_outside_is_settled_when_the_payee_acknowledges_it(world: World) -> None:
    payee, payer = await make_pair(world)
    await trade(payer)
    owed = (await books(payee, payer)).earned
    outcome = await payee.settler.settle(payer.peer_id, Microcredits(owed - 10))
    assert (outcome.received, outcome.acknowledged, outcome.number) == (owed - 10, owed - 10, 1)
    with pytest.raises(SettlementError, match=rf"{owed} µc is more than the 10 µc"):
        await payee.settler.settle(payer.peer_id, Microcredits(owed))
    assert (await payee.settler.settle(payer.peer_id, Microcredits(10))).received == owed
    await check_one_chain(payee, payer)


async def test_acknowledgement_stands_when_the_payer_is_away(world: World) -> None:
    payee, payer = await make_pair(world)
    await trade(payer)
    with lost_after((payee, payer), 1), pytest.raises(SettlementError, match="acknowledged all the same"):
        await payee.settler.settle(payer.peer_id, Microcredits(7))
    await trio.sleep(1)  # the broken stream ends on this side, too
    assert (await payer.settler.settle(payee.peer_id)).paid == 7
    await check_one_chain(payee, payer)


async def test_node_that_nets_only_refuses_to_acknowledge_a_payment(world: World) -> None:
    payee, payer = await make_pair(world, MarketSection(settle_every_s=0))
    await trade(payer)
    with pytest.raises(SettlementError, match="nets only"):
        await payee.settler.settle(payer.peer_id, Microcredits(1))
    assert (await books(payee, payer)).acknowledged is None
    with pytest.raises(SettlementError, match="our own peer id"):
        await payee.settler.settle(payee.peer_id)


@pytest.mark.parametrize("frames", range(5))
@pytest.mark.parametrize("opener", [0, 1])
async def test_next_exchange_heals_when_the_stream_breaks_at_any_frame(
    world: World, frames: int, opener: int
) -> None:
    pair = await make_pair(world)
    promise(pair[1], pair[0], 1, 100)
    promise(pair[0], pair[1], 2, 60)
    asking, other = pair[opener], pair[1 - opener]
    with lost_after(pair, frames):
        if frames < 4:
            with pytest.raises(SettlementError):
                await asking.settler.settle(other.peer_id)
        else:
            await asking.settler.settle(other.peer_id)
    # The books go on before the pair meets again: the unfinished statement stays as it was signed.
    promise(pair[0], pair[1], 3, 15)
    assert (await asking.settler.settle(other.peer_id)).received == 75
    await check_one_chain(*pair)
    for node in pair:
        node.ledger._store.db.execute("DELETE FROM contract")  # made up: nothing was signed for them
        await node.ledger.totals()
    world.nodes.clear()


async def test_second_opener_is_refused_while_an_exchange_is_under_way(world: World) -> None:
    first, second = await make_pair(world)
    await trade(first)
    errors: list[Exception] = []

    async def settle(node: Node, peer: PeerId) -> None:
        try:
            await node.settler.settle(peer)
        except SettlementError as exc:
            errors.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(settle, first, second.peer_id)
        nursery.start_soon(settle, first, second.peer_id)
        nursery.start_soon(settle, second, first.peer_id)
    assert any("under way" in str(error) for error in errors)
    await second.settler.settle(first.peer_id)
    await check_one_chain(first, second)


async def test_connected_peers_are_asked_in_time_and_only_when_something_changed(world: World) -> None:
    pair = await make_pair(world)
    await trade(pair[0])
    async with trio.open_nursery() as nursery:
        for node in pair:
            periodic = Settler(
                node.party, node.network, node.settler._means, every_s=600, on_settled=node.admission.settled
            )
            nursery.start_soon(periodic.run)
        await trio.sleep(4_000)
        nursery.cancel_scope.cancel()
    assert (await books(*pair)).head.number == 1
    await check_one_chain(*pair)
    # One exchange in all: they did not refuse each other, nor ask again.
    assert [node.sent_kinds().count("tally") for node in pair] == [1, 1]


async def run_schedule(world: World, seed: int) -> tuple[int, int]:
    """Let two nodes trade, pay, settle and lose each other at random; return (statements, broken exchanges)."""
    rng, broken = random.Random(seed), 0
    pair = await make_pair(world)
    settled = {node.peer_id: 0 for node in pair}
    for number in range(24):
        node, other = rng.sample(pair, 2)
        if rng.random() < 0.4:
            promise(node, other, number, rng.randint(1, 1_000))
            continue
        open_ = (await books(node, other)).earned - (await books(node, other)).received
        told = Microcredits(rng.randint(0, open_) if rng.random() < 0.3 else 0)
        frames = rng.choice((1_000, rng.randrange(8)))
        failing = rng.choice((node, other)) if rng.random() < 0.15 else None
        if failing is not None:
            failing.ledger.broken = True
        try:
            with lost_after(pair, frames):
                await node.settler.settle(other.peer_id, told)
        except (SettlementError, LedgerError):
            broken += 1
        finally:
            for it in pair:
                it.ledger.broken = False
        await trio.sleep(40)
        for it, peer in (pair, pair[::-1]):
            found = await books(it, peer)
            assert settled[it.peer_id] <= found.received <= found.earned
            settled[it.peer_id] = found.received
    node, other = rng.sample(pair, 2)
    await node.settler.settle(other.peer_id)
    await check_one_chain(*pair)
    return (await books(*pair)).head.number, broken


async def run_schedules(nursery: trio.Nursery, folder: Path, seeds: range) -> str:
    """Run each seed in a world of its own and return what happened in all."""
    statements = broken = 0
    for seed in seeds:
        (place := folder / str(seed)).mkdir()
        fabric = MemoryFabric(seed=seed)
        await nursery.start(fabric.run)
        world = World(nursery, fabric, place)
        made, lost = await run_schedule(world, seed)
        statements, broken = statements + made, broken + lost
        for node in list(world.nodes):
            await world.stop(node)
    nursery.cancel_scope.cancel()
    return f"0 of {len(seeds)} ({statements} statements, {broken} exchanges broken off)"


async def test_pair_ends_with_one_chain_when_anything_is_lost(
    nursery: trio.Nursery, tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    figure("settlement: pairs whose chains differ", await run_schedules(nursery, tmp_path, range(5)))


@pytest.mark.deep
async def test_pair_ends_with_one_chain_in_many_histories(
    nursery: trio.Nursery, tmp_path: Path, figure: Callable[[str, str], None]
) -> None:
    figure("settlement: pairs whose chains differ", await run_schedules(nursery, tmp_path, range(100, 160)))


# Liars. They speak the protocol by hand, with an honest node's key and ledger behind them.


async def lie(
    liar: Node, honest: Node, *messages: Signed[Statement], tally: Signed[Tally] | None = None
) -> list[str]:
    """Send a tally and statements; return the kinds of what came back before the stream broke."""
    heard: list[str] = []
    with trio.move_on_after(60):
        async with await liar.network.inner.open_stream(honest.peer_id, CONTROL_PROTOCOL) as stream:
            line = Line(stream, liar.party)
            try:
                await line.tell(tally or await tally_of(liar, honest))
                while "tally" not in heard:
                    heard.append((await line.hear_untrusted(Settled, Tally, Statement)).envelope.kind)
                for message in messages:
                    await line.tell(message)
                    heard.append((await line.hear_untrusted(Statement)).envelope.kind)
            except (StreamLostError, RemoteProtocolError):
                pass
    return heard


async def tally_of(node: Node, other: Node, **changes: object) -> Signed[Tally]:
    own = await books(node, other)
    said = Tally(
        first=own.parties.first,
        second=own.parties.second,
        number=own.head.number,
        last=own.head.hash,
        earned=own.earned,
        promised=own.promised,
        acknowledged=0,
    )
    return node.party.sign(replace(said, **changes))


async def agreed_pair(world: World) -> tuple[Node, Node, Statement]:
    """Return a pair with one statement, and the next one that would be right."""
    first, second = await make_pair(world)
    await trade(first)
    await trade(second, 100)
    await first.settler.settle(second.peer_id)
    await trade(first, 50)
    await trade(second, 70)
    last = (await books(second, first)).head
    own = (await books(first, second)).sums
    assert last.statement is not None
    return (
        first,
        second,
        replace(
            last.statement,
            number=2,
            previous=last.hash,
            first_promised=own.first_promised,
            second_promised=own.second_promised,
            netted=min(own.first_promised, own.second_promised),
        ),
    )


LIES: dict[str, Callable[[Statement], dict[str, object]]] = {
    "it promised less before": lambda it: {"second_promised": it.second_promised + 1},
    "it says that the other promised more": lambda it: {"second_promised": it.second_promised + 10_000},
    "it owns up to more than the payee holds": lambda it: {"first_promised": it.first_promised + 1},
    "it nets more than there is": lambda it: {"netted": it.netted + 1},
    "it takes back what was netted": lambda it: {"netted": it.netted - 1},
    "it takes back a promise": lambda it: {"first_promised": 0, "netted": 0},
    "it was paid, nobody said so": lambda it: {"first_paid": 1},
    "another statement before it": lambda it: {"previous": NO_HASH},
    "a number is left out": lambda it: {"number": 3},
    "it is of others": lambda it: {"second": b"\xff" * 32},
}


async def test_liar_gets_no_signature_and_the_truth_does(world: World) -> None:
    liar, honest, right = await agreed_pair(world)
    for name, changes in LIES.items():
        wrong = liar.party.sign(replace(right, **changes(right)))
        assert await lie(liar, honest, wrong) == ["tally"], name
        assert (await books(honest, liar)).head.number == 1, name
    assert await lie(liar, honest, liar.party.sign(right)) == ["tally", "statement"]
    assert (await books(honest, liar)).head.number == 2
    world.nodes.remove(liar)  # its ledger lacks what it signed by hand


async def test_statement_that_is_sent_again_gets_the_same_signature(world: World) -> None:
    liar, honest, right = await agreed_pair(world)
    signed = liar.party.sign(right)
    for _ in range(2):
        assert await lie(liar, honest, signed) == ["tally", "statement"]
    assert len([it for it in await honest.ledger.statements(liar.peer_id, 10) if it.is_signed_by_both]) == 2
    world.nodes.remove(liar)


async def test_rewritten_statement_convicts_its_signer(world: World) -> None:
    liar, honest, right = await agreed_pair(world)
    old = (await books(honest, liar)).head.statement
    assert old is not None
    rewritten = liar.party.sign(replace(old, netted=old.netted - 1))
    assert await lie(liar, honest, rewritten) == ["tally"]
    count, (kept,) = await honest.ledger.proofs(10)
    assert (count, kept.offender, kept.kind) == (1, liar.peer_id, "statement")
    assert verify_proof_untrusted(kept.proof).offender == liar.peer_id
    assert right.number == 2


async def test_first_refuses_a_statement_that_the_second_proposes(world: World) -> None:
    honest, liar, right = await agreed_pair(world)
    heard = await lie(liar, honest, liar.party.sign(replace(right, first_promised=right.first_promised + 1)))
    # What comes back is the first's own statement, not a signature under the liar's.
    assert heard == ["tally", "statement"]
    mine = await books(honest, liar)
    assert mine.head.number == 1 and mine.unfinished is not None
    assert mine.unfinished.message.first_promised == right.first_promised
    assert (await liar.settler.settle(honest.peer_id)).number == 2
    await check_one_chain(honest, liar)


TALLIES: dict[str, dict[str, object]] = {
    "of others": {"first": b"\x01" * 32},
    "a payment that nobody signed": {"acknowledged": 5},
}


@pytest.mark.parametrize("name", TALLIES)
async def test_tally_is_refused_when_it_is_not_of_the_pair_or_not_signed_for(world: World, name: str) -> None:
    liar, honest = await make_pair(world)
    await trade(liar)
    assert await lie(liar, honest, tally=await tally_of(liar, honest, **TALLIES[name])) == []


async def test_first_signs_nothing_when_the_other_holds_another_chain(world: World) -> None:
    honest, liar, _right = await agreed_pair(world)
    for changes in ({"number": 7}, {"last": b"\x07" * 32}, {"number": 0, "last": NO_HASH}):
        assert await lie(liar, honest, tally=await tally_of(liar, honest, **changes)) == ["tally"]
    assert (await books(honest, liar)).unfinished is None


async def test_acknowledgement_that_takes_back_is_refused_and_convicts(world: World) -> None:
    payee, payer = await make_pair(world)
    await trade(payer)
    await payee.settler.settle(payer.peer_id, Microcredits(9))
    lower = Settled(payer=payer.peer_id, number=1, cumulative=8, made_at_ms=1)
    async with await payee.network.inner.open_stream(payer.peer_id, CONTROL_PROTOCOL) as stream:
        line = Line(stream, payee.party)
        await line.tell(payee.party.sign(lower))
        with pytest.raises(StreamLostError):
            await line.hear_untrusted(Tally)
    assert (await books(payer, payee)).settled_by_us == 9
    count, (kept,) = await payer.ledger.proofs(10)
    assert (count, kept.offender, kept.kind) == (1, payee.peer_id, "settled")


async def test_stranger_to_whom_nothing_was_promised_leaves_no_entry(world: World) -> None:
    stranger, node = await make_pair(world)
    thanks = Settled(payer=node.peer_id, number=1, cumulative=8, made_at_ms=1)
    async with await stranger.network.inner.open_stream(node.peer_id, CONTROL_PROTOCOL) as stream:
        line = Line(stream, stranger.party)
        await line.tell(stranger.party.sign(thanks))
        with pytest.raises(StreamLostError):
            await line.hear_untrusted(Tally)
    assert not await node.ledger.entries_after(0, 10)
