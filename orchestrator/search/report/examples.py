"""Rows that the report explains: the picture, what the decision rests on, who said what, who decided it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator.search.report import text
from orchestrator.search.report.text import safe

_PICTURE = "data:image/png;base64,"
_CAPTION = (
    '<p class="caption">Orange lies on what the answer rests on: hidden, it takes the most of the '
    "probability. Blue lies on what speaks against it.</p>"
)
_STRONGEST = 0.75
"""Opacity over the part that matters most."""


def rows(examples: Sequence[Mapping[str, Any]]) -> str:
    """A card for each explained row of one ensemble; see `Details`."""
    cards = "".join(_card(example) for example in examples)
    if not cards:
        return ""
    title = "Rows that its members contradict each other most about"
    pictured = any(example.get("occlusion") for example in examples)
    return (
        f"<details><summary>{title}</summary>{_CAPTION if pictured else ''}"
        f'<div class="rows">{cards}</div></details>'
    )


def _card(example: Mapping[str, Any]) -> str:
    head = f"Row {example['row']}: {_answer(example)}, true is {_value(example['truth'])}"
    members = "".join(_member(member) for member in example["said"]["members"])
    stage = example["stage"]
    left = "" if stage is None else f"<p>Left the cascade at stage {stage + 1}.</p>"
    decided = _decided(example["flips"])
    return f"<article><h4>{head}</h4>{_picture(example)}<ul>{members}</ul>{left}{decided}</article>"


def _member(member: Mapping[str, Any]) -> str:
    if not member["asked"]:
        return f'<li class="out">{safe(member["name"])}: {_answer(member)}, not asked</li>'
    return f"<li>{safe(member['name'])}: {_answer(member)}</li>"


def _decided(flips: Sequence[Mapping[str, Any]] | None) -> str:
    """Who would have to be missing for another answer."""
    if flips is None:
        return ""
    if not flips:
        return "<p>Whoever is missing, the answer stays.</p>"
    said = [(safe(" and ".join(flip["without"])), safe(flip["answer"])) for flip in flips]
    return "".join(f"<p>Without {missing} it would be <b>{answer}</b>.</p>" for missing, answer in said)


def _answer(said: Mapping[str, Any]) -> str:
    """Class and probability, or values."""
    chance = said["probability"]
    return _value(said["answer"]) if chance is None else f"<b>{safe(said['answer'])}</b> ({_percent(chance)})"


def _value(answer: str | Sequence[float]) -> str:
    return safe(answer) if isinstance(answer, str) else ", ".join(text.number(value) for value in answer)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}\u00a0%"


def _picture(example: Mapping[str, Any]) -> str:
    """The image, and over it what hiding each part of it changes."""
    source = example.get("image") or ""
    if not source.startswith(_PICTURE):
        return ""
    found = example.get("occlusion")
    image = f'<img alt="Row {example["row"]}" src="{safe(source)}">'
    return f'<div class="seen">{image}{_overlay(found) if found else ""}</div>'


def _overlay(found: Mapping[str, Any]) -> str:
    """One cell a place of the hidden square, around its middle."""
    side, inset = found["stride"], (found["patch"] - found["stride"]) / 2
    drops = [
        (row * side + inset, column * side + inset, drop)
        for row, values in enumerate(found["drop"])
        for column, drop in enumerate(values)
    ]
    most = max((abs(drop) for _, _, drop in drops), default=0.0)
    cells = "".join(
        f'<rect x="{x:g}" y="{y:g}" width="{side}" height="{side}" class="{"for" if drop > 0 else "against"}"'
        f' fill-opacity="{_STRONGEST * abs(drop) / most:.2f}"><title>{drop:.3f}</title></rect>'
        for y, x, drop in drops
        if drop
    )
    label = f"What hiding each part takes of the probability {_percent(found['probability'])}"
    return (
        f'<svg viewBox="0 0 {found["width"]} {found["height"]}" role="img" aria-label="{label}">{cells}</svg>'
    )
