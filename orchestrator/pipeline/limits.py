"""Limits that no variant can keep, and names of nothing, are refused before anything is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
from torch import nn

from orchestrator.config.ensemble import Combined
from orchestrator.config.search import SearchSettings
from orchestrator.config.space import plan_of, probes
from orchestrator.config.steps import others_of
from orchestrator.ensemble.conformal import least_rows
from orchestrator.errors import ConfigError
from orchestrator.measure.promise import changed_bound, non_inferior
from orchestrator.models.base import weights_of
from orchestrator.models.build import build
from orchestrator.pipeline.context import Run
from orchestrator.runtime.rebuild import rebuild
from orchestrator.search.smallest import least_bytes, least_trained_bytes


def check_search(run: Run) -> None:
    """Refuse what the search of the run file can be shown never to reach; say what is hard to reach.

    Raises:
        ConfigError: every variant has more bytes than `max_bytes`, or the contract part has too few rows for
            `promise.max_changed`.
    """
    settings = run.config.search
    if settings is None:
        return
    if settings.max_bytes is not None:
        parent = _plain_parent(run, settings.parent)
        signature = run.dataset.signature
        least = None if parent is None else least_bytes(settings, parent, signature, run.allowed)
        _check_bytes("search", settings.max_bytes, least, "use a smaller number type, prune more")
    _check_promise(run, settings)


def check_ensembles(run: Run) -> None:
    """Refuse sets and intervals of a coverage that the calibration rows can never show.

    Raises:
        ConfigError: so.
    """
    rows = len(run.dataset.part("calibration").ids) if "calibration" in run.dataset.parts else 0
    for name, tree in run.config.ensembles.items():
        fitted = (tree.prediction_sets, tree.intervals) if isinstance(tree, Combined) else ()
        for coverage in [one.coverage for one in fitted if one is not None]:
            if rows < (needed := least_rows(coverage)):
                raise ConfigError(
                    f"ensembles.{name}: too few calibration rows for coverage {coverage:g}",
                    f"{rows} rows",
                    f"it needs at least {needed}: raise data.shares.calibration, or lower the coverage",
                )


def check_named(run: Run) -> None:
    """Refuse plans whose steps take what is neither made before them nor in the store.

    Raises:
        ConfigError: so; with the place.
        NotFoundError: the store has no such ref; names the nearest.
    """
    config = run.config
    above = [*config.models]
    for name, entry in config.variants.items():
        others = [other for step in entry.plan for other in others_of(step)]
        _check_others(run, f"variants.{name}", others, [*above, *config.ensembles])
        above.append(name)
    settings = config.search
    if settings is None:
        return
    plans = [plan_of(settings.space, chosen) for chosen in probes(settings.space)]
    steps = [step for plan in plans for step in plan] + ([settings.small] if settings.small else [])
    taught = config.taught()
    others = [other for step in steps for other in others_of(step)]
    _check_others(run, "search", others, [name for name in above if name not in taught])


def _check_others(run: Run, place: str, others: Iterable[str], known: Collection[str]) -> None:
    config = run.config
    for other in dict.fromkeys(others):
        if other in known or other.startswith(f"{config.name}/"):  # which may become a ref in this run
            continue
        if other in (*config.variants, *config.ensembles):
            raise ConfigError(
                f"{place}: a step takes what is not made before it", other, f"known there: {', '.join(known)}"
            )
        run.store.resolve(other)


def check_training_search(run: Run) -> None:
    """The same of the search over trainings.

    Raises:
        ConfigError: every model that it may train has more bytes than `max_bytes`.
    """
    settings = run.config.training_search
    if settings is None or settings.max_bytes is None:
        return
    entry = run.config.models[settings.model]
    least = least_trained_bytes(settings, entry, run.dataset.signature, run.allowed)
    _check_bytes("training_search", settings.max_bytes, least, "let the space hold smaller models")


def _plain_parent(run: Run, name: str) -> nn.Module | None:
    """The model, trained or not; None where its file may be smaller than its shapes say: it was compressed
    before it was imported, or has weights of zero.
    """
    entry = run.config.models[name]
    if entry.model is not None:
        if entry.training.sparsify is not None:
            return None
        return build(entry.model, run.dataset.signature, allowed=run.allowed, seed=0)
    found = rebuild(run.store, run.store.resolve(str(entry.ref)), allowed=run.allowed)
    zeros = any(bool((weight == 0).any()) for weight in weights_of(found.module).values())
    return None if found.manifest.plan or zeros else found.module


def _check_bytes(place: str, most: int, least: int | None, fix: str) -> None:
    if least is not None and least > most:
        raise ConfigError(
            f"no variant can keep {place}.max_bytes: the weights of the smallest that its space allows "
            f"take {least:,} bytes",
            f"{most:,}",
            f"raise it, or {fix}",
        )


def _check_promise(run: Run, settings: SearchSettings) -> None:
    """Too few contract rows: not even answers that all stay the same would show that the promise holds."""
    targets, promise = run.dataset.part("contract").targets, settings.promise
    if promise.max_changed is not None:
        changed = changed_bound(0, len(targets), promise.confidence)
        if changed > promise.max_changed:
            raise ConfigError(
                f"no variant can be shown to keep promise.max_changed: on {len(targets)} contract rows of "
                f"which none changes, the bound at {promise.confidence:.0%} confidence is {changed:.4f}",
                promise.max_changed,
                "raise it, lower promise.confidence, or give the contract part more rows",
            )
    if run.config.metric.name != "accuracy":
        return
    same = np.eye(run.dataset.signature.outputs, dtype=np.float32)[targets]
    verdict = non_inferior(run.config.metric, same, same, targets, promise)
    if not verdict.holds:
        run.progress(
            "search",
            f"the contract part is small for this promise: of a variant that answers as its parent does, "
            f"{verdict.reason}",
        )
