"""Where a command finds the books: at the daemon that runs, else in the home's own file, which is only read."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from node.cli.client import Daemon, find_daemon
from node.cli.exits import CliError, Exit
from node.cli.options import Globals

if TYPE_CHECKING:
    import sqlite3

    import msgspec

    from protocol.units import PeerId

AUDIT_WAIT_S: Final = 600.0
"""An audit reads everything: about a quarter of a second for a thousand entries on a small machine."""
PAGE_ENTRIES: Final = 500
PROOFS_MAX: Final = 1000
STATEMENTS_MAX: Final = 500

Json = dict[str, Any]  # the API's answer, from whichever side it comes; shown and not judged


class Books(Protocol):
    """The API's answers about the ledger."""

    def accounts(self) -> Json: ...

    def account(self, peer: str) -> Json: ...

    def entries(self, after: int) -> Json: ...

    def audit(self) -> Json: ...

    def proofs(self) -> Json: ...

    def statements(self, peer: str | None) -> Json: ...

    def settlement(self, peer: str) -> Json: ...


def find_books(options: Globals) -> Books:
    """Return the books of the daemon that the user names or that holds the home, else those in the file."""
    if options.has_daemon:
        return DaemonBooks(find_daemon(options))
    path = options.home.ledger_path
    if not path.is_file():
        raise CliError(
            f"{path}: there is no ledger: no daemon ever ran in this home, and none runs now", Exit.UNKNOWN
        )
    return FileBooks(path)


@dataclass(frozen=True, slots=True)
class DaemonBooks:
    """Asks a running daemon."""

    daemon: Daemon

    def accounts(self) -> Json:
        return self.daemon.get("/api/v1/ledger")

    def account(self, peer: str) -> Json:
        return self.daemon.get(f"/api/v1/ledger/{_checked(peer)}")

    def entries(self, after: int) -> Json:
        return self.daemon.get(f"/api/v1/ledger/entries?after={after}")

    def audit(self) -> Json:
        return self.daemon.get("/api/v1/ledger/audit", wait_s=AUDIT_WAIT_S)

    def proofs(self) -> Json:
        return self.daemon.get("/api/v1/proofs")

    def statements(self, peer: str | None) -> Json:
        query = "" if peer is None else f"?peer={_checked(peer)}"
        return self.daemon.get(f"/api/v1/ledger/statements{query}")

    def settlement(self, peer: str) -> Json:
        return self.daemon.get(f"/api/v1/ledger/statements/{_checked(peer)}")


@dataclass(frozen=True, slots=True)
class FileBooks:
    """Reads the file of a stopped daemon. Raises: LedgerError (it cannot be read)."""

    path: Path

    def accounts(self) -> Json:
        from node.api.ledger_views import ledger_answer
        from node.ledger.books import count_proofs, peer_accounts

        with self._opened() as db:
            return _plain(ledger_answer(peer_accounts(db), count_proofs(db)))

    def account(self, peer: str) -> Json:
        for account in self.accounts()["peers"]:
            if account["peer_id"] == peer:
                return {"schema": 1, "peer": account}
        raise CliError(f"no contract with {peer} in {self.path}; souk ledger show lists the peers", Exit.UNKNOWN)

    def entries(self, after: int) -> Json:
        from node.api.ledger_views import entries_answer
        from node.ledger.books import entries_after

        with self._opened() as db:
            return _plain(entries_answer(entries_after(db, after, PAGE_ENTRIES)))

    def audit(self) -> Json:
        from node.api.ledger_views import audit_answer
        from node.ledger.audit import audit_file

        return _plain(audit_answer(audit_file(self.path, lambda: None)))

    def proofs(self) -> Json:
        from node.api.ledger_views import proofs_answer
        from node.ledger.books import count_proofs, proofs

        with self._opened() as db:
            return _plain(proofs_answer(count_proofs(db), proofs(db, PROOFS_MAX)))

    def statements(self, peer: str | None) -> Json:
        from node.api.ledger_views import statements_answer
        from node.ledger.settlement import statements

        with self._opened() as db:
            peer_id = None if peer is None else _peer_id(peer)
            return _plain(statements_answer(statements(db, peer_id, STATEMENTS_MAX)))

    def settlement(self, peer: str) -> Json:
        from node.api.ledger_views import settlement_answer
        from node.ledger.settlement import settlement_envelopes

        with self._opened() as db:
            found = settlement_envelopes(db, _peer_id(peer))
        if found is None:
            raise CliError(f"no statement with {peer} in {self.path} that both signed", Exit.UNKNOWN)
        return _plain(settlement_answer(found))

    @contextmanager
    def _opened(self) -> Iterator["sqlite3.Connection"]:
        from node.ledger.audit import read_only

        with read_only(self.path) as db:
            yield db


def _checked(peer: str) -> str:
    if not peer.isalnum():
        raise CliError(f"expected a peer id, 12D3KooW…, got {peer!r}", Exit.USAGE)
    return peer


def _peer_id(peer: str) -> "PeerId":
    from protocol.errors import RemoteProtocolError
    from protocol.identity import peer_id_from_text_untrusted

    try:
        return peer_id_from_text_untrusted(peer)
    except RemoteProtocolError as exc:
        raise CliError(f"expected a peer id, 12D3KooW…, got {peer!r}", Exit.USAGE) from exc


def _plain(answer: "msgspec.Struct") -> Json:
    import msgspec

    found: Json = msgspec.to_builtins(answer)
    return found
