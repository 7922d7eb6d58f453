"""Buying and selling jobs: ``requester.py`` chooses and negotiates; ``provider.py`` admits, prices and holds."""
