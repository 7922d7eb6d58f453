import os
import signal

import pytest

from node.testnet.interrupts import Interrupts


@pytest.fixture
def interrupts():
    made = Interrupts()
    with made.installed():
        yield made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_interrupts_at_once_when_nothing_is_held(interrupts: Interrupts, number: signal.Signals) -> None:
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_signal_waits_when_something_is_held(interrupts: Interrupts) -> None:
    reached = []

    def work() -> None:
        with interrupts.held():
            with interrupts.held():
                os.kill(os.getpid(), signal.SIGINT)
                reached.append("inner")
            reached.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["inner", "outer"]


def test_signal_changes_nothing_when_all_is_being_stopped(interrupts: Interrupts) -> None:
    interrupts.ignore()
    os.kill(os.getpid(), signal.SIGTERM)
    with interrupts.held():
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back_when_the_block_ends() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts().installed():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
