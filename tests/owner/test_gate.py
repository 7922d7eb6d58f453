"""The gate over real admission, in virtual time; the machine's readings are scripted."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
import trio
from trio.testing import MockClock

from node.config import MarketSection, OwnerSection
from node.market.admission import Admission, Place
from node.owner.gate import Gate
from node.owner.policy import Reading
from protocol.units import MessageId, Microcredits, PeerId

MIDNIGHT = datetime(2026, 11, 23)
JOB = MessageId(b"j" * 32)


@dataclass
class Machine:
    """Readings, a clock that shows trio's time after midnight, and whoever runs jobs."""

    admission: Admission = field(default_factory=lambda: Admission(MarketSection()))
    reading: Reading = field(default_factory=Reading)
    read: int = 0
    changes: int = 0
    handed_back: list[float] = field(default_factory=list)

    async def take_reading(self) -> Reading:
        self.read += 1
        return self.reading

    def local_time(self) -> datetime:
        return MIDNIGHT + timedelta(seconds=trio.current_time())

    def changed(self) -> None:
        self.changes += 1

    async def hand_back(self) -> int:
        self.handed_back.append(trio.current_time())
        self.admission.settle(JOB, unpaid=0)
        return 1

    def begin_job(self) -> None:
        place = Place(peer_id=PeerId(bytes(32)), reserve=Microcredits(0))
        self.admission.slots = 1
        self.admission.take(JOB, place, quote_id=MessageId(b""), now=trio.current_time())

    def gate(self, owner: OwnerSection) -> Gate:
        return Gate(
            self.admission,
            self,
            owner,
            read=self.take_reading,
            local_time=self.local_time,
            on_change=self.changed,
        )


@pytest.fixture
def machine() -> Machine:
    return Machine()


async def test_gate_follows_the_hours_and_tells_the_advert(
    machine: Machine, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    gate = machine.gate(OwnerSection(hours=("01:00-02:00",), check_every_s=60))
    await nursery.start(gate.run)
    assert not gate.state.is_open and gate.state.opens_at == MIDNIGHT + timedelta(hours=1)
    closed = machine.admission.closed
    assert closed is not None and closed.retry_after_ms == 3_600_000
    assert "01:00" not in closed.message and "hours" in closed.message
    await trio.sleep(3_601)
    assert gate.state.is_open and machine.admission.closed is None and machine.changes == 2
    await trio.sleep(3_600)
    assert not gate.state.is_open and machine.changes == 3


async def test_gate_reads_nothing_when_no_policy_asks_for_it(
    machine: Machine, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    gate = machine.gate(OwnerSection())
    await nursery.start(gate.run)
    await trio.sleep(86_400)
    assert gate.state.is_open and not machine.read and not machine.changes


async def test_gate_lets_jobs_go_on_for_the_grace_and_hands_them_back_then(
    machine: Machine, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    gate = machine.gate(OwnerSection(idle_s=300, grace_s=45, check_every_s=10))
    machine.reading = Reading(idle_s=400.0)
    await nursery.start(gate.run)
    machine.begin_job()
    machine.reading = Reading(idle_s=0.0)
    await trio.sleep(11)
    assert not gate.state.is_open and gate.state.hands_back_in_s == 44
    await trio.sleep(45)
    assert machine.handed_back == [55]


async def test_gate_hands_nothing_back_when_it_opens_within_the_grace(
    machine: Machine, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    gate = machine.gate(OwnerSection(temperature_celsius_max=80, calm_s=0, grace_s=45, check_every_s=10))
    await nursery.start(gate.run)
    machine.begin_job()
    machine.reading = Reading(temperature_celsius=90.0)
    await trio.sleep(15)
    assert gate.state.reasons == ("90 °C on a GPU, at most 80 may be (owner.temperature_celsius_max)",)
    machine.reading = Reading(temperature_celsius=70.0)
    await trio.sleep(100)
    assert gate.state.is_open and not machine.handed_back


async def test_drain_waits_for_jobs_as_long_as_they_take_when_it_has_no_grace(
    machine: Machine, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    gate = machine.gate(OwnerSection(grace_s=1))
    await nursery.start(gate.run)
    machine.begin_job()
    gate.drain(None)
    await trio.sleep(10_000)
    assert not machine.handed_back and gate.state.by_hand and gate.state.opens_at is None
    gate.drain(5.0)
    await trio.sleep(6)
    assert machine.handed_back == [10_005]
    gate.resume()
    assert gate.state.is_open


async def test_drain_without_a_grace_leaves_the_policy_its_own(
    machine: Machine, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    gate = machine.gate(OwnerSection(temperature_celsius_max=80, grace_s=45, check_every_s=10))
    await nursery.start(gate.run)
    machine.begin_job()
    machine.reading = Reading(temperature_celsius=90.0)
    await trio.sleep(11)
    gate.drain(None)
    assert gate.state.hands_back_in_s == 44
    await trio.sleep(45)
    assert machine.handed_back == [55]
    # Drained and cool again: whoever runs then has time once more.
    machine.reading = Reading(temperature_celsius=70.0)
    await trio.sleep(100)
    assert gate.state.by_hand and gate.state.hands_back_in_s is None


async def test_resume_does_not_open_when_the_policy_says_otherwise(
    machine: Machine, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    gate = machine.gate(OwnerSection(hours=("05:00-06:00",)))
    await nursery.start(gate.run)
    gate.drain(None)
    gate.resume()
    assert not gate.state.is_open and not gate.state.by_hand


async def test_gate_follows_another_policy_at_once(
    machine: Machine, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    gate = machine.gate(OwnerSection())
    await nursery.start(gate.run)
    gate.obey(OwnerSection(hours=("05:00-06:00",)))
    await trio.testing.wait_all_tasks_blocked()
    assert not gate.state.is_open
    gate.obey(OwnerSection())
    await trio.testing.wait_all_tasks_blocked()
    assert gate.state.is_open


async def test_gate_names_what_the_machine_does_not_tell(
    machine: Machine, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    gate = machine.gate(OwnerSection(power_watts_max=300, idle_s=60))
    machine.reading = Reading(idle_s=100.0)
    await nursery.start(gate.run)
    assert gate.state.is_open and gate.state.unread == ("power_watts",)


async def test_gate_stops_when_cancelled(machine: Machine, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(machine.gate(OwnerSection(idle_s=60)).run)
        nursery.cancel_scope.cancel()
