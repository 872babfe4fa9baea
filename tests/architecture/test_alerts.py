"""The alerts watch metrics that exist, fire when their fault is there, and have a page in the runbook."""

from __future__ import annotations

import operator
import re
from typing import Any

import pytest
import yaml
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from deployments.observe import families
from deployments.observe.families import FAMILIES, Family
from deployments.observe.meter import Meter, numbers
from orchestrator.cli import app
from tests.architecture.modules import ROOT
from tests.architecture.test_readme import COMMANDS

RULES: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "monitoring" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
WORDS = {"sum", "by", "or", "rate", "increase", "histogram_quantile", "up", "job", "le", "model", "status"}
FROM_RAYLETS = {"ray_memory_manager_worker_eviction_total"}
"""Written by Ray's C++ processes: their names stand in no Python module."""


def series(family: Family) -> set[str]:
    """Names that a family has in Prometheus."""
    if family.kind == "histogram":
        return {f"{family.name}_{part}" for part in ("bucket", "sum", "count")}
    return {family.name}


KNOWN = {name: family for family in FAMILIES for name in series(family)}


def page(alert: str) -> str:
    """The alert's section of the runbook."""
    found = re.search(rf"^## {alert}$(.*?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert found is not None, alert
    return found[1]


@pytest.mark.parametrize("alert", RULES)
def test_metrics_and_labels_exist(alert: str) -> None:
    expression = RULES[alert]["expr"]
    names = set(re.findall(r"\b(?:orchestrator|ray)_\w+", expression))
    assert names or alert == "ServerDown"
    for name in names:
        if name.startswith("ray_"):
            assert name.removeprefix("ray_") in METRICS_GAUGES or name in FROM_RAYLETS, name
        else:
            assert name in KNOWN, name
    labels = {label for each in re.findall(r"by \(([^)]*)\)", expression) for label in each.split(", ")}
    of_families = {label for name in names if name in KNOWN for label in KNOWN[name].labels}
    assert labels - {"le"} <= of_families
    told = set(re.findall(r"\$labels\.(\w+)", RULES[alert]["annotations"]["summary"]))
    if "by (" in expression:
        assert told <= labels
    assert told <= of_families | {"instance", "ip"}
    left = set(re.findall(r"[a-z_]+", re.sub(r'"[^"]*"|\[\w+\]|(?:orchestrator|ray)_\w+', "", expression)))
    assert left <= WORDS, f"{left - WORDS} is no function or label that is known here"
    assert expression.count("(") == expression.count(")")


@pytest.mark.parametrize("alert", RULES)
def test_structure(alert: str) -> None:
    rule = RULES[alert]
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations", "keep_firing_for"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "runbook"}
    assert re.fullmatch(r"\d+[smh]", rule.get("for", "1m"))
    assert rule["annotations"]["runbook"] == f"docs/runbook.md#{alert.lower()}"


@pytest.mark.parametrize("alert", RULES)
def test_every_alert_has_its_page(alert: str) -> None:
    text = page(alert)
    for part in ("**Symptom.**", "**Command.**", "**Expected.**", "**Do.**"):
        assert text.count(part) == 1, f"{alert} lacks {part}"
    command = text.partition("**Command.**")[2].partition("**Expected.**")[0]
    assert "`" in command


def test_every_page_has_its_alert_and_every_link_a_page() -> None:
    assert re.findall(r"^## (\w+)$", RUNBOOK, re.MULTILINE) == list(RULES)
    lower = {alert.lower() for alert in RULES}
    assert set(re.findall(r"\]\(#(\w+)\)", RUNBOOK)) <= lower


def test_the_runbooks_commands_exist() -> None:
    assert app
    named = set(re.findall(r"\borchestrator ([a-z-]+)", RUNBOOK))
    assert named <= COMMANDS, named - COMMANDS
    for metric in re.findall(r"orchestrator_\w+", RUNBOOK):
        assert metric in KNOWN, metric


SIMPLE = {
    "MemberFails": (families.BREAKER, ("mix", "a"), 2, (0, 1)),
    "MemberEjected": (families.EJECTED, ("mix", "a"), 1, (0,)),
    "CompiledFormLost": (families.FALLBACK, ("a",), 1, (0,)),
    "EarlyExitsOff": (families.EARLY_EXIT, ("mix",), 0, (1,)),
    "RowsWait": (families.QUEUED_ROWS, ("a",), 5000, (0, 32)),
}
"""Alerts that compare one gauge: family, labels, a faulty value, healthy ones."""


@pytest.mark.parametrize("alert", SIMPLE)
def test_it_fires_for_its_fault_alone(alert: str) -> None:
    """The figures as a server counts them, against the rule's comparison."""
    family, labels, faulty, healthy = SIMPLE[alert]
    name, sign, limit = RULES[alert]["expr"].split()
    assert name == family.name
    compare = {"==": operator.eq, ">": operator.gt}[sign]
    for value in (faulty, *healthy):
        meter = Meter("one")
        meter.set(family, *labels, to=value)
        (found,) = numbers([meter.snapshot()], family).values()
        assert compare(found, float(limit)) == (value == faulty)


def test_prometheus_reads_the_rules() -> None:
    values = yaml.safe_load((ROOT / "monitoring" / "prometheus.yaml").read_text(encoding="utf-8"))
    assert values["rule_files"] == ["alerts.yaml"]
    assert {job["job_name"] for job in values["scrape_configs"]} == {"orchestrator", "ray"}
