"""The network on py-libp2p 0.8.1; the only package of the daemon that imports libp2p."""

from node.net.libp2p.network import LibP2pNetwork

__all__ = ["LibP2pNetwork"]
