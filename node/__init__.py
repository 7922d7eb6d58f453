"""One souk daemon: it owns sockets, files, processes and time; what the wire means is decided in ``protocol/``."""
