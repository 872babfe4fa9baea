"""The summary's figures of further targets, and the table for people."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.pipeline.searching import Found
from orchestrator.pipeline.summary import _target
from orchestrator.search.arms import EAGER, MEMBER
from tests.search.rows import measured, parent


def test_on_another_target_only_variants_are_on_the_front() -> None:
    whole = replace(parent(), arm=EAGER)
    other = replace(measured(-1000, drop=0.001, latency=0.1, size=1), arm=MEMBER)
    chosen, slower = measured(0, drop=-0.02, latency=1.5), measured(1, drop=-0.03, latency=3.0)
    found = Found(whole, (chosen, slower), (chosen,), chosen, None, "")
    assert _target(found, (chosen, slower, whole, other)) == {
        "front": ["v0", "v1"],
        "best": "v0",
        "chosen_loss": 0.0,
        "failed": {},
    }
