"""The page: complete, safe, and without any outside reference."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.report import Details, write_report
from orchestrator.search.report import text as report_text
from orchestrator.search.report.page import render
from tests.search import fake


class Page(HTMLParser):
    """Tags with their attributes, text outside scripts, and the figures."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.figures: dict[str, Any] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = "figures" if ("id", "figures") in attrs else tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "figures":
            self.figures = json.loads(data)
        elif not self._inside:
            self.text += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(render(fake.summary(), fake.details()))


def test_every_model_ensemble_and_trial_is_there(page: Page) -> None:
    words = ("teacher", "small-a", "panel", "cascade", "mix", "p65-lamp-t4-int8_dynamic")
    assert [word for word in words if word not in page.text] == []
    assert "98.70\u00a0%" in page.text
    assert "97.6 to 99.6" in page.text
    assert "24.9\u00a0ms" in page.text
    assert "no linear layer is left whole" in page.text
    assert "The promise holds" in page.text
    assert "was restarted once" in page.text
    assert "torch 2.13.0" in page.text
    assert "8.20\u00a0GB" in page.text
    (target,) = page.figures["search"]["targets"].values()
    assert [trial["name"] for trial in target["trials"]] == [trial["name"] for trial in fake.trials()]


def test_the_figures_hold_front_knee_parent_chosen_and_promise(page: Page) -> None:
    (target,) = page.figures["search"]["targets"].values()
    named = [trial["name"] for trial in target["trials"]]
    assert {named[place] for place in target["front"]} > {named[place] for place in target["outline"]}
    assert named[target["chosen"]] == "p50-lamp-t4-bf16"
    assert target["knee"] in target["outline"]
    assert target["parent"]["name"] == "teacher"
    assert target["level"] == pytest.approx(0.986 - 0.03)
    assert target["trials"][-1]["status"] == "failed"
    assert [axis["name"] for axis in target["axes"]] == ["amount", "precision"]
    volume = [value for _, value in target["volume"]["trials"]]
    assert len(volume) == 15
    assert volume == sorted(volume)
    assert target["volume"]["time"] is None
    assert {row["kind"] for row in page.figures["comparison"]["rows"]} == {
        "single model",
        "chosen variant",
        "ensemble",
    }
    assert [len(page.figures["curves"][what]["series"]) for what in ("loss", "metric")] == [3, 3]


def test_a_wide_conditional_space_on_two_targets() -> None:
    page = Page(render(fake.summary(), fake.many(120)))
    search = page.figures["search"]
    assert list(search["targets"]) == ["server", "edge"]
    server = search["targets"]["server"]
    axes = {axis["name"]: axis for axis in server["axes"]}
    assert axes["recovery.learning_rate"]["log"]
    assert axes["augment"]["values"] == ["false", "true"]
    assert axes["quantize.observer"]["values"] == ["minmax", "mse", "percentile"]
    assert [trial["arm"] for trial in server["trials"][:6]] == list(fake.ARMS)
    assert len(search["steps"]) < 300
    seconds = [second for second, _ in server["volume"]["time"]]
    assert seconds == sorted(seconds)
    assert "prune_channels.amount" in page.text
    assert "for example: drops by" in page.text
    assert "#target=edge&trial=" in "".join(attributes.get("href") or "" for _, attributes in page.tags)


def test_numbers_that_are_not_finite_never_reach_the_page() -> None:
    details = fake.details()
    trials = details["targets"]["this machine"]["trials"]
    trials[0]["metric"] = trials[1]["latency_ms"] = math.nan
    trials[2]["drop_bound"] = math.inf
    trials[3]["config"]["amount"] = math.nan
    (target,) = Page(render(fake.summary(), details)).figures["search"]["targets"].values()
    assert [trial["status"] for trial in target["trials"][:3]] == ["failed", "failed", "ok"]
    assert target["trials"][2]["drop_bound"] is None


def test_the_pauses_are_told() -> None:
    summary = fake.summary()
    details = fake.details()
    assert "Trials paused" not in Page(render(summary, details)).text
    summary["search"]["spent"] = {"seconds": 400.0, "paused_s": 82.4, "paused_share": 0.206}
    said = "Trials paused 1 min 22 s of 6 min 40 s (21%) while latencies were measured."
    assert said in Page(render(summary, details)).text


def test_a_95th_percentile_stands_beside_each_median() -> None:
    summary, details = fake.summary(), fake.details()
    median = next(iter(summary["models"].values()))["latency_ms"]["median"]
    assert f"p95 {report_text.number(1.5 * median)}" in Page(render(summary, details)).text
    drawn = Page(render(summary, fake.many(20))).figures["search"]["targets"].values()
    told = [trial for target in drawn for trial in target["trials"] if trial["status"] == "ok"]
    assert told
    assert all(trial["p95_ms"] > trial["latency_ms"] for trial in told)
    # A summary of before has none.
    for model in summary["models"].values():
        del model["latency_ms"]["p95"]
    assert f"p95 {report_text.number(1.5 * median)}" not in Page(render(summary, details)).text


def test_latencies_of_unlike_batches_say_theirs() -> None:
    summary, details = fake.summary(), fake.details()
    assert "at batch 32 on 1 thread, p95" in Page(render(summary, details)).text
    summary["search"]["chosen"]["latency_ms"]["batch"] = 1
    told = Page(render(summary, details)).text
    assert "Latency is the median, p95" in told
    assert told.count("batch 1 on 1 thread") == 1
    assert told.count("batch 32 on 1 thread") > 1


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attributes in page.tags:
        assert not {"src", "srcset", "action"} & attributes.keys(), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), (tag, attributes)
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_hostile_names_are_only_text() -> None:
    summary, details = fake.summary(), fake.details()
    summary["run"] = fake.HOSTILE
    summary["models"][fake.HOSTILE] = summary["models"]["teacher"]
    summary["ensembles"][fake.HOSTILE] = summary["ensembles"]["mix"]
    summary["serving"][fake.HOSTILE] = summary["serving"]["mix"]
    summary["search"]["reason"] = summary["data"]["source"] = fake.HOSTILE
    summary["machine"][fake.HOSTILE] = {fake.HOSTILE: 1}
    details["notes"] = [fake.HOSTILE]
    details["config"] = fake.HOSTILE
    details["curves"][fake.HOSTILE] = details["curves"]["teacher"]
    searched = details["targets"].pop("this machine")
    searched["setting"] = fake.HOSTILE
    first = searched["trials"][0]
    first["name"] = first["arm"] = fake.HOSTILE
    first["violations"] = [fake.HOSTILE]
    searched["trials"][-1]["reason"] = fake.HOSTILE
    for trial in searched["trials"]:
        trial["config"] = {fake.HOSTILE: trial["config"]["precision"], "same": fake.HOSTILE}
    details["targets"] = {fake.HOSTILE: searched, "other": fake.searched()}
    details["weights"]["mix"][fake.HOSTILE] = 0.0
    html = render(summary, details)
    assert "<script>alert" not in html
    assert sum(tag == "script" for tag, _ in Page(html).tags) == 2


@pytest.mark.parametrize(
    "search",
    [
        None,
        {"trials": 0, "front": [], "chosen": None, "reason": None},
        {"trials": 0, "front": [], "chosen": None, "reason": "none qualifies"},
    ],
)
def test_a_run_with_little_still_has_a_page(search: dict[str, Any] | None) -> None:
    summary = fake.summary()
    summary |= {"search": search, "ensembles": {}, "serving": {}}
    page = Page(render(summary, {}))
    assert "teacher" in page.text
    assert page.figures["comparison"]
    assert (page.figures["search"], page.figures["curves"]) == (None, {})
    assert ("No variant was chosen" in page.text) == bool(search and search["reason"])


def test_a_regression_run_shows_raw_values_and_the_smallest_as_best() -> None:
    summary = fake.summary()
    summary |= {"search": None, "serving": {}}
    for group in ("models", "ensembles"):
        for place, item in enumerate(summary[group].values()):
            item.update(accuracy=None, accuracy_ci=None, nll=None, ece=None)
            item["metric"] = {"name": "rmse", "value": 0.5 + place / 10, "ci": [0.4, 0.9]}
    summary["ensembles"]["mix"]["metric"]["value"] = 0.25
    details: Details = {"larger_is_better": False}
    page = Page(render(summary, details))
    assert "RMSE" in page.text
    assert "NLL" not in page.text
    assert "%" not in page.text.replace("95\u00a0%", "").replace("100\u00a0%", "").replace("21\u00a0%", "")
    best = re.search(r"<tr class=best><td>(\w+)", render(summary, details))
    assert best is not None
    assert best.group(1) == "mix"


def test_what_was_chosen_among_is_a_section_of_its_own() -> None:
    details: Details = {**fake.details(), "choosing": fake.choosing()}
    html = render(fake.summary(), details)
    page = Page(html)
    assert "1,234 candidates" in page.text
    assert "max_drop 0.005" in page.text
    assert "orchestrator serve digits/choice" in page.text
    assert "merged student" in page.text
    assert "98.50\u00a0%" in page.text
    assert fake.HOSTILE not in html
    points = page.figures["choosing"]["points"]
    assert [point["kind"] for point in points] == ["baseline", "chosen", "single model", "baseline"]
    # A row of the table for every point, in the same order: the script goes by their places.
    assert html.count('<tr tabindex="0">') == len(points)
    assert "Choosing" not in Page(render(fake.summary(), fake.details())).text
    nobody = Page(
        render(fake.summary(), {**details, "choosing": fake.choosing() | {"recommended": None, "spec": None}})
    )
    assert "Nobody reaches the goal" in nobody.text
    assert "orchestrator serve digits/choice" not in nobody.text


def test_it_is_written_whole_and_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "digits" / "report.html"
    for _ in range(2):
        write_report(fake.summary(), fake.details(), path)
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").endswith("</html>\n")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.98765, "0.988"),
        (1234.5, "1,234"),
        (0.0, "0"),
        (24.94, "24.9"),
        (1e-7, "1.00e-07"),
        (None, "\u2013"),
    ],
)
def test_numbers(value: float | None, said: str) -> None:
    assert report_text.number(value) == said


@pytest.mark.parametrize(
    ("value", "said"), [(999, "999"), (88_000, "88.0"), (1_104_000, "1.10"), (2.5e9, "2.50")]
)
def test_sizes(value: float, said: str) -> None:
    assert report_text.size(value).split("\u00a0")[0] == said


@pytest.mark.parametrize(("value", "said"), [(42.4, "42 s"), (203, "3 min 23 s"), (4321, "1 h 12 min")])
def test_durations(value: float, said: str) -> None:
    assert report_text.duration(value) == said
