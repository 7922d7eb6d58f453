import datetime

from node.testnet.machine import describe_machine


def test_machine_says_where_and_when() -> None:
    machine = describe_machine()
    assert machine.cpu and machine.cores >= 1 and machine.commit
    assert datetime.datetime.fromisoformat(machine.date).tzinfo is not None
