"""Real daemons whose disk refuses while they run: both stay up, say so, and go on by themselves.

The system itself refuses: a limit on the size of files, set on the running process, fails the ledger's next write
as a disk does that has no room (EFBIG for ENOSPC).
"""

import json
import resource
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from node.home import Home
from node.testnet.network import Node
from node.testnet.real_client import wait_known, wait_ready
from tests.integration.failover_campaign import make_plan, running
from tests.integration.paced_model import NAME, write_paced_store

FILE_BYTES_MAX = 4096

pytestmark = [pytest.mark.integration, pytest.mark.slow]


def refuse(node: Node, refuses: bool) -> None:
    hard = resource.prlimit(node.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(node.pid, resource.RLIMIT_FSIZE, (FILE_BYTES_MAX if refuses else hard, hard))


def call(node: Node, path: str, body: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:  # JSON objects
    token = Home(Path(node.home)).read_token()
    request = urllib.request.Request(
        node.url + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"authorization": f"Bearer {token}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as exc:
        return exc.code, json.load(exc)


def order(node: Node) -> tuple[int, dict[str, Any]]:
    turns = [{"role": "user", "content": "go on"}]
    return call(node, "/v1/chat/completions", {"model": NAME, "messages": turns, "max_tokens": 16, "seed": 1})


def test_daemons_outlive_disks_that_refuse_and_go_on_without_a_restart(tmp_path: Path, figure: Any) -> None:
    store = write_paced_store(tmp_path / "store")
    with running(make_plan(tmp_path / "net", store, providers=1, dtype="fp32", models=(NAME,))) as fleet:
        (seller,), (buyer,) = ([fleet.nodes[it] for it in names] for names in (fleet.providers, fleet.requesters))
        wait_known([buyer], [seller])
        status, undisturbed = order(buyer)
        assert status == 200, undisturbed
        for broken in (buyer, seller):
            refuse(broken, True)
            answers = [order(buyer) for _ in range(2)]
            assert [status for status, _ in answers] == [503, 503], answers
            code = "disk" if broken is buyer else "no_capacity"
            assert answers[1][1]["error"]["code"] == code, answers
            ready, checks = call(broken, "/readyz")
            assert ready == 503 and "cannot be written" in checks["checks"]["ledger"]
            assert "cannot be written" in call(broken, "/api/v1/status")[1]["problems"]["ledger"]
            refuse(broken, False)
            who = "requester" if broken is buyer else "provider"
            figure(f"disk: ready again by itself, {who}", f"{wait_ready(broken):.1f} s")
        status, again = order(buyer)
        assert status == 200, again
        assert again["choices"][0]["message"] == undisturbed["choices"][0]["message"]
        for node in (buyer, seller):
            process = node.process()
            assert process is not None and process.is_running()
