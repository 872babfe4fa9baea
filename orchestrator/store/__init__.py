"""Immutable artifacts with their refs, records and caches, in one folder that many processes share."""
