"""Buying and selling jobs: ``requester.py`` chooses, negotiates and fails over; ``provider.py`` admits, prices and holds."""
