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
from orchestrator.config.ensemble import Boosting, Member, Node, Spec, children
from orchestrator.config.signature import Signature
from orchestrator.data.elsewhere import images_from_elsewhere
from orchestrator.ensemble import diversity
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.contributions import MOST, contributions, restricted, shares_of
from orchestrator.ensemble.explain import label, why
from orchestrator.ensemble.node import Output
from orchestrator.ensemble.occlusion import occlusion_map
from orchestrator.ensemble.tree import Prediction, distinct, predict, replay
from orchestrator.ensemble.uncertainty import detection_auroc, dissent, spread, uncertainty
from orchestrator.errors import ConfigError
from orchestrator.measure.quality import brier_score, score
from orchestrator.pipeline.context import Run
from orchestrator.runtime.execute import Executable
from orchestrator.runtime.execute import predict as outputs_of

Figures = dict[str, Any]
Load = Callable[[Member], Executable]
ELSEWHERE_ROWS = 1000
"""Made-up images that an ensemble is shown, and test rows that they are compared with, at most."""
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
    scores = _members(tree, outputs, spec)
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


def _members(tree: Node, outputs: Mapping[Member, Output], spec: Spec) -> list[Floats]:
    """Scores [N, K] of each of the root's members; of a boosting's stage, which alone says nothing, those of
    the sum up to it."""
    if isinstance(tree, Boosting):
        sums = [restricted(tree, tuple(range(count + 1))) for count in range(len(tree.members))]
        return [replay(first, outputs, spec.signature.task).scores for first in sums if first is not None]
    return [replay(child, outputs, spec.signature.task).scores for child in children(tree)]


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
        truth = targets.reshape(len(targets), -1)
        scale = np.where(truth.std(axis=0) > 0, truth.std(axis=0), 1.0)
        errors = np.stack([((member - truth) / scale).ravel() for member in scores])
        return found | {"error_correlation": _finite(diversity.error_correlation(errors))}
    labels = np.stack([member.argmax(axis=1) for member in scores])
    wrong = labels != targets
    return found | {
        "disagreement": _finite(diversity.disagreement(labels)),
        "kappa": _finite(diversity.kappa(labels)),
        "double_fault": _finite(diversity.double_fault(wrong)),
        "error_correlation": _finite(diversity.error_correlation(wrong)),
    }


def _uncertainty(
    tree: Node, scores: Sequence[Floats], prediction: Prediction, targets: npt.NDArray[Any], spec: Spec
) -> Figures:
    shares = shares_of(tree)
    if spec.signature.task == "regression":
        return {"spread": spread(scores, shares).mean(axis=0).tolist()}
    doubt, answers = uncertainty(scores, shares), prediction.scores.argmax(axis=1)
    right = answers == targets
    mixed = 0 < right.sum() < len(right)
    unsure = _unsure(prediction)
    return {
        "total": float(doubt.total.mean()),
        "aleatoric": float(doubt.aleatoric.mean()),
        "epistemic": float(doubt.epistemic.mean()),
        "dissent": float(dissent(scores, answers, shares).mean()),
        "brier": brier_score(prediction.outputs, targets),
        "error_auroc": detection_auroc(unsure[right], unsure[~right]) if mixed else None,
    }


def _unsure(prediction: Prediction) -> Floats:
    """1 less the top probability [N]: the baseline of Hendrycks and Gimpel."""
    return np.asarray(-np.expm1(prediction.scores.max(axis=1)))


def _finite(matrix: Floats) -> list[list[float | None]]:
    return [[float(value) if np.isfinite(value) else None for value in row] for row in matrix]


def shown_images(run: Run, specs: Mapping[str, Spec]) -> dict[str, Figures]:
    """What each ensemble makes of images from elsewhere, and where it looks in a few of the test part.

    Computed once and kept beside the spec, since its members must run for it.

    Returns:
        By ensemble `elsewhere` (by kind of image the AUROC of finding it among test rows, by `confidence`,
        `total` and `epistemic` uncertainty) and `occlusion` (by test row); nothing where rows are no images,
        or for a regression.
    """
    if not _sees_images(run.dataset.signature) or run.dataset.signature.task != "classification":
        return {}
    load: Load = cache(run.executable)
    facts = {"kind": "images", "data": run.dataset.digest, "rows": ELSEWHERE_ROWS, "seed": run.config.seed}
    found: dict[str, Figures] = {}
    for name, spec in specs.items():
        key = fingerprint(spec.plain())
        known = next((one for one in run.store.records(key) if facts.items() <= one.items()), None)
        if known is None:
            run.progress("evaluate", f"{name}: images from elsewhere, and where it looks")
            rows = example_rows(run, spec)
            occlusion = {str(row): _occlusion(run, spec, "test", row, load) for row in rows}
            known = {**facts, "elsewhere": _elsewhere(run, spec, load), "occlusion": occlusion}
            run.store.add_record(key, known)
        found[name] = {"elsewhere": known["elsewhere"], "occlusion": known["occlusion"]}
    return found


def _elsewhere(run: Run, spec: Spec, load: Load) -> Figures:
    test = run.dataset.part("test")
    rows = min(ELSEWHERE_ROWS, len(test))
    inside = {member: run.outputs(member, "test")[:rows] for member in distinct(spec.tree)}
    own = _doubts(spec, inside)
    found: Figures = {}
    for kind, images in images_from_elsewhere(test.inputs[:rows], run.config.seed).items():
        outputs = {member: outputs_of(load(member), images) for member in inside}
        doubts = _doubts(spec, outputs)
        found[kind] = {"rows": rows} | {name: detection_auroc(own[name], doubts[name]) for name in own}
    return found


def _doubts(spec: Spec, outputs: Mapping[Member, Output]) -> dict[str, Floats]:
    """Each measure of uncertainty, [N]."""
    doubt = uncertainty(_members(spec.tree, outputs, spec), shares_of(spec.tree))
    prediction = replay(spec.tree, outputs, spec.signature.task)
    return {"confidence": _unsure(prediction), "total": doubt.total, "epistemic": doubt.epistemic}


def example_rows(run: Run, spec: Spec) -> list[int]:
    """The test rows that an ensemble's members contradict each other most about, most first."""
    outputs = {member: run.outputs(member, "test") for member in distinct(spec.tree)}
    scores, shares = _members(spec.tree, outputs, spec), shares_of(spec.tree)
    if spec.signature.task == "classification":
        doubt = uncertainty(scores, shares).epistemic
    else:
        values = spread(scores, shares)
        doubt = (values / np.where(values.std(axis=0) > 0, values.std(axis=0), 1.0)).sum(axis=1)
    return [int(row) for row in np.argsort(-doubt, kind="stable")[:EXAMPLES]]


def examples(run: Run, spec: Spec, occlusion: Mapping[str, Figures]) -> list[Figures]:
    """Rows that the report explains, each with its picture if it is one."""
    found = []
    for row in example_rows(run, spec):
        told = explained(run, spec, "test", row)
        if _sees_images(spec.signature):
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
    target = rows.targets[row]
    truth = spec.signature.classes[target] if spec.signature.task == "classification" else target.tolist()
    return {"row": row, "id": int(rows.ids[row]), "truth": truth, **why(spec.tree, outputs, spec.signature)}


def explained_with_image(run: Run, spec: Spec, part: PartName, row: int) -> Figures:
    """`explained`, and for an image of a class the `occlusion` map of the answer."""
    found = explained(run, spec, part, row)
    if _sees_images(spec.signature) and spec.signature.task == "classification":
        found["occlusion"] = _occlusion(run, spec, part, row, run.executable)
    return found


def _occlusion(run: Run, spec: Spec, part: PartName, row: int, load: Load) -> Figures:
    """Where the ensemble looks for the class that it gives this row."""
    members = {member: load(member) for member in distinct(spec.tree)}

    def probabilities(images: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        found = predict(spec.tree, members, images, spec.signature.task).probs
        assert found is not None
        return found

    image = run.dataset.part(part).inputs[row]
    patch = max(1, min(image.shape[1:]) // _PATCHES)
    answer = int(probabilities(image[None])[0].argmax())
    return occlusion_map(probabilities, image, answer, patch=patch, stride=max(1, patch // 2)).plain()


def _sees_images(signature: Signature) -> bool:
    return signature.input_dtype == "uint8" and len(signature.input_shape) == 3


def _picture(image: npt.NDArray[np.uint8]) -> str:
    """An image [C, H, W] as a data URI; of one without three channels the first."""
    pixels = np.moveaxis(image, 0, 2) if len(image) == 3 else image[0]
    file = io.BytesIO()
    Pillow.fromarray(np.ascontiguousarray(pixels)).save(file, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
