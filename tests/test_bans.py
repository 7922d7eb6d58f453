import errno
import json
import os
from pathlib import Path

import pytest

from node import durable
from node.bans import BANS_MAX, REASON_CHARS_MAX, Ban, BanList, BanListError, BanNotSyncedError
from protocol.identity import peer_id_to_text
from protocol.units import PeerId, UnixMs
from tests.fakes import signer_of

ONE, TWO = signer_of("one").peer_id, signer_of("two").peer_id


def ban(peer_id: PeerId, *, since_ms: int = 7, reason: str = "") -> Ban:
    return Ban(peer_id=peer_id, since_ms=UnixMs(since_ms), reason=reason)


def read(path: Path) -> BanList:
    found = BanList(path)
    found.read()
    return found


async def test_bans_are_there_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "bans.json"
    bans = read(path)
    assert not len(bans) and ONE not in bans
    await bans.add(ban(ONE, since_ms=9, reason="sends garbage \u2028 “always”"))
    await bans.add(ban(TWO))
    again = read(path)
    assert again.all() == bans.all() == (ban(TWO), ban(ONE, since_ms=9, reason="sends garbage \u2028 “always”"))
    assert ONE in again and again.find(TWO) == ban(TWO)
    assert path.stat().st_mode & 0o777 == 0o600 and os.listdir(tmp_path) == ["bans.json"]
    assert await again.remove(ONE) and not await again.remove(ONE)
    assert ONE not in again and read(path).all() == (ban(TWO),)


async def test_second_ban_of_a_peer_replaces_the_first(tmp_path: Path) -> None:
    bans = BanList(tmp_path / "bans.json")
    await bans.add(ban(ONE, reason="first"))
    await bans.add(ban(ONE, since_ms=8, reason="second"))
    assert bans.all() == read(tmp_path / "bans.json").all() == (ban(ONE, since_ms=8, reason="second"),)


GOOD = {"peer_id": peer_id_to_text(ONE), "since_ms": 1, "reason": ""}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "bans": []}',
        json.dumps({"version": 1, "bans": [GOOD | {"peer_id": "12D3KooWnobody"}]}).encode(),
        json.dumps({"version": 1, "bans": [GOOD | {"since_ms": -1}]}).encode(),
        json.dumps({"version": 1, "bans": [GOOD | {"reason": "x" * (REASON_CHARS_MAX + 1)}]}).encode(),
        json.dumps({"version": 1, "bans": [GOOD | {"until": 5}]}).encode(),
        b"\xff\xfe",
        bytes(9 << 20),
    ],
)
def test_damaged_list_is_refused_with_its_path_and_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bans.json"
    path.write_bytes(content)
    with pytest.raises(BanListError, match=r"bans\.json cannot be read .* move it away and ban again"):
        read(path)
    assert path.read_bytes() == content


async def test_nothing_changes_when_the_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "bans.json"
    bans = BanList(path)
    await bans.add(ban(ONE))
    (tmp_path / "home").rename(tmp_path / "away")
    with pytest.raises(BanListError, match="cannot be written"):
        await bans.add(ban(TWO))
    with pytest.raises(BanListError, match="nothing has changed"):
        await bans.remove(ONE)
    assert bans.all() == (ban(ONE),)


async def test_ban_is_followed_and_told_so_when_only_its_folder_is_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_synced(_folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    bans = BanList(tmp_path / "bans.json")
    monkeypatch.setattr(durable, "sync_folder", not_synced)
    with pytest.raises(BanNotSyncedError, match=r"it is done, .* a power cut may undo it"):
        await bans.add(ban(ONE))
    assert bans.all() == read(tmp_path / "bans.json").all() == (ban(ONE),)


async def test_list_is_bounded() -> None:
    bans = BanList()
    with pytest.raises(BanListError, match="at most 200 characters"):
        await bans.add(ban(ONE, reason="x" * (REASON_CHARS_MAX + 1)))
    for number in range(BANS_MAX):
        await bans.add(ban(PeerId(number.to_bytes(32, "big"))))
    with pytest.raises(BanListError, match="unban"):
        await bans.add(ban(ONE))
    assert len(bans) == BANS_MAX
