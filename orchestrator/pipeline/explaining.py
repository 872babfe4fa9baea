"""Where an ensemble's figures come from: diversity and contributions of members, doubts, single rows."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow

from orchestrator.config.base import fingerprint
from orchestrator.config.data import PartName
from orchestrator.config.ensemble import Member, Node, Spec, children
from orchestrator.ensemble import diversity
from orchestrator.ensemble.combine import Floats, deviations
from orchestrator.ensemble.contributions import MOST, contributions, member_scores, shares_of
from orchestrator.ensemble.explain import label, named, why
from orchestrator.ensemble.occlusion import occlusion_map
from orchestrator.ensemble.tree import Prediction, distinct, predict
from orchestrator.ensemble.uncertainty import detection_auroc, dissent, spread, uncertainty
from orchestrator.ensemble.weights import errors_of
from orchestrator.errors import ConfigError
from orchestrator.measure.metrics import score
from orchestrator.measure.quality import brier_score
from orchestrator.measure.tasks import class_rules
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.elsewhere import sees_images, unsure
from orchestrator.runtime.execute import Executable

Figures = dict[str, Any]
Load = Callable[[Member], Executable]
_MOST_JUDGED = 2**20
"""Answers of coalitions that contributions are worked out from, at most: of many members on fewer rows."""
EXAMPLES = 3
"""Rows of each ensemble that the report explains."""
_PATCHES = 4
"""The hidden square's side is this part of the image's, and it moves by half of its own."""


def ensemble_figures(run: Run, spec: Spec, prediction: Prediction) -> Figures:
    """`diversity`, `contributions` of the root's members, and `uncertainty` of an ensemble on test."""
    tree, task = spec.tree, spec.signature.task
    outputs = {member: run.outputs(member, "test") for member in distinct(tree)}
    targets = run.dataset.part("test").targets
    scores = member_scores(tree, outputs, task)
    names = [label(child) for child in children(tree)]
    rows = _judged_rows(len(names), len(targets))
    judged = {member: output[:rows] for member, output in outputs.items()}
    found = contributions(tree, judged, targets[:rows], task)
    shares: Sequence[float | None] = shares_of(tree)
    if tree.kind == "sequential":
        shares = [None] * len(names)
    members = [
        {
            "name": names[position],
            "weight": shares[position],
            "metric": score(run.config.metric, scores[position], targets, allowed=run.allowed),
            **{measure: asdict(parts[position]) for measure, parts in (found or {}).items()},
        }
        for position in range(len(names))
    ]
    return {
        "diversity": {"members": names, **_diversity(tree, scores, prediction, targets, spec)},
        "contributions": {"rows": rows, "members": members},
        "uncertainty": _uncertainty(tree, scores, prediction, targets, spec),
    }


def _judged_rows(members: int, rows: int) -> int:
    """How many rows every coalition of so many members answers; a part's first rows are a fair sample."""
    coalitions = 2**members if members <= MOST else 2 * members
    return max(1, min(rows, _MOST_JUDGED // coalitions))


def _diversity(
    tree: Node, scores: Sequence[Floats], prediction: Prediction, targets: npt.NDArray[Any], spec: Spec
) -> Figures:
    loss = diversity.decompose(scores, prediction.scores, targets, spec.signature.task, shares_of(tree))
    found: Figures = {
        "loss": {
            "name": loss.loss,
            "members": loss.members,
            "ensemble": loss.ensemble,
            "ambiguity": loss.ambiguity,
        }
    }
    if spec.signature.task == "regression":
        errors = errors_of(scores, targets, "regression")
        return found | {"error_correlation": _finite(diversity.error_correlation(errors))}
    kind = class_rules(spec.signature.task)
    labels = kind.as_classes(np.stack(scores)).argmax(axis=2)
    wrong = labels != kind.classes(targets)
    return found | {
        "disagreement": _finite(diversity.disagreement(labels)),
        "kappa": _finite(diversity.kappa(labels)),
        "double_fault": _finite(diversity.double_fault(wrong)),
        "error_correlation": _finite(diversity.error_correlation(wrong)),
    }


def _uncertainty(
    tree: Node, scores: Sequence[Floats], prediction: Prediction, targets: npt.NDArray[Any], spec: Spec
) -> Figures:
    shares, task = shares_of(tree), spec.signature.task
    if task == "regression":
        return {"spread": spread(scores, shares).mean(axis=0).tolist()}
    doubt = uncertainty(scores, shares, task)
    right = class_rules(task).right(prediction.scores, targets)
    mixed = 0 < right.sum() < len(right)
    doubtful = unsure(prediction, task)
    return {
        "total": float(doubt.total.mean()),
        "aleatoric": float(doubt.aleatoric.mean()),
        "epistemic": float(doubt.epistemic.mean()),
        "dissent": float(dissent(scores, prediction.scores, shares, task).mean()),
        "brier": brier_score(prediction.outputs, targets),
        "error_auroc": detection_auroc(doubtful[right], doubtful[~right]) if mixed else None,
    }


def _finite(matrix: Floats) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in matrix]


def occlusions(run: Run, specs: Mapping[str, Spec]) -> dict[str, dict[str, Figures]]:
    """By ensemble where it looks in the test rows that the report explains, by row; nothing where rows are no
    images, or for a regression. Computed once and kept beside the spec, since its members must run for it."""
    if not sees_images(run.dataset.signature) or run.dataset.signature.task != "classification":
        return {}
    members: Load = cache(run.executable)
    facts = {"kind": "occlusion", "data": run.dataset.digest, "seed": run.config.seed}
    found: dict[str, dict[str, Figures]] = {}
    for name, spec in specs.items():
        key = fingerprint(spec.plain())
        known = next((one for one in run.store.records(key) if facts.items() <= one.items()), None)
        if known is None:
            run.progress("evaluate", f"{name}: where it looks")
            maps = {str(row): _occlusion(run, spec, "test", row, members) for row in example_rows(run, spec)}
            known = {**facts, "maps": maps}
            run.store.add_record(key, known)
        found[name] = known["maps"]
    return found


def example_rows(run: Run, spec: Spec) -> list[int]:
    """The test rows that an ensemble's members contradict each other most about, most first."""
    outputs = {member: run.outputs(member, "test") for member in distinct(spec.tree)}
    task = spec.signature.task
    scores, shares = member_scores(spec.tree, outputs, task), shares_of(spec.tree)
    if task != "regression":
        doubt = uncertainty(scores, shares, task).epistemic
    else:
        values = spread(scores, shares)
        doubt = (values / deviations(values)).sum(axis=1)
    return [int(row) for row in np.argsort(-doubt, kind="stable")[:EXAMPLES]]


def examples(run: Run, spec: Spec, occlusion: Mapping[str, Figures]) -> list[Figures]:
    """Rows that the report explains, each with its picture if it is one."""
    found = []
    for row in example_rows(run, spec):
        told = explained(run, spec, "test", row)
        if sees_images(spec.signature):
            told["image"] = _picture(run.dataset.part("test").inputs[row])
        found.append(told | {"occlusion": occlusion.get(str(row))})
    return found


def explained(run: Run, spec: Spec, part: PartName, row: int) -> Figures:
    """`why` of one row of a part, with its `row`, its `id` in the source and its `truth`.

    Raises:
        ConfigError: the part has no such row.
    """
    rows = run.dataset.part(part)
    if not 0 <= row < len(rows):
        raise ConfigError(f"the {part} part has no such row", row, f"give 0 to {len(rows) - 1}")
    outputs = {member: run.outputs(member, part)[row : row + 1] for member in distinct(spec.tree)}
    truth = named(rows.targets[row], spec.signature)
    return {"row": row, "id": int(rows.ids[row]), "truth": truth, **why(spec.tree, outputs, spec.signature)}


def explained_with_image(run: Run, spec: Spec, part: PartName, row: int) -> Figures:
    """`explained`, and for an image of a class the `occlusion` map of the answer."""
    found = explained(run, spec, part, row)
    if sees_images(spec.signature) and spec.signature.task == "classification":
        found["occlusion"] = _occlusion(run, spec, part, row, run.executable)
    return found


def _occlusion(run: Run, spec: Spec, part: PartName, row: int, load: Load) -> Figures:
    """Where the ensemble looks for the class that it gives this row."""
    members = {member: load(member) for member in distinct(spec.tree)}

    def probabilities(images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        found = predict(spec.tree, members, images, spec.signature.task, guarded=False).probs
        assert found is not None
        return found

    image = run.dataset.part(part).inputs[row]
    patch = max(1, min(image.shape[1:]) // _PATCHES)
    answer = int(probabilities(image[None])[0].argmax())
    return occlusion_map(probabilities, image, answer, patch=patch, stride=max(1, patch // 2)).plain()


def _picture(image: npt.NDArray[np.uint8]) -> str:
    """An image [C, H, W] as a data URI; of one without three channels the first."""
    pixels = np.moveaxis(image, 0, 2) if len(image) == 3 else image[0]
    file = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
