"""The report's section about the members of ensembles."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from orchestrator.search.report.page import render
from tests.search import fake, fake_members


class Found(HTMLParser):
    """Rows of every table by the class of its figure, and all tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self._cell = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def page() -> str:
    return render(*fake_members.explained())


@pytest.fixture(scope="module")
def section(page: str) -> Found:
    found = re.search(r'<section id="members">.*?</section>', page, re.DOTALL)
    assert found is not None
    return Found(found.group())


def test_each_member_has_its_weight_metric_and_contributions(section: Found) -> None:
    head = [
        "member",
        "weight",
        "accuracy",
        "accuracy: without",
        "accuracy: share",
        "NLL: without",
        "NLL: share",
    ]
    assert section.rows[0] == head
    assert section.rows[1] == ["teacher", "0.333", "98.00\u00a0%", "+1.23", "+30.00", "+0.0456", "\u2013"]
    assert section.rows[2][3] == "\u22120.77"
    of_cascade = [row for row in section.rows if row[0] == "teacher" and len(row) == 7][1]
    assert of_cascade[1] == "\u2013"


def test_every_pair_has_its_figure_and_the_strongest_the_most_colour(section: Found) -> None:
    titles = [attributes["data-title"] for tag, attributes in section.tags if tag == "figure"]
    assert titles == ["Disagreement", "Kappa", "Double fault", "Error correlation"] * 2
    assert ["teacher", "0.000", "0.040", "0.020"] in section.rows
    assert ["teacher", "1.000", "-0.250", "\u2013"] in section.rows
    styles = [
        attributes["style"] or "" for tag, attributes in section.tags if tag == "td" and "style" in attributes
    ]
    # The first map, row by row without the diagonal: 0.04, 0.02, 0.04, 0.01, 0.02, 0.01.
    shares = [int(found.group(1)) for style in styles[:6] if (found := re.search(r"(\d+)%", style))]
    assert shares == [50, 25, 50, 12, 25, 12]
    assert any("var(--chosen) 25%" in style for style in styles)
    assert all("var(--" in style for style in styles)  # so that it follows light and dark


def test_doubts_are_told_in_words(section: Found) -> None:
    for said in (
        "0.0230: members 0.111, ensemble 0.0880",
        "0.171: 0.128 that each member has (aleatoric), 0.0430 by contradiction (epistemic)",
        "3.12\u00a0%",
        "AUROC of finding uniform noise",
        "0.971 by confidence, 0.982 by entropy, 0.993 by contradiction (360 rows)",
    ):
        assert said in section.text


def test_promised_sets_are_told_beside_what_came_of_them() -> None:
    summary, details = fake_members.explained()
    sets = {"method": "aps", "coverage": 0.9, "covered": 0.915, "mean_size": 1.37, "empty": 0.0}
    summary["ensembles"]["panel"]["prediction_sets"] = sets | {"covered_ci": [0.89, 0.94]}
    summary["ensembles"]["panel"]["intervals"] = {"coverage": 0.8, "covered": [0.81], "widths": [2.5]}
    text = Found(render(summary, details)).text
    assert "sets with the true class, 90% promised (aps)" in text
    assert "91.50\u00a0% of the rows (89.0 to 94.0); 1.37 classes on average, 0.00\u00a0% empty" in text
    assert (
        "intervals with the true value, 80% promised81.00\u00a0% of the rows, by target; widths 2.50" in text
    )


def test_single_models_and_ensembles_stand_side_by_side_about_rows_from_elsewhere() -> None:
    summary, details = fake_members.explained()
    rates = {"confidence": 0.25, "total": 0.2, "epistemic": None}
    single = {"rows": 360, "confidence": 0.91, "total": 0.92, "epistemic": None, "fpr95": rates}
    summary["models"]["teacher"]["elsewhere"] = {"uniform_noise": single}
    found = re.search(r'<section id="elsewhere">.*?</section>', render(summary, details), re.DOTALL)
    assert found is not None
    rows = Found(found.group()).rows
    assert rows[0][1:] == [
        f"uniform noise, by {how}" for how in ("top probability", "entropy", "contradiction")
    ]
    assert rows[1] == ["teacher", "0.91025.00\u00a0%", "0.92020.00\u00a0%", "\u2013"]
    assert ["panel", "0.971", "0.982", "0.993"] in rows
    assert "<strong>" not in found.group()
    summary["models"]["teacher"]["elsewhere"]["uniform_noise"]["by"] = "total"
    assert "<strong>0.920</strong>" in render(summary, details)


def test_students_stand_under_their_ensemble() -> None:
    summary, details = fake_members.explained()
    drop = {"value": 0.012, "ci": [0.004, 0.02]}
    summary["ensembles"]["panel"]["students"] = {"small-a": {"drop": drop, "agreement": 0.97}}
    page = Found(render(summary, details))
    rows = [row[0] for row in page.rows if row]
    place = next(at for at, name in enumerate(rows) if name.startswith("panel"))
    assert rows[place + 1].startswith("small-a")
    assert "student of panel" in rows[place + 1]
    assert not any(name.startswith("small-a") for name in rows[:place])
    assert ["small-a", "1.20\u00a0%0.4 to 2.0", "97.00\u00a0%"] in page.rows


def test_an_explained_row_shows_the_picture_what_matters_and_who_decided(section: Found) -> None:
    assert "Row 41: 3 (61.3\u00a0%), true is 8" in section.text
    assert "small-b: 8 (50.0\u00a0%), not asked" in section.text
    assert "Without small-a it would be 8." in section.text
    assert "Left the cascade at stage 2." in section.text
    images = [attributes for tag, attributes in section.tags if tag == "img"]
    assert len(images) == 1
    assert (images[0]["src"] or "").startswith("data:image/png;base64,")
    cells = [attributes for tag, attributes in section.tags if tag == "rect"]
    # Around the middle of each hidden square; what changes nothing is not drawn.
    assert [(cell["x"], cell["y"], cell["class"], cell["fill-opacity"]) for cell in cells] == [
        ("3", "1", "for", "0.75"),
        ("5", "1", "for", "0.19"),
        ("3", "3", "for", "0.38"),
        ("5", "3", "against", "0.19"),
    ]


def test_only_data_uris_are_loaded(page: str) -> None:
    for tag, attributes in Found(page).tags:
        if source := attributes.get("src"):
            assert (tag, source[:22]) == ("img", "data:image/png;base64,")


def test_hostile_names_and_pictures_are_only_text() -> None:
    summary, details = fake_members.explained()
    panel = summary["ensembles"]["panel"]
    panel["contributions"]["members"][0]["name"] = panel["diversity"]["members"][0] = fake.HOSTILE
    panel["uncertainty"]["elsewhere"][fake.HOSTILE] = panel["uncertainty"]["elsewhere"]["uniform_noise"]
    row = details["examples"]["panel"][0]
    row["truth"] = row["answer"] = row["flips"][0]["answer"] = row["flips"][0]["without"][0] = fake.HOSTILE
    row["said"]["members"][0]["name"] = fake.HOSTILE
    row["image"] = "https://example.org/x.png"
    page = render(summary, details)
    assert "<script>alert" not in page
    assert "example.org" not in page


def test_a_regression_has_squared_error_and_spread() -> None:
    summary, details = fake_members.explained()
    gain = {"alone": 3.0, "leave_one_out": 0.25, "shapley": 1.5}
    for item in summary["ensembles"].values():
        item["metric"] = {"name": "rmse", "value": 0.5, "ci": [0.4, 0.6]}
    for item in summary["models"].values():
        item["metric"] = {"name": "rmse", "value": 0.6, "ci": [0.5, 0.7]}
    summary["ensembles"]["panel"] |= {
        "contributions": {
            "rows": 9,
            "members": [{"name": "a", "weight": 1.0, "metric": 0.5, "squared_error": gain}],
        },
        "diversity": {
            "members": ["a"],
            "error_correlation": [[1.0]],
            "loss": {"name": "squared_error", "members": 0.3, "ensemble": 0.25, "ambiguity": 0.05},
        },
        "uncertainty": {"spread": [0.12, 3.4]},
    }
    row = fake_members.example() | {
        "answer": [0.5, 2.0],
        "truth": [0.4, 2.5],
        "probability": None,
        "flips": None,
    }
    row["said"] = {"members": [{"name": "a", "answer": [0.5, 2.0], "probability": None, "asked": True}]}
    details["examples"] = {"panel": [row | {"image": None}]}
    found = Found(render(summary, details))
    assert ["a", "1.00", "0.5000", "+0.250", "+1.50"] in found.rows
    assert "0.120, 3.40" in found.text
    assert "Row 41: 0.500, 2.00, true is 0.400, 2.50" in found.text


def test_a_run_of_an_earlier_version_has_no_such_section() -> None:
    assert 'id="members"' not in render(fake.summary(), fake.details())
