"""Adverts in and out, by gossip, DHT and direct exchange, and the directory of who can do what."""
