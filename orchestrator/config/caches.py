"""How much the caches may hold."""

from __future__ import annotations

from pydantic import Field

from orchestrator.config.base import Settings


class CacheBudgets(Settings):
    """Bytes of each cache; what was used least recently goes first. None: no limit.

    What was used in the last ten minutes, or by a process that lives, stays even so.
    """

    data_bytes: int | None = Field(None, ge=0)
    """Decoded rows on this machine (`ORCHESTRATOR_CACHE`)."""
    predictions_bytes: int | None = Field(None, ge=0)
    """Outputs of models on parts of the data, in the store."""
    compiled_bytes: int | None = Field(None, ge=0)
    """Compiled and exported forms, in the store."""
    checkpoints_bytes: int | None = Field(None, ge=0)
    """Epochs of unfinished trainings, in the store."""
