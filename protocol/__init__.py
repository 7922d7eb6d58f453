"""What peers say to each other: pure values and rules.

Nothing here does I/O, reads a clock, draws randomness or logs; time enters as ``now_ms`` and entropy as an
argument. The specification that this package implements lies beside it in ``protocol/spec/``.
"""
