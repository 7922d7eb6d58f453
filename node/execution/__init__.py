"""Devices, worker processes and their jobs; ``engine/`` runs inside a worker and is the only importer of torch."""
