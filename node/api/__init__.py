"""The daemon's HTTP side on its own machine: OpenAI-compatible ``/v1``, control ``/api/v1``, health probes."""
