"""Figures: counted, gathered from several processes, and read by Prometheus's own parser."""

from __future__ import annotations

import json
import pickle
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deployments.observe import families
from deployments.observe.families import FAMILIES
from deployments.observe.meter import Meter, exposition, histograms, numbers
from tests.architecture.modules import ROOT

DASHBOARD = ROOT / "monitoring" / "grafana.json"


def two_replicas() -> list[Any]:
    one, two = Meter("one"), Meter("two")
    one.add(families.ANSWERS, "mix")
    two.add(families.ANSWERS, "mix", amount=2)
    one.set(families.QUEUED_ROWS, "a", to=5)
    for value in (0.0002, 0.004, 99.0):
        one.observe(families.MEMBER_SECONDS, "mix", "a", value=value)
    two.observe(families.MEMBER_SECONDS, "mix", "a", value=0.004)
    return [pickle.loads(pickle.dumps(meter.snapshot())) for meter in (one, two)]


def test_several_processes_are_added() -> None:
    found = two_replicas()
    assert numbers(found, families.ANSWERS) == {("mix",): 3}
    counts = histograms(found, families.MEMBER_SECONDS)["mix", "a"]
    bounds = families.SECONDS
    assert [counts[place] for place in (0, bounds.index(0.005), len(bounds))] == [1, 2, 1]
    assert counts[-1] == pytest.approx(99.0082)
    assert sum(counts[:-1]) == 4


def test_a_watched_gauge_is_read_when_it_is_looked_at() -> None:
    meter, working = Meter("one"), [2, 3]
    meter.watch(families.WORKING, value=lambda: working[0])
    meter.watch(families.WORKING, value=lambda: working[1])
    assert numbers([meter.snapshot()], families.WORKING) == {(): 5}
    working[0] = 0
    assert numbers([meter.snapshot()], families.WORKING) == {(): 3}


def test_prometheus_reads_it() -> None:
    samples: dict[Any, float] = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(exposition(two_replicas()))
        for sample in family.samples
    }
    key = (("member", "a"), ("model", "mix"), ("replica", "one"))
    assert samples["orchestrator_answers_total", ("model", "mix"), ("replica", "two")] == 2
    assert samples["orchestrator_queued_rows", ("member", "a"), ("replica", "one")] == 5
    assert samples["orchestrator_member_seconds_count", *key] == 3
    assert samples["orchestrator_member_seconds_sum", *key] == pytest.approx(99.0042)
    buckets = [
        (float(dict(labels)["le"]), value)
        for (name, *labels), value in samples.items()
        if name == "orchestrator_member_seconds_bucket" and ("replica", "one") in labels
    ]
    assert [bound for bound, _ in buckets] == [*families.SECONDS, float("inf")]
    counts = [value for _, value in buckets]
    assert counts == sorted(counts)
    assert (counts[0], counts[-2], counts[-1]) == (1, 2, 3)


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "ä{,}"])
def test_any_name_survives(name: str) -> None:
    meter = Meter(name)
    meter.add(families.ANSWERS, name)
    (family,) = text_string_to_metric_families(exposition([meter.snapshot()]))
    assert family.samples[0].labels == {"model": name, "replica": name}


def test_families_follow_the_naming_rules() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)
    for family in FAMILIES:
        assert re.fullmatch(r"orchestrator_[a-z_]+", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert bool(family.buckets) == (family.kind == "histogram"), family.name
        assert list(family.buckets) == sorted(set(family.buckets))
        assert "\n" not in family.help
        assert "replica" not in family.labels


def test_no_count_is_lost_between_threads() -> None:
    meter = Meter("test")

    def work() -> None:
        for _ in range(3000):
            meter.add(families.ANSWERS, "mix")
            meter.observe(families.BATCH_ROWS, "a", value=3)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert numbers([meter.snapshot()], families.ANSWERS) == {("mix",): 12_000}
    assert sum(histograms([meter.snapshot()], families.BATCH_ROWS)["a",][:-1]) == 12_000


def test_counting_costs_microseconds(record_property: Callable[[str, object], None]) -> None:
    meter, best = Meter("test"), float("inf")
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(500):
            meter.observe(families.MEMBER_SECONDS, "mix", "a", value=0.004)
        best = min(best, (time.perf_counter() - started) / 500)
    record_property("observe_us", best * 1e6)
    assert best < 10e-6


def expressions(value: Any) -> list[str]:
    """All queries of a dashboard."""
    if isinstance(value, dict):
        own = [found for name, found in value.items() if name in ("expr", "query") and isinstance(found, str)]
        return own + [one for found in value.values() for one in expressions(found)]
    if isinstance(value, list):
        return [one for found in value for one in expressions(found)]
    return []


def test_the_dashboard_asks_for_figures_that_exist() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    found = expressions(dashboard)
    assert len(found) >= len(dashboard["panels"])
    labels = {family.name: {*family.labels, "replica"} for family in FAMILIES}
    for family in FAMILIES:
        if family.kind == "histogram":
            labels |= {
                f"{family.name}_{part}": {*labels[family.name], "le"} for part in ("bucket", "sum", "count")
            }
    asked = {name for text in found for name in re.findall(r"\borchestrator_\w+", text)}
    assert asked <= set(labels), asked - set(labels)
    for text in found:
        known = set().union(*(labels[name] for name in re.findall(r"\borchestrator_\w+", text)))
        used = {label for part in re.findall(r"\bby \(([^)]*)\)", text) for label in part.split(", ")}
        used |= set(re.findall(r"(\w+)=~?\"", text))
        assert used <= known, text
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert shown == {family.name for family in FAMILIES}


def test_the_dashboard_has_a_place_for_each_panel() -> None:
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
