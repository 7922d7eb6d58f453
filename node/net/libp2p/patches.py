"""What has to be replaced inside the library itself, in one place; for py-libp2p 0.8.1 exactly.

Subclasses (``yamux``, ``host``, ``pubsub``, ``dht``) are preferred; here stand only the names that the library
looks up by itself. Each line has a test in ``tests/integration/net/libp2p`` that shows why it is there.
"""

import logging
import socket

import trio
from libp2p.kad_dht import value_store
from libp2p.network import swarm
from libp2p.stream_muxer import muxer_multistream
from libp2p.stream_muxer.yamux import yamux
from libp2p.transport.tcp import tcp

from node.net import limits
from node.net.libp2p.yamux import SafeStream, SafeYamux

# Ordinary churn that the library reports as ERROR, several lines for each stream that a peer does not accept.
_NOISY_LOGGERS = (
    "libp2p.host.basic_host",
    "libp2p.kad_dht.kad_dht",
    "libp2p.protocol_muxer.multiselect_client",
    "libp2p.stream_muxer.yamux.yamux",
    "libp2p.transport.tcp",
)


def apply() -> None:
    """Patch the library; doing it twice changes nothing."""
    # 0.8.1 ignores the muxer class that it is given, and builds these names.
    yamux.YamuxStream = SafeStream  # type: ignore[misc,assignment]  # replacing a class is the point
    muxer_multistream.Yamux = SafeYamux  # type: ignore[attr-defined]  # a name imported there
    # The loop over addresses waits this long for a *failure*: every successful dial took 251 ms instead of 8 ms.
    swarm._HAPPY_EYEBALLS_DELAY = 0.0
    # Listeners set SO_REUSEPORT: two daemons on one port both "listen" and share the connections. It is there for
    # hole punching, which we do not do.
    tcp._set_reuse_flags = _set_reuse_address
    # 50 000 records of a peer's making would be 400 MiB.
    value_store.MAX_VALUE_STORE_SIZE = limits.RECORDS_MAX  # type: ignore[attr-defined]  # a name imported there
    _quieten()


def _set_reuse_address(sock: trio.socket.SocketType) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)


def _quieten() -> None:
    """Let the library's log records reach our handlers, and only its errors.

    Importing it clears the handlers of its logger and turns propagation off; some modules raise their own level.
    """
    library = logging.getLogger("libp2p")
    library.propagate = True
    library.setLevel(logging.ERROR)
    logging.getLogger("libp2p.network.auto_connector").setLevel(logging.ERROR)
    for name in _NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
