"""A server that follows experiments, and is told of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from orchestrator.config.base import Settings
from orchestrator.redact import has_password


class MlflowTracking(Settings):
    """An MLflow server: parameters of the run, figures of its trials, its reports as artifacts."""

    kind: Literal["mlflow"] = "mlflow"
    uri: str = Field(min_length=1)
    """Like `http://127.0.0.1:5000`."""
    experiment: str = Field("orchestrator", min_length=1)
    """Made on first use."""

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str) -> str:
        if has_password(uri):
            raise ValueError(
                "a run file must hold no password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )
        return uri
