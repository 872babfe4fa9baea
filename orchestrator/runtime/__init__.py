"""Artifacts to running modules: rebuilt without data, then executed eager, lowered or compiled."""
