"""The page in a real browser: no script fails, points can be clicked, and a thousand trials are drawn."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.search.report import Details
from orchestrator.search.report.page import render
from tests.search import fake, fake_members

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))),
    None,
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome on PATH"),
]
HELPERS = """
const report = (found) => { document.documentElement.dataset.probe = JSON.stringify(found); };
const all = (selector) => [...document.querySelectorAll(selector)];
const shown = (selector) => document.querySelector(selector)?.textContent ?? "";
const press = (node, key) => node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
const type = (text) => {
  const input = document.getElementById("filter");
  input.value = text;
  input.dispatchEvent(new Event("input"));
};
const clickAt = (node) => {
  const box = node.getBoundingClientRect();
  const [clientX, clientY] = [box.x + box.width / 2, box.y + box.height / 2];
  const click = new MouseEvent("click", { clientX, clientY, bubbles: true });
  document.querySelector(".front-plot").dispatchEvent(click);
};
"""


class Shown:
    """What a page became: its DOM as text, its root's data attributes, and what a probe reported."""

    def __init__(self, dom: str, complaints: str) -> None:
        self.dom = dom
        root = re.search(r"<html[^>]*>", dom)
        assert root is not None
        found = re.findall(r'data-([\w-]+)="([^"]*)"', root.group())
        self.data = {name: html.unescape(value) for name, value in found}
        self.probe: Any = json.loads(self.data.get("probe", "null"))
        # The console also tells what the page's policy refused.
        assert "CONSOLE" not in complaints, complaints
        assert "error" not in self.data, self.data["error"]


def show(
    tmp_path: Path,
    details: Details,
    *,
    summary: dict[str, Any] | None = None,
    address: str = "",
    probe: str = "",
) -> Shown:
    """Open the page, run a script of the test's own after the page's, and take the DOM."""
    page = render(summary or fake.summary(), details)
    if probe:
        page = page.replace("</body>", f"<script>{{{HELPERS}{probe}}}</script></body>")
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-background-networking",
            "--window-size=1280,900",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr",
            "--dump-dom",
            path.as_uri() + address,
        ],
        capture_output=True,
        text=True,
        timeout=240,
        check=True,
    )
    return Shown(done.stdout, done.stderr)


def test_every_chart_draws(tmp_path: Path) -> None:
    found = show(
        tmp_path,
        fake.details(),
        probe="""report({
          points: all("#front .point").length,
          lines: all("#parallel .line").length,
          rows: all("#trials tbody tr").length,
          charts: all(".plot svg[aria-label]").length,
          labels: all("#front .label").map((node) => node.textContent),
          detail: shown("#detail"), wide: document.documentElement.scrollWidth,
        });""",
    )
    # The failed trial has no point; the parent has one.
    assert (found.probe["points"], found.probe["rows"]) == (15 + 1, 16)
    assert found.probe["lines"] == 8
    assert found.probe["charts"] == 5
    assert {"parent", "chosen, knee"} <= set(found.probe["labels"])
    assert "Select a trial" in found.probe["detail"]
    assert found.probe["wide"] <= 1280


def test_a_click_on_a_point_and_the_keyboard_open_a_trial(tmp_path: Path) -> None:
    found = show(
        tmp_path,
        fake.details(),
        probe="""
        clickAt(document.querySelector("#front .point.chosen"));
        const clicked = shown("#detail");
        const address = location.hash;
        const plot = document.querySelector(".front-plot");
        press(plot, "Home");
        const pointed = shown(".tip");
        press(plot, "ArrowUp"); press(plot, "Enter");
        const keyed = shown("#detail h3");
        all("#trials tbody tr").at(-1).click();
        const floating = all("#detail.floating").length;
        const [failed, picked] = [shown("#detail"), all("tr.picked").length];
        document.querySelector("#detail .close").click();
        const closed = [shown("#detail"), location.hash, all("#detail.floating").length];
        report({ clicked, address, pointed, keyed, floating, failed, picked, closed });""",
    )
    assert "p50-lamp-t4-bf16" in found.probe["clicked"]
    assert "kind: prune_channels" in found.probe["clicked"]
    assert "1.26\u00a0ms (1.23 to 1.31)" in found.probe["clicked"]
    assert found.probe["address"] == "#trial=10"
    assert "p65-lamp-t4-bf16" in found.probe["pointed"]
    assert found.probe["keyed"] == "p65-lamp-t4-int8_static"
    assert "no linear layer is left whole" in found.probe["failed"]
    # The row is far below the panel's own place.
    assert (found.probe["picked"], found.probe["floating"]) == (1, 1)
    assert "Select a trial" in found.probe["closed"][0]
    assert found.probe["closed"][1:] == ["", 0]


def test_filters_sorting_and_targets(tmp_path: Path) -> None:
    found = show(
        tmp_path,
        fake.many(200),
        address="#target=edge&trial=12",
        probe="""
        const told = { start: shown("#detail"), pressed: shown("#targets [aria-pressed=true]") };
        type("quantize.precision=bf16 latency<2");
        told.typed = shown("#count");
        told.dim = all("#front .dim").length > 0;
        const strip = document.querySelector("#parallel .strip");
        for (let count = 0; count < 3; count += 1) press(strip, "ArrowUp");
        told.brushed = shown("#count");
        told.chip = shown("#chips");
        press(strip, "Delete");
        type("failed");
        told.failed = [shown("#count"), shown("#trials tbody tr")];
        type("");
        document.querySelector("[data-key=latency]").click();
        told.sorted = all("#trials tbody tr td:nth-child(5)").map((cell) => parseFloat(cell.textContent));
        told.rows = all("#trials tbody tr").length;
        document.querySelector("#targets button").click();
        const left = all("[data-target=edge]:not([hidden])").length;
        told.back = [shown("#targets [aria-pressed=true]"), shown("#count"), left];
        report(told);""",
    )
    told = found.probe
    assert "trial 12" in told["start"]
    assert told["pressed"] == "edge"
    typed, brushed = (int(told[name].split(" of ")[0]) for name in ("typed", "brushed"))
    assert 0 < brushed < typed < 200
    assert told["dim"]
    assert told["chip"].startswith("prune_channels.amount: ")
    assert "cannot quantize" in told["failed"][1]
    assert told["sorted"] == sorted(told["sorted"])
    assert told["rows"] == 25
    assert told["back"] == ["server", "200 trials", 0]


@pytest.mark.slow
def test_a_thousand_trials(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    found = show(tmp_path, fake.many(1000), probe='report(all("#front .point").length);')
    assert found.probe > 700
    record_property("drawn_ms", found.data["drawn-ms"])
    print(f"1,000 trials on each of two targets are drawn {found.data['drawn-ms']} ms after the start")


def test_hostile_names_run_nothing(tmp_path: Path) -> None:
    details = fake.details()
    searched = details["targets"].pop("this machine")
    hostile = "<img src=x onerror=\"document.documentElement.dataset.error='ran'\">" + fake.HOSTILE
    for trial in searched["trials"]:
        trial["name"] = f"{hostile}{trial['name']}"
        trial["config"] = {hostile: trial["config"]["precision"]}
        trial["reason"] = trial["arm"] = hostile
        trial["plan"] = [{hostile: hostile}]
    details["targets"] = {hostile: searched, "other": fake.searched()}
    found = show(
        tmp_path,
        details,
        address="#trial=4",
        probe='report([shown("#detail h3"), all("img").length, all("script").length]);',
    )
    # The page's own two, and the test's.
    assert found.probe == [searched["trials"][3]["name"], 0, 3]


def test_little_is_no_error(tmp_path: Path) -> None:
    details = fake.details()
    failed = fake.trials()[-1:]
    details["targets"] = {"none": {"trials": failed}, "one": {"trials": fake.trials()[:1]}}
    probe = """
    const first = [shown("#front"), all("#settings-part[hidden]").length, shown("#count")];
    all("#targets button")[1].click();
    report([...first, all("#front .point").length, shown("div[data-target=one] .caption")]);"""
    found = show(tmp_path, details, probe=probe)
    assert "No trial finished" in found.probe[0]
    assert found.probe[1:4] == [1, "1 trial", 1]
    assert "too few" in found.probe[4]


def test_a_point_of_the_choice_marks_its_row(tmp_path: Path) -> None:
    probe = """
      const plot = document.querySelector("#choosing-plot svg");
      const star = plot.querySelector(".point.chosen").getBoundingClientRect();
      const at = { clientX: star.x + star.width / 2, clientY: star.y + star.height / 2, bubbles: true };
      plot.dispatchEvent(new MouseEvent("click", at));
      const clicked = shown("#choosing-table tr.picked td");
      press(all("#choosing-table tbody tr")[3], "Enter");
      const rings = all("#choosing-plot .selected circle").length;
      report({ clicked, pressed: shown("#choosing-table tr.picked td"), rings });
    """
    found = show(tmp_path, {**fake.details(), "choosing": fake.choosing()}, probe=probe)
    assert found.probe["clicked"].startswith("sequential: small-a if sure of 0.9")
    assert found.probe["pressed"].startswith("parallel: teacher, small-a")
    assert found.probe["rings"] == 1


def test_one_heat_map_is_shown_at_a_time(tmp_path: Path) -> None:
    summary, details = fake_members.explained()
    found = show(
        tmp_path,
        details,
        summary=summary,
        probe="""
        const titles = () => all("#members .ensemble:nth-of-type(1) .heat").filter((map) => !map.hidden)
          .map((map) => map.dataset.title);
        const buttons = all("#members .ensemble:nth-of-type(1) .switch button");
        const before = titles();
        buttons[2].click();
        document.querySelector("#members details").open = true;
        const box = (one) => document.querySelector(one).getBoundingClientRect();
        const [image, over] = [box(".seen img"), box(".seen svg")];
        report({
          before, after: titles(), pressed: buttons.map((button) => button.getAttribute("aria-pressed")),
          drawn: document.querySelector(".seen img").naturalWidth,
          image: [image.x, image.width], over: [over.x, over.width],
        });""",
    )
    assert (found.probe["before"], found.probe["after"]) == (["Disagreement"], ["Double fault"])
    assert found.probe["pressed"] == ["false", "false", "true", "false"]
    assert found.probe["drawn"] == 8
    assert found.probe["over"] == pytest.approx(found.probe["image"], abs=1)
