"""A run file as plain values, for tests to change."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.load import override, validate
from orchestrator.config.run import RunConfig
from orchestrator.errors import ConfigError

DISTILLED = {"kind": "distillation"}


def model(factory: str = "mlp", **more: Any) -> dict[str, Any]:
    return {"model": {"factory": factory}, **more}


def student(teacher: str | None) -> dict[str, Any]:
    return model(training={"loss": DISTILLED}, teacher=teacher)


def values(**changed: Any) -> dict[str, Any]:
    """Two models and a search, with top-level keys replaced or added."""
    return {
        "name": "toy",
        "data": {"kind": "embedded"},
        "models": {"big": model("cnn"), "small": model("mlp")},
        "search": {"parent": "big"},
        **changed,
    }


def run(*assignments: str, **changed: Any) -> RunConfig:
    return validate(RunConfig, override(values(**changed), assignments), "toy.yaml")


def refused(*assignments: str, **changed: Any) -> str:
    """The one sentence that the run file is refused with."""
    with pytest.raises(ConfigError) as found:
        run(*assignments, **changed)
    text = str(found.value)
    assert "\n" not in text
    assert "toy.yaml" in text
    assert found.value.exit_code == 2
    return text


def pair(*members: str, kind: str = "parallel") -> dict[str, Any]:
    return {"kind": kind, "stages" if kind == "sequential" else "members": list(members)}
