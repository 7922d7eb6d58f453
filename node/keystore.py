"""The node's key on disk: a raw 32-byte Ed25519 seed in a file that only its owner can read.

Raw, not PKCS8: OpenSSL's sealed form spends 2,048 rounds on a guess (half a millisecond), which protects nothing
and looks as if it did. What a key may sign is decided in ``protocol/``, its checks stand in
``protocol/identity.py``.
"""

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from node.durable import NotSyncedError, create_file, replace_file
from node.errors import KeyFileError
from protocol.units import PeerId

SEED_BYTES: Final = 32


class Ed25519Signer:
    """A key in memory; implements ``protocol.identity.Signer``."""

    __slots__ = ("_key", "_peer_id")

    def __init__(self, seed: bytes) -> None:
        assert len(seed) == SEED_BYTES
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._peer_id = PeerId(self._key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Ed25519Signer(peer_id={self._peer_id.hex()})"

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def seed(self) -> bytes:
        """The secret itself, for libp2p, which signs its handshake with the same key."""
        return self._key.private_bytes_raw()

    @property
    def pem(self) -> str:
        """The secret as other programs read it: PKCS8, not sealed."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode("ascii")

    def sign(self, data: bytes) -> bytes:
        return self._key.sign(data)


class KeyFile:
    """The file; reading and creating are separate, so that a lost key is never replaced in silence."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Ed25519Signer:
        """Return the key.

        Raises:
            KeyFileError: the file is missing, a link, somebody else's, open to others, or not 32 bytes.
        """
        try:
            # Non-blocking: a pipe in the key's place must not stop the start for ever.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except FileNotFoundError as exc:
            raise KeyFileError(f"no key at {self.path}: souk init makes one") from exc
        except OSError as exc:
            raise KeyFileError(f"the key {self.path} cannot be opened: {exc.strerror}") from exc
        try:
            self._check(os.fstat(descriptor))
            seed = os.read(descriptor, SEED_BYTES + 1)
        finally:
            os.close(descriptor)
        if len(seed) != SEED_BYTES:
            raise KeyFileError(f"{self.path} is not a key: expected {SEED_BYTES} bytes, got {len(seed)} or more")
        return Ed25519Signer(seed)

    def _check(self, found: os.stat_result) -> None:
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileError(f"{self.path} is not a regular file")
        if found.st_uid != os.geteuid():
            raise KeyFileError(f"{self.path} belongs to user {found.st_uid}, expected {os.geteuid()}: chown it")
        mode = stat.S_IMODE(found.st_mode)
        if mode & 0o077:
            raise KeyFileError(
                f"{self.path} is open to others (mode {mode:04o}, expected 0600). Whoever read it can sign as "
                f"this node. If nobody did: chmod 600 {self.path}"
            )

    def create(self) -> Ed25519Signer:
        """Make a new key; when this returns it survives a power cut.

        Raises:
            KeyFileError: there is one already, or the disk refuses.
        """
        return self.put(os.urandom(SEED_BYTES))

    def put(self, seed: bytes, *, kept: Path | None = None) -> Ed25519Signer:
        """Write a key; when this returns it survives a power cut. One that is there gives way to it only where
        ``kept`` names the place of its copy.

        Raises:
            KeyFileError: there is one already, also as ``kept``, or the disk refuses.
        """
        try:
            if kept is not None:
                self._keep(kept)
            write = create_file if kept is None else replace_file
            write(self.path, seed)
        except FileExistsError as exc:
            raise KeyFileError(f"{self.path} exists; move it away before making another key") from exc
        except NotSyncedError as exc:
            raise KeyFileError(f"the key {self.path} may not survive a power cut: {exc.strerror}") from exc
        except OSError as exc:
            raise KeyFileError(f"the key {self.path} cannot be written: {exc.strerror}") from exc
        return Ed25519Signer(seed)

    def _keep(self, kept: Path) -> None:
        try:
            os.link(self.path, kept, follow_symlinks=False)
        except FileExistsError as exc:
            if kept.read_bytes() != self.path.read_bytes():
                raise KeyFileError(f"{kept} exists and is another key; move it away first") from exc

    def read_or_create(self) -> Ed25519Signer:
        """Return the key, made now if this home has none."""
        # lexists: a dangling link is refused by read(), not taken for "no key yet".
        return self.read() if os.path.lexists(self.path) else self.create()


def seed_of(data: bytes, source: str) -> bytes:
    """Return the seed in a key that comes from elsewhere: PEM, or the 32 bytes alone.

    Raises:
        KeyFileError: it is neither; ``source`` says in the message where it came from.
    """
    if len(data) == SEED_BYTES:
        return data
    expected = f"{source}: expected an Ed25519 key, as PEM or as {SEED_BYTES} bytes"
    try:
        key = load_pem_private_key(data, password=None)
    except TypeError as exc:
        raise KeyFileError(f"{expected}, got one under a passphrase: openssl pkey -in FILE -out OPEN") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise KeyFileError(f"{expected}, got {len(data)} bytes that are neither") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{expected}, got another kind of key")
    return key.private_bytes_raw()
