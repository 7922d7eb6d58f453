"""Chores: set-up, tests, demo, and what is made from the code for the specification."""
