"""The engine, run inside a worker process: the only place that imports torch."""
