"""Streams, gossip and the DHT behind one interface: ``libp2p/``, or in memory for tests and simulation."""
