"""How the chosen ensembles are served (how, not what: nothing here changes an answer)."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from orchestrator.config.base import Settings
from orchestrator.config.ensemble import Spec
from orchestrator.config.imports import ImportPath


class ServingSettings(Settings):
    host: str = "127.0.0.1"
    """Loopback unless asked."""
    port: int = Field(8000, ge=1, le=65535)
    requests: int = Field(64, ge=1)
    """Real HTTP requests that the run sends through each ensemble to compare its answers."""
    replicas: int = Field(1, ge=1)
    """Of every member."""
    max_body_bytes: int = Field(64 * 2**20, ge=1024)
    deadline_s: float = Field(30.0, gt=0)
    """Longest time for one answer; past it the reply is 504."""


class AppSettings(Settings):
    """Arguments of the served application (`deployments.build:app`, also in `deployments/serve.yaml`)."""

    store: str
    """Absolute path or URI of the store."""
    specs: tuple[Spec, ...] = ()
    """Ensembles given whole."""
    refs: tuple[str, ...] = ()
    """Or by name in the store, like `digits/mix`."""
    allow: tuple[ImportPath, ...] = ()
    """Import paths that members may be built from."""
    serving: ServingSettings = ServingSettings()

    @model_validator(mode="before")
    @classmethod
    def _something(cls, value: Any) -> Any:
        if isinstance(value, dict) and not value.get("specs") and not value.get("refs"):
            raise ValueError("nothing to serve: give 'specs' or 'refs'")
        return value
