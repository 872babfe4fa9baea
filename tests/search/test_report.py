"""The page: complete, safe, and without any outside reference."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.report import Details, write_report
from orchestrator.search.report import text as report_text
from orchestrator.search.report.page import render
from tests.search import fake

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


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


def test_the_figures_hold_front_parent_chosen_and_promise(page: Page) -> None:
    front = page.figures["front"]
    by_name = {trace.get("name"): trace for trace in front["data"]}
    assert len(by_name["chosen"]["x"]) == len(by_name["parent"]["x"]) == 1
    assert len(by_name["front"]["x"]) == 4
    assert len(by_name["dominated"]["x"]) == 15 - 5
    assert front["layout"]["shapes"][0]["y0"] == pytest.approx(98.6 - 3)
    assert front["layout"]["xaxis"]["type"] == "log"
    assert {trace["name"] for trace in page.figures["comparison"]["data"]} == {
        "single model",
        "chosen variant",
        "ensemble",
    }
    assert len(page.figures["loss"]["data"]) == len(page.figures["metric"]["data"]) == 3


def test_nothing_is_fetched(page: Page) -> None:
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & attributes.keys(), (tag, attributes)
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
    details["trials"][0]["name"] = details["trials"][-1]["reason"] = fake.HOSTILE
    details["weights"]["mix"][fake.HOSTILE] = 0.0
    html = render(summary, details)
    assert "<script>alert" not in html
    assert sum(tag == "script" for tag, _ in Page(html).tags) == 3


@pytest.mark.parametrize(
    "search", [None, {"trials": 0, "front": [], "chosen": None, "reason": "none qualifies"}]
)
def test_a_run_with_little_still_has_a_page(search: dict[str, Any] | None) -> None:
    summary = fake.summary()
    summary |= {"search": search, "ensembles": {}, "serving": {}}
    page = Page(render(summary, {}))
    assert "teacher" in page.text
    assert set(page.figures) == {"comparison"}
    assert ("No variant was chosen" in page.text) == (search is not None)


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


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_charts_draw_in_a_browser(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(fake.summary(), fake.details(), path)
    assert CHROMIUM is not None
    shown = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=20000",
            "--enable-logging=stderr",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    # Each chart has drawn its points, and no script complained (the policy would also say so here).
    assert shown.stdout.count('class="main-svg"') >= 4
    assert "CONSOLE" not in shown.stderr
