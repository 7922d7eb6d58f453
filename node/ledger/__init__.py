"""What was promised and what was paid: an append-only log of signed messages, and a row for each contract."""
