import json

import pytest

from tests.cli.fakes import PEER, FakeDaemon, souk

OFFER = {"name": "smol", "model_id": "ab" * 32, "context_tokens": 2048, "price_in": 200_000, "price_out": 800_000}
PEERS = {
    "schema": 1,
    "peers": [
        {
            "peer_id": PEER, "name": "gpu\x1b[31m", "connected": True, "advert_age_ms": 1500,
            "models": [OFFER | {"tokens_per_s": 41.5}], "slots_free": 3, "slots_total": 4, "queue_ms": 0,
            "devices": ["cpu"],
        },
        {"peer_id": PEER, "name": "client", "connected": False, "advert_age_ms": None, "slots_total": None},
    ],
}  # fmt: skip


def test_peers_are_a_table_without_control_characters(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/peers", PEERS)
    out = souk("peers").out
    assert "\x1b" not in out
    head, first, second = out.splitlines()
    assert head.split()[:4] == ["NAME", "PEER", "STATE", "MODEL"]
    for part in ("…bziXHP7Z", "connected", "smol", "800,000", "41.5", "3/4", "1.5 s"):
        assert part in first
    assert "known" in second and "None" not in second


def test_peers_are_one_a_line_when_lines_are_wanted(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/peers", PEERS)
    lines = souk("peers", "ls", "-o", "jsonl").out.splitlines()
    assert [json.loads(line) for line in lines] == PEERS["peers"]


def test_peers_say_what_to_do_when_there_are_none(daemon: FakeDaemon) -> None:
    daemon.answer("GET /api/v1/peers", {"schema": 1, "peers": []})
    assert "--bootstrap" in souk("peers").out


def test_connect_prints_the_peer_it_reached(daemon: FakeDaemon) -> None:
    daemon.answer("POST /api/v1/connect", {"peer_id": PEER})
    assert souk("peers", "connect", f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}").out == f"{PEER}\n"
    assert daemon.body == {"address": f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}"}


@pytest.mark.parametrize("address", ["xx", "/ip4/1.2.3.4/tcp/1"])
def test_connect_refuses_what_is_no_address(daemon: FakeDaemon, address: str) -> None:
    ran = souk("peers", "connect", address)
    assert ran.code == 2 and address in ran.err and not daemon.asked


OTHER, THIRD = f"12D3KooW{'x' * 44}", f"12D3KooW{'y' * 36}bziXHP7Z"
BAN = {"since_ms": 0, "reason": "sends garbage"}


def peer(peer_id: str, name: str | None, **more: object) -> dict[str, object]:
    shape: dict[str, object] = {
        "peer_id": peer_id,
        "name": name,
        "connected": True,
        "advert_age_ms": 9,
        "models": [],
        "devices": [],
    }
    return shape | {"slots_free": 1, "slots_total": 2, "queue_ms": 0, "ban": None} | more


MANY = {
    "schema": 1,
    "peers": [
        peer(PEER, "a", models=[OFFER | {"tokens_per_s": 5.0}], advert_age_ms=30, queue_ms=7),
        peer(OTHER, "b", models=[OFFER | {"tokens_per_s": 9.0, "price_out": 1}], connected=False),
        peer(THIRD, None, connected=False, ban=BAN, advert_age_ms=None, queue_ms=None, slots_total=None),
    ],
}


@pytest.fixture
def many(daemon: FakeDaemon) -> FakeDaemon:
    daemon.answer("GET /api/v1/peers", MANY)
    return daemon


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("", [PEER, OTHER, THIRD]),
        ("--state connected", [PEER]),
        ("--state known", [OTHER]),
        ("--state banned", [THIRD]),
        ("--model smol", [PEER, OTHER]),
        ("--model abababab --sort price --limit 1", [OTHER]),
        ("--model ababab", []),
        ("--sort speed", [OTHER, PEER, THIRD]),
        ("--sort queue", [OTHER, PEER, THIRD]),
        ("--sort heard --limit 2", [OTHER, PEER]),
    ],
)
def test_peers_are_chosen_and_sorted(many: FakeDaemon, options: str, expected: list[str]) -> None:
    ran = souk("peers", "ls", "-o", "json", *options.split())
    assert [it["peer_id"] for it in ran.json()["peers"]] == expected
    assert bool(ran.err) is not bool(expected)


def test_table_shows_who_is_banned_and_only_the_model_that_was_named(many: FakeDaemon) -> None:
    assert souk("peers", "ls", "--state", "banned").out.splitlines()[1].split()[:3] == ["-", "…bziXHP7Z", "banned"]
    offers = [OFFER | {"tokens_per_s": 1.0}, OFFER | {"name": "big", "tokens_per_s": 1.0}]
    two = peer(PEER, "a", models=offers)
    many.answer("GET /api/v1/peers", {"schema": 1, "peers": [two]})
    assert len(souk("peers", "ls").out.splitlines()) == 3
    assert len(souk("peers", "ls", "--model", "smol").out.splitlines()) == 2


@pytest.mark.parametrize("typed", ["b", OTHER, OTHER[:12], OTHER[-4:], f"…{OTHER[-8:]}"])
def test_peer_is_found_by_name_and_by_either_end_of_its_id(many: FakeDaemon, typed: str) -> None:
    many.answer(f"POST /api/v1/peers/{OTHER}/disconnect", {"peer_id": OTHER, "was_connected": True})
    ran = souk("peers", "disconnect", typed)
    assert (ran.code, ran.out, ran.err) == (0, f"{OTHER}\n", "disconnected\n")


@pytest.mark.parametrize("verb", ["show", "ping", "disconnect", "ban", "unban"])
def test_nothing_is_asked_when_nobody_or_several_are_meant(many: FakeDaemon, verb: str) -> None:
    nobody = souk("peers", verb, "12D3")
    assert nobody.code == 5 and "no peer is called 12D3" in nobody.err
    several = souk("peers", verb, "bziXHP7Z")
    assert several.code == 2 and PEER in several.err and THIRD in several.err and "2 peers" in several.err
    assert {path for path, _body, _headers in many.asked} == {"GET /api/v1/peers"}


def test_peer_that_no_daemon_knows_ends_with_5(daemon: FakeDaemon) -> None:
    error = {"error": {"message": f"{OTHER} is neither connected nor advertised", "code": "peer_not_found"}}
    daemon.answer(f"GET /api/v1/peers/{OTHER}", error, status=404)
    ran = souk("peers", "show", OTHER)
    assert ran.code == 5 and "neither connected" in ran.err


def test_show_tells_all_there_is(many: FakeDaemon) -> None:
    account = {
        "peer_id": PEER, "earned_microcredits": 1234, "spent_microcredits": 0, "unpaid_by_them_microcredits": 0,
        "unpaid_by_us_microcredits": 0, "sold": {"closed": 2, "failed": 1}, "bought": {}, "last_ms": 0,
    }  # fmt: skip
    device = {"kind": "cpu", "name": "a\x1bcpu", "memory_free_bytes": 1 << 30, "memory_total_bytes": 2 << 30}
    link = {"address": "/ip4/192.0.2.1/tcp/9", "inbound": True, "rtt_ms": 12.5}
    shown = peer(PEER, "gpu-2", models=[OFFER | {"tokens_per_s": 41.5}], devices=[device], ban=BAN)
    answer = {
        "schema": 1, "peer": shown, "addresses": ["/ip4/192.0.2.1/tcp/11501"], "connections": [link],
        "protocols": ["/souk/job/1"], "versions": [1], "account": account,
    }  # fmt: skip
    many.answer(f"GET /api/v1/peers/{PEER}", answer)
    out = souk("peers", "show", "a").out
    for part in (
        PEER, "gpu-2",
        "1970-01-01 00:00:00Z  sends garbage", "(it dialled, round trip 12.5 ms)", "2 closed, 1 failed",
        "/ip4/192.0.2.1/tcp/11501", "/souk/job/1", "1,234 µc", "1 of 2 free", "1.0 GiB of 2.0 GiB", "800,000",
    ):  # fmt: skip
        assert part in out
    assert "\x1b" not in out and "None" not in out and "bought" not in out
    bare = {"schema": 1, "peer": peer(PEER, None, slots_total=None, advert_age_ms=None, queue_ms=None)}
    many.answer(f"GET /api/v1/peers/{PEER}", bare | {"account": None})
    assert souk("peers", "show", PEER).out == f"peer   {PEER}\nstate  connected\n"


def test_ping_counts_what_comes_back(daemon: FakeDaemon) -> None:
    daemon.answer(f"POST /api/v1/peers/{PEER}/ping", {"schema": 1, "peer_id": PEER, "rtt_ms": 2.5})
    ran = souk("peers", "ping", PEER)
    assert (ran.code, len(daemon.asked), len(ran.err.splitlines())) == (0, 3, 3)
    assert ran.out == "…bziXHP7Z: 3 of 3 answered; least 2.5 ms, median 2.5 ms, most 2.5 ms\n"
    found = souk("peers", "ping", PEER, "-c", "1", "-o", "json").json()
    assert (found["sent"], found["answered"], found["rtt_ms"], found["rtt_ms_median"]) == (1, 1, [2.5], 2.5)


@pytest.mark.parametrize(("status", "code"), [(504, "no_answer"), (502, "unreachable")])
def test_ping_ends_with_1_when_nothing_comes_back(daemon: FakeDaemon, status: int, code: str) -> None:
    error = {"error": {"message": "no way \x1b there", "code": code}}
    daemon.answer(f"POST /api/v1/peers/{PEER}/ping", error, status=status)
    ran = souk("peers", "ping", PEER, "-c", "2")
    assert (ran.code, ran.out) == (1, "…bziXHP7Z: 0 of 2 answered\n")
    assert ran.err.splitlines() == ["1: no way � there", "2: no way � there"]
    daemon.answer(
        f"POST /api/v1/peers/{PEER}/ping", {"error": {"message": "b", "code": "peer_banned"}}, status=409
    )
    assert souk("peers", "ping", PEER).code == 1 and len(daemon.asked) == 3


def test_ban_and_unban_name_the_peer_and_carry_the_reason(many: FakeDaemon) -> None:
    many.answer(f"POST /api/v1/peers/{OTHER}/ban", {"schema": 1, "peer_id": OTHER, "ban": BAN})
    ran = souk("peers", "ban", "b", "--reason", "sends garbage")
    assert (ran.code, ran.out) == (0, f"{OTHER}\n") and many.body == {"reason": "sends garbage"}
    many.answer(f"POST /api/v1/peers/{OTHER}/unban", {"schema": 1, "peer_id": OTHER, "ban": None})
    assert souk("peers", "unban", "b", "-q").out == f"{OTHER}\n"
