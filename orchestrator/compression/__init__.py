"""Compression steps, plans of them, and what they really changed."""

from orchestrator.compression.api import Audit, Variant, compress

__all__ = ["Audit", "Variant", "compress"]
