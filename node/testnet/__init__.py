"""Many nodes on one machine: real ``souk serve`` processes on loopback."""
