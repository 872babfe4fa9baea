"""The spaces that docs/search.md shows are some."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from orchestrator.config.search import Population, SearchSettings
from orchestrator.config.space import parameters

PAGE = Path(__file__).resolve().parents[2] / "docs" / "search.md"


def test_the_pages_spaces_and_targets_are_valid() -> None:
    first, population, second = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    search = SearchSettings.model_validate(yaml.safe_load(first)["search"])
    assert "prune_channels.shares.body.1*" in parameters(search.space)
    members = SearchSettings.model_validate(yaml.safe_load(population)["search"])
    assert members.sampler == Population()
    assert len(parameters(members.space)) == 4
    assert SearchSettings.model_validate(yaml.safe_load(second)).targets["small-device"].isa == "avx2"
