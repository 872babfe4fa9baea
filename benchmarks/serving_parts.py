"""The parts of the serving benchmark: servers that are measured in turns, and the claims that they decide.

A part stands for itself: what its figures are compared with is measured in the same turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import serving_compressed
from benchmarks.output import Ratio, Result
from benchmarks.serving_arms import (
    BARE,
    BULK,
    COMPOSITION,
    DISTRIBUTED,
    EIGHT,
    FASTAPI,
    JSON,
    MANY,
    ONE,
    OURS,
    TRIO,
    Arm,
    Case,
    baselines,
    ours,
)
from benchmarks.serving_models import Models, make
from benchmarks.serving_ratios import (
    Rows,
    bulk_claims,
    compiled_claims,
    compressed_claims,
    member_claims,
    plain_claims,
    split,
)
from benchmarks.serving_start import cold_start_s
from orchestrator.config.measure import Execution

Measure = Callable[[Mapping[str, Arm], Models], list[dict[str, Any]]]
"""Rows of arms, measured in turns."""
COLD_STARTS = 5


@dataclass(frozen=True)
class Setting:
    """How a run is made.

    Args:
        work: folder that keeps models, compiled forms and the results of finished parts.
        quick: nothing is compiled, few repeats.
        data: folder of CIFAR-10's Parquet files.
    """

    work: Path
    quick: bool = False
    data: Path | None = None

    @property
    def execution(self) -> Execution:
        """Of float32 networks."""
        return "eager" if self.quick else "aoti"

    def models(self, *names: str) -> Models:
        """Untrained ones."""
        return make(self.work / "untrained", self.execution, names)

    @staticmethod
    def of(arguments: argparse.Namespace, work: Path) -> Setting:
        """From the command line."""
        return Setting(work, arguments.quick, arguments.data)


def plain(setting: Setting, measure: Measure) -> Result:
    """Against servers that run the networks as they are."""
    models = setting.models(TRIO)
    arms = {name: arm.sent(ONE, MANY) for name, arm in _plain(models).items()}
    arms |= _ours(models, OURS, ONE, MANY) | _ours(models, DISTRIBUTED, ONE, MANY)
    rows = measure(arms, models)
    return rows, plain_claims(_by_key(rows))


def compiled(setting: Setting, measure: Measure) -> Result:
    """Against servers with our graph and a batcher; how the whole gain splits."""
    models = setting.models(TRIO)
    arms = {name: arm.sent(MANY) for name, arm in baselines(models.folder).items() if name != BARE}
    if setting.quick:
        arms = {name: arm for name, arm in arms.items() if not arm.compiled}
    rows = measure(arms | _ours(models, OURS, MANY), models)
    known = _by_key(rows)
    return rows + split(known), compiled_claims(known)


def json_bodies(setting: Setting, measure: Measure) -> Result:
    """The same images as JSON, whose parsing then decides; without a claim."""
    models = setting.models(TRIO)
    arms = {name: baselines(models.folder)[name].sent(JSON) for name in (COMPOSITION, FASTAPI)}
    return measure(arms | _ours(models, OURS, JSON), models), {}


def compressed(setting: Setting, measure: Measure) -> Result:
    """Compressed members that keep their accuracy, one and eight images a request."""
    folder = setting.work / ("cifar10" if setting.data else "digits")
    models, accuracy, missing = serving_compressed.make(
        folder, setting.data, aoti=not setting.quick, epochs=1 if setting.quick else None
    )
    variants = [name for name in models.specs if name != TRIO]
    cases = [MANY, *(Case(name, 16, rows=rows) for name in variants for rows in (1, 8))]
    arms = {COMPOSITION: baselines(models.folder)[COMPOSITION].sent(EIGHT)}
    rows = measure(arms | _ours(models, OURS, *cases), models)
    where = f"{folder.name} (validation)"
    about = [{"ensemble": name, "data": folder.name, **found} for name, found in accuracy.items()]
    about += [{"ensemble": name, "cannot_run_here": reason} for name, reason in missing.items()]
    lost = {name: accuracy[TRIO]["validation"] - accuracy[name]["validation"] for name in variants}
    return rows + about, compressed_claims(_by_key(rows), lost, where)


def members(setting: Setting, measure: Measure) -> Result:
    """Two and eight tiny members."""
    models = setting.models("tiny-2", "tiny-8")
    rows = measure(_ours(models, OURS, Case("tiny-2", 1), Case("tiny-8", 1)), models)
    return rows, member_claims(_by_key(rows))


def bulk(setting: Setting, measure: Measure) -> Result:
    """Bodies of 8 MiB beside a plain upload."""
    models = setting.models("bulk")
    arms = {BARE: baselines(models.folder)[BARE].sent(BULK)}
    rows = measure(arms | _ours(models, OURS, BULK), models)
    return rows, bulk_claims(_by_key(rows))


def cold_start(setting: Setting, _measure: Measure) -> Result:
    """Seconds until a replica with a cached compiled form answers."""
    taken = cold_start_s(setting.models(TRIO), 1 if setting.quick else COLD_STARTS)
    return [{"cold_start_s": taken}], {"cold_start_s": Ratio(taken, 1.5, at_most=True)}


PARTS: Mapping[str, Callable[[Setting, Measure], Result]] = {
    "plain": plain,
    "compiled": compiled,
    "compressed": compressed,
    "members": members,
    "bulk": bulk,
    "cold_start": cold_start,
    "json": json_bodies,
}


def _plain(models: Models) -> dict[str, Arm]:
    found = baselines(models.folder)
    return {name: arm for name, arm in found.items() if not arm.compiled and name != BARE}


def _ours(models: Models, name: str, *cases: Case) -> dict[str, Arm]:
    placement = "distributed" if name == DISTRIBUTED else "fused"
    refs = [f"serving/{model}" for model in dict.fromkeys(case.model for case in cases)]
    return {name: ours(models.store.location, placement, refs, cases)}


def _by_key(rows: list[dict[str, Any]]) -> Rows:
    return {(row["server"], row["case"]): row for row in rows if "server" in row and "case" in row}
