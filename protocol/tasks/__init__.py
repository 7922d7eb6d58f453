"""The tasks beside ``generate``: schemas, units, and how two results of one job are compared (spec 04, 5 to 9).

``registry.py`` joins all tasks; each other module is one of them. Nothing here computes a result.
"""
