"""`/status`: what is served and what was counted so far, as JSON. Who polls takes differences."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch
from typing import Any

from deployments.observe import families
from deployments.observe.families import Family
from deployments.observe.meter import Labels, Snapshot, histograms, numbers
from deployments.protocol.model import Model
from orchestrator import __version__
from orchestrator.config.encoding import AudioEncoding, Number, TableEncoding, TextEncoding
from orchestrator.config.ensemble import Cascade, Spec
from orchestrator.ensemble.explain import label
from orchestrator.ensemble.tree import distinct

_ENDPOINT = "infer"
LISTED = 50
"""Values of a category that are offered; others can be typed."""


def facts(spec: Spec, model: Model) -> dict[str, Any]:
    """What never changes of a release of a model."""
    signature = spec.signature
    return {
        "name": spec.name,
        "version": model.version,
        "kind": spec.tree.kind,
        "description": label(spec.tree),
        "task": signature.task,
        "classes": list(signature.classes),
        "input": {**model.input.plain(), "shape": list(signature.input_shape)},
        "asks": {} if model.encoding is None else asked(model.encoding),
        "outputs": list(model.tensors),
        "stages": [label(stage) for stage in spec.tree.stages] if isinstance(spec.tree, Cascade) else [],
        "members": [
            {"name": member.name, "digest": member.digest[:12], "execution": member.execution}
            for member in distinct(spec.tree)
        ],
    }


@singledispatch
def asked(encoding: Any) -> dict[str, Any]:
    """What people are asked for, where a model's clients do not send rows."""
    raise TypeError(type(encoding).__name__)


@asked.register
def _text(encoding: TextEncoding) -> dict[str, Any]:
    return {"kind": "text", "tokens": max(segment.length for segment in encoding.segments)}


@asked.register
def _audio(encoding: AudioEncoding) -> dict[str, Any]:
    return {"kind": "audio", "rate": encoding.rate, "seconds": encoding.length / encoding.rate}


@asked.register
def _table(encoding: TableEncoding) -> dict[str, Any]:
    columns = [
        {"name": column.name, "fill": column.fill}
        if isinstance(column, Number)
        else {"name": column.name, "values": list(column.values[:LISTED])}
        for column in encoding.columns
    ]
    return {"kind": "table", "columns": columns}


def status(
    models: Sequence[dict[str, Any]], problems: Sequence[str], snapshots: Sequence[Snapshot]
) -> dict[str, Any]:
    """The document of `/status`.

    Args:
        models: `facts` of each.
        problems: why each is not ready; empty when it is.
        snapshots: of all processes that could be reached.
    """
    figures = _Figures(snapshots)
    return {
        "version": __version__,
        "latency_bounds_s": list(families.SECONDS),
        "models": [
            {**model, "problem": problem, **figures.of_model(model)}
            for model, problem in zip(models, problems, strict=True)
        ],
    }


class _Figures:
    """Sums over processes, read by labels."""

    def __init__(self, snapshots: Sequence[Snapshot]) -> None:
        self._snapshots = snapshots

    def of_model(self, model: dict[str, Any]) -> dict[str, Any]:
        name = model["name"]
        answers = self._number(families.ANSWERS, name)
        requests = numbers(self._snapshots, families.REQUESTS)
        statuses: dict[str, float] = {}
        for (found, _endpoint, method, code), count in requests.items():
            if found == name and method == "POST":
                statuses[code] = statuses.get(code, 0.0) + count
        epochs = numbers(self._snapshots, families.WEIGHT_EPOCH)
        return {
            "statuses": statuses,
            "latency": self._histogram(families.REQUEST_SECONDS, name, _ENDPOINT),
            "answers": answers,
            "degraded": self._number(families.DEGRADED, name),
            "rejected": self._number(families.REJECTED, name),
            "weight_epoch": epochs.get((name,)),
            "exits": {
                stage: rows
                for (found, stage), rows in sorted(numbers(self._snapshots, families.EXITS).items())
                if found == name
            },
            "members": [{**member, **self._of_member(name, member["name"])} for member in model["members"]],
        }

    def _of_member(self, model: str, member: str) -> dict[str, Any]:
        batches = histograms(self._snapshots, families.BATCH_ROWS)
        # Members that run fused have one batch, that of the ensemble.
        at = member if (member,) in batches else model
        return {
            "latency": self._histogram(families.MEMBER_SECONDS, model, member),
            "rows": self._number(families.MEMBER_ROWS, model, member),
            "failures": self._sum(families.MEMBER_FAILURES, (model, member)),
            "breaker": self._number(families.BREAKER, model, member),
            "ejected": self._number(families.EJECTED, model, member),
            "fallback": self._number(families.FALLBACK, member),
            "queued_rows": self._number(families.QUEUED_ROWS, at),
            "batch_rows": self._mean(batches.get((at,))),
        }

    def _number(self, family: Family, *labels: str) -> float:
        return numbers(self._snapshots, family).get(labels, 0.0)

    def _sum(self, family: Family, beginning: Labels) -> float:
        found = numbers(self._snapshots, family).items()
        return sum(value for labels, value in found if labels[: len(beginning)] == beginning)

    def _histogram(self, family: Family, *labels: str) -> list[float]:
        empty = [0.0] * (len(family.buckets) + 2)
        return histograms(self._snapshots, family).get(labels, empty)

    @staticmethod
    def _mean(counts: Iterable[float] | None) -> float | None:
        if counts is None:
            return None
        *buckets, total = counts
        return total / sum(buckets)
