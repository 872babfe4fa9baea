"""Why an ensemble gave one row its answer: who said what, who agreed, and who decided it. Plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt

from orchestrator.config.ensemble import Boosting, Cascade, Member, Node, Parallel, WeightedMix, children
from orchestrator.config.signature import Signature, Task
from orchestrator.ensemble.attribution import shares_in
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.contributions import (
    MOST,
    Coalition,
    all_coalitions,
    first_stages,
    restricted,
)
from orchestrator.ensemble.node import Output, identity
from orchestrator.ensemble.tree import Prediction, replay
from orchestrator.measure.tasks import class_rules, rules

Plain = dict[str, Any]


def label(node: Node) -> str:
    """A member's name; a nested ensemble's kind and members."""
    if isinstance(node, Member):
        return node.name
    return f"{node.kind}({', '.join(label(child) for child in children(node))})"


def why(tree: Node, outputs: Mapping[Member, Output], signature: Signature) -> Plain:
    """Why the ensemble answers one row as it does.

    Args:
        tree: A fitted ensemble.
        outputs: Raw outputs [1, K] of every member, also of those that the walk does not ask.
        signature: Task and class names.

    Returns:
        `answer` (class name, names of labels after one another, or values), `probability` (of the class; else
        None), `stage` (None if the root is no cascade).
        `said`: the tree with each node's `name`, `kind`, `weight` in the node above, `asked` (False: its
        answer played no part), `answer`, `probability`, `probabilities`, a leaf's raw `outputs`, and
        `members`. A boosting's stage says nothing alone: its answer is that of the sum up to it.
        `agree`, `differ`: names of the root's members that were asked and give the ensemble's answer, or
        another; not of a regression.
        `without`: for each of the root's members the probability of the ensemble's class (those of the
        labels, or the values) had it been missing, None where there would be no answer. A boosting's stage
        takes those after it with it, and without the first one there is none. `flips`: the fewest members
        whose absence changes the answer, all such sets with the `answer` that they lead to. Both are None for
        a single model, `flips` also for regression and with more than `MOST` members.
    """
    task = signature.task
    prediction = replay(tree, outputs, task)
    said = _said(tree, outputs, signature, weight=None, asked=True)
    found: Plain = {**_answer(prediction, signature), "stage": _stage(tree, prediction), "said": said}
    asked = [member for member in said.get("members", ()) if member["asked"]]
    if task != "regression":
        found["agree"] = [member["name"] for member in asked if member["answer"] == found["answer"]]
        found["differ"] = [member["name"] for member in asked if member["answer"] != found["answer"]]
    names = [label(child) for child in children(tree)]
    top = int(prediction.scores[0].argmax())
    found["without"] = _without(tree, outputs, task, top) if names else None
    flippable = bool(names) and task != "regression"
    found["flips"] = _flips(tree, outputs, found["answer"], names, signature) if flippable else None
    return found


def _said(
    node: Node,
    outputs: Mapping[Member, Output],
    signature: Signature,
    *,
    weight: float | None,
    asked: bool,
    told: Node | None = None,
) -> Plain:
    """What a node and all below it say of the row; `told` if that is what counts as its answer."""
    prediction = replay(told or node, outputs, signature.task)
    found: Plain = {
        "name": label(node),
        "kind": node.kind,
        "weight": weight,
        "asked": asked,
        **_answer(prediction, signature),
    }
    if prediction.probs is not None:
        found["probabilities"] = prediction.probs[0].tolist()
    if isinstance(node, Member):
        raw = next(output for member, output in outputs.items() if identity(member) == identity(node))
        return found | {"outputs": raw[0].tolist()}
    stage = _stage(node, prediction)
    weights = _weights(node, outputs, signature.task)
    found["members"] = [
        _said(
            child,
            outputs,
            signature,
            weight=weights[position],
            asked=asked and (stage is None or position <= stage),
            told=first_stages(node, position + 1) if isinstance(node, Boosting) else None,
        )
        for position, child in enumerate(children(node))
    ]
    return found


def _weights(node: Node, outputs: Mapping[Member, Output], task: Task) -> Sequence[float | None]:
    """What the node's members count in this row."""
    if isinstance(node, Boosting):
        return node.factors or ()
    if isinstance(node, Parallel | WeightedMix):
        found: list[float] = shares_in(node, outputs, task)[:, 0].tolist()
        return found
    return [None] * len(children(node))


def _answer(prediction: Prediction, signature: Signature) -> Plain:
    scores = prediction.scores[0]
    if prediction.probs is None:
        return {"answer": scores.tolist(), "probability": None}
    kind = class_rules(signature.task)
    chance = float(prediction.probs[0, scores.argmax()]) if signature.task == "classification" else None
    return {"answer": named(kind.decisions(scores), signature), "probability": chance}


def named(answer: npt.NDArray[Any], signature: Signature) -> str | list[float]:
    """One row's class, labels or values in words: a name, names after one another, or the values."""
    if signature.task == "classification":
        return signature.classes[int(answer)]
    if signature.task == "regression":
        values: list[float] = answer.tolist()
        return values
    return ", ".join(name for name, there in zip(signature.classes, answer, strict=True) if there) or "none"


def _stage(node: Node, prediction: Prediction) -> int | None:
    return int(prediction.stages[0]) if isinstance(node, Cascade) else None


def _without(
    tree: Node, outputs: Mapping[Member, Output], task: Task, top: int
) -> list[float | list[float] | None]:
    found: list[float | list[float] | None] = []
    for position in range(len(children(tree))):
        scores = _rest(tree, outputs, (position,), task)
        if scores is None:
            found.append(None)
        else:
            chances = rules(task).probabilities(scores)
            said: list[float] = (scores if chances is None else chances).tolist()
            found.append(said[top] if task == "classification" else said)
    return found


def _flips(
    tree: Node, outputs: Mapping[Member, Output], answer: str, names: Sequence[str], signature: Signature
) -> list[Plain] | None:
    """The smallest sets of members without which the answer is another; none when no set does."""
    if len(names) > MOST:
        return None
    flips: list[Plain] = []
    # The smaller sets come first; with nobody left there is no answer.
    for missing in all_coalitions(len(names))[1:-1]:
        if flips and len(missing) > len(flips[0]["without"]):
            break
        scores = _rest(tree, outputs, missing, signature.task)
        if scores is None:
            continue
        other = named(class_rules(signature.task).decisions(scores), signature)
        if other != answer:
            flips.append({"without": [names[position] for position in missing], "answer": other})
    return flips


def _rest(tree: Node, outputs: Mapping[Member, Output], missing: Coalition, task: Task) -> Floats | None:
    """Scores [K] of the row without some of the root's members; None if there would be no answer."""
    part: Node | None
    if isinstance(tree, Boosting):
        part = first_stages(tree, min(missing)) if min(missing) > 0 else None
    else:
        part = restricted(tree, tuple(place for place in range(len(children(tree))) if place not in missing))
    return None if part is None else replay(part, outputs, task).scores[0]
