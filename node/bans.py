"""The owner's bans: with whom this node has nothing to do any more, kept in the home across restarts.

A file and not the ledger: the ledger is what was signed, append-only and rebuilt from signed messages, and a ban
is nobody's business but the owner's. What a ban does is said by ``node/market/banning.py``; the rooms ask here.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
import trio
from msgspec import Meta

from node.durable import NotSyncedError, replace_file
from node.errors import NodeError
from protocol.errors import RemoteProtocolError
from protocol.identity import peer_id_from_text_untrusted, peer_id_to_text
from protocol.units import PeerId, UnixMs

# An owner's list by hand. It is no defence against strangers, who make names as they like: limits are.
BANS_MAX: Final = 4096
REASON_CHARS_MAX: Final = 200
# Every ban with the longest reason, each character of it escaped.
_FILE_BYTES_MAX: Final = 8 << 20


class BanListError(NodeError):
    """The list cannot be read or written, or is full; nothing about it has changed."""


class BanNotSyncedError(BanListError):
    """The list has changed, and is followed; but the disk did not confirm it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ban:
    """One peer that the owner wants nothing to do with."""

    peer_id: PeerId
    since_ms: UnixMs
    reason: str = ""
    """The owner's own words; no peer is told."""


class _Line(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    peer_id: str
    since_ms: Annotated[int, Meta(ge=0, lt=1 << 53)]
    reason: Annotated[str, Meta(max_length=REASON_CHARS_MAX)] = ""


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1]
    bans: Annotated[list[_Line], Meta(max_length=BANS_MAX)]


class BanList:
    """All bans by peer. With no path they are kept in memory only. ``read`` it before anybody asks."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._bans: dict[PeerId, Ban] = {}
        self._writing = trio.Lock()
        # Its own: the threads that others wait for are not to be had when a disk hangs.
        self._thread = trio.CapacityLimiter(1)

    def read(self) -> None:
        """Take over what the file says; a missing one bans nobody. Blocks.

        Raises: BanListError: it is damaged. A node that went on without it would let in whom its owner threw out.
        """
        if self._path is None:
            return
        try:
            with open(self._path, "rb", opener=_open_nofollow) as file:
                data = file.read(_FILE_BYTES_MAX + 1)
            if len(data) > _FILE_BYTES_MAX:
                raise ValueError(f"more than {_FILE_BYTES_MAX} bytes")
            lines = msgspec.json.decode(data, type=_File).bans
            self._bans = {ban.peer_id: ban for ban in map(_ban, lines)}
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError, ValueError, RemoteProtocolError) as exc:
            raise BanListError(
                f"{self._path} cannot be read ({exc}), and without it banned peers would be let in:"
                " put a copy back, or move it away and ban again (souk peers ban PEER)"
            ) from exc

    def __contains__(self, peer_id: object) -> bool:
        return peer_id in self._bans

    def __len__(self) -> int:
        return len(self._bans)

    def find(self, peer_id: PeerId) -> Ban | None:
        return self._bans.get(peer_id)

    def all(self) -> tuple[Ban, ...]:
        """Return every ban, the oldest first."""
        return tuple(sorted(self._bans.values(), key=lambda ban: (ban.since_ms, ban.peer_id)))

    async def add(self, ban: Ban) -> None:
        """Ban a peer; a second ban of one peer replaces the first. On disk when this returns.

        Raises: BanNotSyncedError; BanListError (nothing has changed).
        """
        if len(ban.reason) > REASON_CHARS_MAX:
            raise BanListError(f"a reason has at most {REASON_CHARS_MAX} characters, this one {len(ban.reason)}")
        async with self._writing:
            after = {**self._bans, ban.peer_id: ban}
            if len(after) > BANS_MAX:
                raise BanListError(f"{BANS_MAX} peers are banned already, more cannot be: souk peers unban PEER")
            await self._write(after)

    async def remove(self, peer_id: PeerId) -> bool:
        """Lift a ban and return whether there was one. Raises: as for ``add``."""
        async with self._writing:
            if peer_id not in self._bans:
                return False
            await self._write({known: ban for known, ban in self._bans.items() if known != peer_id})
            return True

    async def _write(self, after: dict[PeerId, Ban]) -> None:
        """Write first, then act: a ban that was told is there after a power cut."""
        if self._path is not None:
            lines = [
                _Line(peer_id=peer_id_to_text(it.peer_id), since_ms=it.since_ms, reason=it.reason)
                for it in after.values()
            ]
            data = msgspec.json.format(msgspec.json.encode(_File(version=1, bans=lines)), indent=2)
            # Not left when it is cancelled: what the disk has and what is followed must not differ.
            try:
                await trio.to_thread.run_sync(_replace, self._path, data + b"\n", limiter=self._thread)
            except NotSyncedError as exc:
                self._bans = after
                raise BanNotSyncedError(
                    f"it is done, and in {self._path}, but a power cut may undo it: {exc.strerror}"
                ) from exc
        self._bans = after


def _ban(line: _Line) -> Ban:
    peer_id = peer_id_from_text_untrusted(line.peer_id)
    return Ban(peer_id=peer_id, since_ms=UnixMs(line.since_ms), reason=line.reason)


def _open_nofollow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _replace(path: Path, data: bytes) -> None:
    """Raises: BanListError, NotSyncedError."""
    try:
        replace_file(path, data)
    except NotSyncedError:
        raise
    except OSError as exc:
        raise BanListError(f"{path} cannot be written: {exc.strerror}; nothing has changed") from exc
