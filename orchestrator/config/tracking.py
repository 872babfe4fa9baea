"""A server that follows experiments, and is told of a run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.config.base import Settings


class MlflowTracking(Settings):
    """An MLflow server: parameters of the run, figures of its trials, its reports as artifacts."""

    kind: Literal["mlflow"] = "mlflow"
    uri: str = Field(min_length=1)
    """Like `http://127.0.0.1:5000`."""
    experiment: str = Field("orchestrator", min_length=1)
    """Made on first use."""
