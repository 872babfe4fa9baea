"""Compression steps, plans of them, and what they really changed."""
