"""One folder that holds everything of one node: its paths, the lock on it, the API token and ``api.json``.

What the files contain belongs to their rooms (``keystore``, ``config_file``, ``ledger``, ``models``).
Commands import this module, so it stays within the standard library.
"""

import contextlib
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from node.durable import NotSyncedError, replace_file
from node.errors import AlreadyRunningError, NodeError


class HomeError(NodeError):
    """The home folder or a file in it cannot be used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiInfo:
    """What a running daemon says about itself to the commands on its machine."""

    url: str
    token_file: str
    pid: int
    peer_id: str
    addresses: tuple[str, ...]
    """Multiaddrs with ``/p2p/``, ready to be given to ``--bootstrap`` of another node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHolder:
    """The process that a lock file names."""

    pid: int
    started_at: float
    """Unix seconds when it took the lock."""


@dataclass(frozen=True, slots=True)
class Home:
    """The paths of one node. Making one touches no disk."""

    path: Path

    @property
    def key_path(self) -> Path:
        return self.path / "key"

    @property
    def config_path(self) -> Path:
        return self.path / "config.toml"

    @property
    def token_path(self) -> Path:
        return self.path / "token"

    @property
    def api_path(self) -> Path:
        return self.path / "api.json"

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger.db"

    @property
    def models_path(self) -> Path:
        return self.path / "models"

    def models_folder(self, named: str) -> Path:
        """Return where models lie by the setting ``models.dir``, absolute: workers may run in another folder."""
        return Path(named).expanduser().absolute() if named else self.models_path

    @property
    def compiled_path(self) -> Path:
        """Programs that were compiled for this machine."""
        return self.path / "compiled"

    @property
    def measurements_path(self) -> Path:
        return self.path / "measurements.json"

    @property
    def bans_path(self) -> Path:
        return self.path / "bans.json"

    @property
    def lock_path(self) -> Path:
        return self.path / "lock"

    @property
    def log_path(self) -> Path:
        return self.path / "log"

    def create(self) -> None:
        """Make the folder, for its owner only, if it is not there.

        Raises:
            HomeError: it cannot be made or is no folder.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as exc:
            raise HomeError(f"the home folder {self.path} cannot be made: {exc.strerror}") from exc

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold this home while the block runs; ends with the process however that ends.

        ``flock`` and not the mere existence of the file: a killed daemon leaves the file, never the lock. The
        descriptor closes on exec, so a worker that outlives its daemon does not keep the home.

        Raises:
            AlreadyRunningError: another process has it; the message names the process and the home.
        """
        self.create()
        try:
            descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise HomeError(f"the lock {self.lock_path} cannot be opened: {exc.strerror}") from exc
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise AlreadyRunningError(self._taken()) from exc
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "started_at": time.time()}).encode(), 0)
            yield
        finally:
            os.close(descriptor)

    def _taken(self) -> str:
        holder = self.lock_holder()
        who = f"pid {holder.pid}, " if holder else ""
        return f"another souk ({who}home {self.path}) already runs here: see souk --home {self.path} status"

    def lock_holder(self) -> LockHolder | None:
        """Return who last took the lock; None when nobody ever did. It may be gone: see ``is_locked``."""
        try:
            fields = json.loads(self.lock_path.read_text("utf-8"))
            return LockHolder(pid=int(fields["pid"]), started_at=float(fields["started_at"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def is_locked(self) -> bool:
        """Return whether a daemon holds this home now."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            # Shared, so that two who ask do not see each other. A daemon that starts in these microseconds is
            # refused once; asking without taking is not possible with flock.
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def ensure_token(self) -> str:
        """Return the API's token, made on first use, in a file that only its owner can read."""
        self.create()
        with contextlib.suppress(FileNotFoundError):
            return self.read_token()
        return self.rotate_token()

    def rotate_token(self) -> str:
        """Put a new token in the place of the one there is, or of none, and return it. Raises: HomeError."""
        import secrets  # a tenth of the start of a command, and few make a token

        self.create()
        token = secrets.token_urlsafe(32)
        _write_private(self.token_path, token + "\n")
        return token

    def read_token(self) -> str:
        """Return the API's token.

        Raises:
            FileNotFoundError: no daemon ever ran in this home.
            HomeError: the file is not a private text file.
        """
        try:
            with open(self.token_path, encoding="ascii", opener=_open_nofollow) as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if mode & 0o077:
                    raise HomeError(
                        f"{self.token_path} is open to others (mode {mode:04o}, expected 0600): "
                        f"delete it, a new token is made at the next start"
                    )
                token = file.read(256).strip()
        except FileNotFoundError:
            raise
        except (OSError, UnicodeDecodeError) as exc:
            raise HomeError(f"the token {self.token_path} cannot be read: {exc}") from exc
        if not token:
            raise HomeError(f"{self.token_path} is empty: delete it, a new token is made at the next start")
        return token

    def write_api(self, info: ApiInfo) -> None:
        """Publish, whole or not at all, where the daemon answers. Written when it is ready, never before."""
        fields = {
            "url": info.url,
            "token_file": info.token_file,
            "pid": info.pid,
            "peer_id": info.peer_id,
            "addresses": list(info.addresses),
        }
        _write_private(self.api_path, json.dumps(fields, indent=2) + "\n")

    def read_api(self) -> ApiInfo | None:
        """Return what the last daemon published; None when there is none. It may be gone."""
        try:
            fields = json.loads(self.api_path.read_text("utf-8"))
            return ApiInfo(
                url=str(fields["url"]),
                token_file=str(fields["token_file"]),
                pid=int(fields["pid"]),
                peer_id=str(fields["peer_id"]),
                addresses=tuple(str(address) for address in fields["addresses"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise HomeError(f"{self.api_path} is damaged ({exc}): stop the daemon and delete the file") from exc

    def remove_api(self) -> None:
        """Take the publication back; a daemon does so first when it stops."""
        self.api_path.unlink(missing_ok=True)


def find_home(flag: str | None, environ: Mapping[str, str]) -> Home:
    """Return the home that the user means: ``--home``, else ``SOUK_HOME``, else ``$XDG_DATA_HOME/souk``."""
    named = flag or environ.get("SOUK_HOME")
    if named:
        return Home(Path(named).expanduser().absolute())
    data = environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Home(Path(data).expanduser().absolute() / "souk")


def _open_nofollow(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _write_private(path: Path, text: str) -> None:
    """Replace a file by rename: a reader sees the old text or the new one, and nobody else's."""
    try:
        replace_file(path, text.encode())
    except NotSyncedError as exc:
        import logging  # as ``secrets`` above

        # It is what all commands read from now on: who followed the old text would be alone with it.
        logging.getLogger(__name__).warning("file not synced", extra={"file": str(path), "cause": exc.strerror})
    except OSError as exc:
        raise HomeError(f"{path} cannot be written: {exc.strerror}") from exc
