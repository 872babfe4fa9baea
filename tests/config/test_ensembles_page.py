"""The ensembles that docs/ensembles.md shows are valid, and it explains every rule and method."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import yaml

from orchestrator.config.ensemble import Method, Parallel, Rule, WeightedMix
from tests.config.toys import run, values

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "ensembles.md").read_text(encoding="utf-8")


def test_the_pages_ensembles_are_valid() -> None:
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL):
        shown = yaml.safe_load(block)
        models = values()["models"] | shown.pop("models", {})
        assert run(models=models, **shown).ensembles


def test_every_rule_and_method_is_explained() -> None:
    combining = PAGE.split("\n## Combining\n", 1)[1].split("\n## ", 1)[0]
    told = set(re.findall(r"^\| `([a-z_]+)`", combining, re.MULTILINE)) - {"rule", "method"}
    assert told == {*get_args(Rule), *get_args(Method)}
    defaults = {Parallel.model_fields["rule"].default, WeightedMix.model_fields["method"].default}
    assert defaults == {"mean", "likelihood"}
