"""Streams, gossip and the DHT behind one interface: libp2p in ``libp2p/``, an in-memory network in ``memory.py``."""
