"""Compression steps, plans of them, and what they really changed."""

from orchestrator.compression.api import compress, sensitivity
from orchestrator.compression.sensitivity import Sensitivity
from orchestrator.compression.variant import Audit, Variant

__all__ = ["Audit", "Sensitivity", "Variant", "compress", "sensitivity"]
