"""Bounds of a network: what one peer, one source address and one message may take of us.

Both implementations keep them. For libp2p they replace its resource manager, which is not used: it makes streams
wait for ever instead of refusing them, and counts with the wall clock.
"""

from typing import Final

# Connections.
CONNECTIONS_MAX: Final = 1024
CONNECTIONS_PER_PEER_MAX: Final = 8
HANDSHAKES_PER_SOURCE_MAX: Final = 32
"""Not yet authenticated connections of one IPv4 address or one IPv6 /64. Without it, 250 idle TCP connections
locked every newcomer out for ten seconds."""
HANDSHAKE_S: Final = 10.0
DIAL_S: Final = 20.0
"""One address: TCP connect and handshake."""

# Streams.
STREAMS_PER_PEER_MAX: Final = 256
"""Inbound, all protocols together."""
STREAMS_PER_PROTOCOL_MAX: Final = 64
"""Inbound, of one peer on one protocol that we serve."""
STREAM_WINDOW_BYTES: Final = 1 << 20
"""Receive window of a busy stream; raise it for long fat links (bandwidth × round trip)."""
OPEN_S: Final = 10.0
"""Until a peer has agreed to the protocol."""
LINGERING_MAX: Final = 256
LINGER_S: Final = 10.0
"""How long a stream that we finished waits for the peer's end, before it is reset."""

# Time on the wire.
WRITE_S: Final = 30.0
"""A socket that takes nothing for so long is dead."""
PING_PERIOD_S: Final = 15.0
PING_WAIT_S: Final = 20.0
CLOSE_WRITE_S: Final = 1.0
CLOSE_S: Final = 5.0

# Gossip and records.
GOSSIP_BYTES_MAX: Final = 16 * 1024
GOSSIP_RPC_BYTES_MAX: Final = 256 * 1024
GOSSIP_DEGREE: Final = 6
GOSSIP_SEEN_MAX: Final = 8192
RECORD_BYTES_MAX: Final = 8 * 1024
RECORDS_MAX: Final = 8192

# Our own books.
KNOWN_PEERS_MAX: Final = 4096
ADDRESSES_PER_PEER_MAX: Final = 8
ADDRESS_TTL_S: Final = 7200
"""Identify uses the same; ``connect`` alone would keep an address for 120 s."""
