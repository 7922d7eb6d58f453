from pathlib import Path

import pytest

from node.execution.energy import EnergyBook, nvml_counter, power_counter, rapl_counter


class Meter:
    """A counter that a test turns."""

    def __init__(self, value: int | None = 0) -> None:
        self.value = value

    def __call__(self) -> int | None:
        return self.value

    def turn(self, millijoules: int) -> None:
        assert self.value is not None
        self.value += millijoules


class Card:
    """A driver with one card; without a counter it tells its power alone."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, energy: int | None = None, power: int | None = None) -> None:
        self.energy, self.power = energy, power

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1":
            raise self.NVMLError("no such card")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        return self._told(self.energy)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        return self._told(self.power)

    def _told(self, value: int | None) -> int:
        if value is None:
            raise self.NVMLError("not supported")
        return value


def test_job_alone_takes_all_and_idle_time_is_nobodys() -> None:
    meter = Meter(500)
    book = EnergyBook(meter)
    meter.turn(900)
    book.start()
    meter.turn(120)
    book.add_tokens(1, 3)
    assert book.end(1) == 120
    meter.turn(70)
    book.start()
    assert book.end(2) == 0


def test_jobs_of_a_batch_share_by_their_tokens_and_only_while_both_run() -> None:
    meter = Meter()
    book = EnergyBook(meter)
    book.start()
    book.add_tokens(1, 10)
    meter.turn(100)
    book.start()
    book.add_tokens(1, 10)
    book.add_tokens(2, 30)
    meter.turn(400)
    ended = book.end(1)
    meter.turn(50)
    assert (ended, book.end(2)) == (100 + 100, 300 + 50)


def test_shares_add_up_to_what_the_device_took() -> None:
    meter = Meter()
    book = EnergyBook(meter)
    taken = 0
    jobs: list[int] = []
    for tokens in range(8):
        jobs.append(book.start())
        meter.turn(111)
        for job in jobs:
            book.add_tokens(job, job + tokens)
    for job in jobs:
        meter.turn(7)
        part = book.end(job)
        assert part is not None
        taken += part
    assert taken == pytest.approx(8 * 118, abs=4)


def test_energy_is_unknown_and_not_guessed_when_the_device_does_not_tell() -> None:
    meter = Meter(None)
    book = EnergyBook(meter)
    book.start()
    book.add_tokens(1, 3)
    assert book.end(1) is None
    # A counter that went back was another one: the driver was loaded again.
    meter.value = 50
    book.start()
    meter.value = 20
    assert book.end(2) is None


def test_cards_counter_comes_before_its_power_and_both_may_be_missing() -> None:
    now = [0.0]
    counted = nvml_counter(Card(energy=7_000, power=100_000), "GPU-1", lambda: now[0])
    assert counted() == 7_000
    powered = nvml_counter(Card(power=100_000), "GPU-1", lambda: now[0])
    assert powered() == 0
    now[0] = 2.0
    assert powered() == 200_000
    silent = nvml_counter(Card(), "GPU-1", lambda: now[0])
    assert silent() is None
    for counter in (nvml_counter(None, "GPU-1", lambda: 0.0), nvml_counter(Card(energy=1), "GPU-2", lambda: 0.0)):
        assert counter() is None


def test_power_is_averaged_between_two_looks() -> None:
    now, power = [0.0], [100]
    counter = power_counter(lambda: power[0], lambda: now[0])
    now[0], power[0] = 4.0, 300
    assert counter() == 800


def test_cpu_counter_adds_its_packages_and_follows_a_wrap(tmp_path: Path) -> None:
    for package, microjoules in (("intel-rapl:0", 9_000_000), ("intel-rapl:1", 1_000_000), ("intel-rapl:0:0", 5)):
        (tmp_path / package).mkdir()
        (tmp_path / package / "energy_uj").write_text(f"{microjoules}\n")
        (tmp_path / package / "max_energy_range_uj").write_text("10000000\n")
    counter = rapl_counter(tmp_path)
    assert counter() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("1500000\n")
    assert counter() == 2_000 + 500
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert counter() is None
    assert rapl_counter(tmp_path / "absent")() is None
