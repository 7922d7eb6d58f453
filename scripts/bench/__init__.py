"""Benchmarks of a whole local network and of single costs; ``scripts/bench/run`` runs them all."""
