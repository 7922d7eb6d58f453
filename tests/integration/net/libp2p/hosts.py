"""Bare libp2p hosts that misbehave, and a way into the host of a running network."""

from libp2p import generate_peer_id_from
from libp2p.abc import ISecureTransport
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as create_x25519_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.network.config import ConnectionConfig, RetryConfig
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.swarm import Swarm
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.peer.peerstore import PeerStore
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport
from libp2p.stream_muxer.yamux import yamux
from libp2p.transport.tcp.tcp import TCP
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from node.net.libp2p import LibP2pNetwork
from node.net.libp2p.host import DaemonHost
from node.net.libp2p.peers import to_libp2p
from protocol.units import PeerId


def make_bare_host(key_pair: KeyPair, security: dict[TProtocol, ISecureTransport] | None = None) -> BasicHost:
    """Make a host of the library's own classes, with Noise unless told otherwise."""
    noise = NoiseTransport(key_pair, noise_privkey=create_x25519_key_pair().private_key)
    upgrader = TransportUpgrader(
        secure_transports_by_protocol=security or {NOISE: noise},
        muxer_transports_by_protocol={TProtocol(yamux.PROTOCOL_ID): yamux.Yamux},
    )
    peer_id = generate_peer_id_from(key_pair)
    peerstore = PeerStore()
    peerstore.add_key_pair(peer_id, key_pair)
    quiet = ConnectionConfig(min_connections=0, low_watermark=0)
    swarm = Swarm(peer_id, peerstore, upgrader, [TCP()], RetryConfig(max_retries=0), quiet)
    return BasicHost(network=swarm)


async def connect(host: BasicHost, address: str) -> None:
    await host.connect(info_from_p2p_addr(Multiaddr(address)))


def host_of(network: LibP2pNetwork) -> DaemonHost:
    assert network._live is not None
    return network._live.host


async def open_raw(network: LibP2pNetwork, peer_id: PeerId, protocol: str) -> NetStream:
    """Open a stream without frames, on any protocol of the library's."""
    stream = await host_of(network).new_stream(to_libp2p(peer_id), [TProtocol(protocol)])
    assert isinstance(stream, NetStream)
    return stream


def port_of(network: LibP2pNetwork) -> int:
    return int(network.addresses[0].split("/")[4])
