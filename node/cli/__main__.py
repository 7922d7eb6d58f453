"""``python -m node.cli``: the same as ``souk``, for those who start nodes with their own interpreter."""

from node.cli import main

if __name__ == "__main__":
    main()
