"""The space that docs/search.md shows is one."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from orchestrator.config.search import SearchSettings
from orchestrator.config.space import parameters

PAGE = Path(__file__).resolve().parents[2] / "docs" / "search.md"


def test_the_pages_space_and_targets_are_valid() -> None:
    first, second = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    search = SearchSettings.model_validate(yaml.safe_load(first)["search"])
    assert "prune_channels.shares.body.1*" in parameters(search.space)
    assert SearchSettings.model_validate(yaml.safe_load(second)).targets["small-device"].isa == "avx2"
