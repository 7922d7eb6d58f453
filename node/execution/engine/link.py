"""The worker's end of the socket to its daemon."""

import socket
import threading

from node.execution.frames import (
    LENGTH_BYTES,
    FromWorker,
    ToWorker,
    decode_to_worker,
    encode_frame,
    frame_length,
)


class Link:
    """The socket to the daemon; both threads send, one receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file = sock.makefile("rb")
        self._sending = threading.Lock()

    def send(self, frame: FromWorker) -> None:
        data = encode_frame(frame)
        with self._sending:
            self._socket.sendall(data)

    def receive(self) -> ToWorker | None:
        """Return the next frame, ``None`` once the daemon is gone."""
        try:
            prefix = self._file.read(LENGTH_BYTES)
            if len(prefix) < LENGTH_BYTES:
                return None
            length = frame_length(prefix)
            body = self._file.read(length)
        except ConnectionResetError:
            # Killed with something of ours unread.
            return None
        return decode_to_worker(body) if len(body) == length else None
