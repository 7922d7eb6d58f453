import itertools

import pytest

from node.cli.answer import Answer
from node.cli.client import Daemon, find_daemon
from node.cli.demo import check_receipt, wait_for_model
from node.cli.exits import CliError
from node.cli.options import Globals
from protocol.identity import peer_id_to_text
from scripts.spec.examples import NETWORK
from tests.cli.fakes import FakeDaemon
from tests.protocol.fakes import sealed

CONTRACT = sealed("contract")
CONTRACT_ID = CONTRACT.message_id.hex()
PROVIDER = peer_id_to_text(sealed("accept").signer)


@pytest.fixture
def client(daemon: FakeDaemon) -> Daemon:
    messages = [{"type": kind, "envelope": sealed(kind).envelope.raw.hex()} for kind in ("contract", "accept")]
    bundle = {"network": NETWORK.hex(), "messages": messages}
    daemon.answer(f"GET /api/v1/receipts/{CONTRACT_ID}", {"schema": 1, "bundle": bundle})
    return find_daemon(Globals(home_flag=str(daemon.home.path)))


def answer(**souk: object) -> Answer:
    said = {"contract_id": CONTRACT_ID, "peer": PROVIDER, "cost_microcredits": None} | souk
    return Answer(text="x", finish_reason="stop", usage={}, souk=said)


def test_receipt_is_accepted_when_it_proves_what_the_daemon_said(client: Daemon) -> None:
    assert check_receipt(client, answer())["contract_id"] == CONTRACT_ID


@pytest.mark.parametrize("souk", [{"peer": "12D3"}, {"cost_microcredits": 5}])
def test_receipt_is_refused_when_the_daemon_said_something_else(client: Daemon, souk: dict[str, object]) -> None:
    with pytest.raises(CliError, match=f"proves {next(iter(souk)).replace('peer', 'provider')}"):
        check_receipt(client, answer(**souk))


def test_receipt_is_refused_when_it_does_not_verify(client: Daemon, daemon: FakeDaemon) -> None:
    daemon.answer(f"GET /api/v1/receipts/{CONTRACT_ID}", {"schema": 1, "bundle": {"network": "", "messages": []}})
    with pytest.raises(CliError, match="does not hold"):
        check_receipt(client, answer())


def test_demo_is_refused_when_no_contract_was_made(client: Daemon) -> None:
    with pytest.raises(CliError, match="without a contract"):
        check_receipt(client, answer(contract_id=None))


def test_buyer_waits_until_a_peer_offers_the_model(client: Daemon, daemon: FakeDaemon) -> None:
    local = {"name": "here", "local": True, "peers": 0}
    daemon.answer("GET /api/v1/models", {"schema": 1, "models": [local, {"name": "smol", "peers": 1}]})
    assert wait_for_model(client, None, lambda: 0.0) == "smol"
    assert wait_for_model(client, "smol", lambda: 0.0) == "smol"
    with pytest.raises(CliError, match="heard of no here"):
        wait_for_model(client, "here", itertools.count(0, 31).__next__)
