"""The search over trainings: one model trained with many settings, the best one named and written down."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.config.run import RunConfig
from orchestrator.config.tuning import TrainingSearch, tuned
from orchestrator.errors import ConfigError
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.limits import check_training_search
from orchestrator.pipeline.measuring import Measurer
from orchestrator.pipeline.recording import record_quality
from orchestrator.pipeline.reporting import report_tuning, searched_summary
from orchestrator.pipeline.searching import Found, claim_study, figures, on_target, place, searched
from orchestrator.pipeline.training import job_of, train
from orchestrator.search.best import best_of
from orchestrator.search.objectives import TrialRow, front_of
from orchestrator.search.trial import parent_row
from orchestrator.search.tuning import TuneJob


@dataclass(frozen=True)
class Tuned:
    """What a search over trainings found."""

    found: Found
    best: TrialRow
    """The model as it is where no trial is better."""
    entry: dict[str, Any]
    """The best model as an entry of `models` in a run file."""
    page: Path
    """The report."""


def tune(run: Run, *, fresh: bool = False) -> Tuned:
    """Train the model of `training_search` as it is and with many other settings; name the best one.

    Trials and latencies that are in the store are not repeated. A run file with the entry of the best trial
    finds its artifact in the store, too.

    Raises:
        ConfigError: the run file has no such search, or it had other settings before, and not `fresh`.
        SearchError: no trial finished.
    """
    settings = run.config.training_search
    if settings is None:
        raise ConfigError("the run file has no training_search", fix="docs/run-file.md describes the section")
    check_training_search(run)
    models = train(run, fresh=fresh, only=_with_teachers(run, settings.model))
    job = _job(run, settings, models)
    claim_study(run, "training-study", job, fresh)
    with closing(Measurer(place(run, fresh), job.parent, settings.latency)) as measurer:
        (parent,) = measurer([parent_row(job, settings.model)])
        job = job.model_copy(update={"bench": measurer.machine})
        run.progress("tune", f"{settings.trials} trainings of {settings.model}: {figures(parent, run)}")
        rows, _, spent = searched(run, job, parent, measurer, stage="tune")
    finished = [row for row in (parent, *rows) if row.ok]
    best, reason = best_of(rows, parent, settings, run.config.metric.label)
    run.progress("tune", reason)
    record_quality(run, [(row.digest, row.execution) for row in finished], settings.latency)
    run.name_artifact(settings.result, best.digest)
    found = Found(
        parent=parent,
        rows=tuple(rows),
        front=tuple(front_of([row for row in rows if row.ok])),
        chosen=None if best is parent else best,
        verdict=None,
        reason=reason,
        arms=(parent,),
        elsewhere={
            name: on_target(run, job, name, target, finished, fresh)
            for name, target in settings.targets.items()
        },
        spent=spent,
    )
    entry = _entry(run, settings, found.chosen)
    summary = searched_summary(run, found)
    summary["search"]["best"] = None if found.chosen is None else best.name
    page = report_tuning(run, summary, models, settings, found)
    run.progress("tune", f"report: {page}")
    return Tuned(found, best, entry, page)


def tuned_run(config: RunConfig, entry: dict[str, Any]) -> str:
    """A whole run file with the best model in the place of the one that was searched, as YAML.

    Its run has a name of its own, so that what was trained and found under the old one stays.
    """
    settings = config.training_search
    assert settings is not None
    values = config.given()
    del values["training_search"]
    values |= {"name": f"{config.name}-tuned", "models": {**values["models"], settings.model: entry}}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def snippet(model: str, entry: dict[str, Any]) -> str:
    """The best model as it stands in a run file, as YAML."""
    return yaml.safe_dump({"models": {model: entry}}, sort_keys=False, allow_unicode=True)


def document(run: Run, tuned_: Tuned) -> dict[str, Any]:
    """What machines read of a search over trainings."""
    settings, best = run.config.training_search, tuned_.best
    assert settings is not None
    return {
        "run": run.config.name,
        "model": settings.model,
        "trials": len(tuned_.found.rows),
        "reason": tuned_.found.reason,
        "best": {"ref": f"{run.config.name}/{settings.result}", "config": best.config, **_point(best)},
        "parent": _point(tuned_.found.parent),
        "front": [_point(row) for row in tuned_.found.front],
        "entry": tuned_.entry,
        "report": str(tuned_.page),
    }


def _point(row: TrialRow) -> dict[str, Any]:
    return {
        "name": row.name,
        "digest": row.digest,
        "metric": row.metric,
        "drop": row.drop,
        "latency_ms": row.latency_ms,
        "p95_ms": row.p95_ms,
        "bytes": row.bytes,
    }


def _entry(run: Run, settings: TrainingSearch, best: TrialRow | None) -> dict[str, Any]:
    """The best model as an entry of the run file; the model's own where no trial is better."""
    written = run.config.models[settings.model].given()
    return written if best is None else tuned(written, settings, best.config)


def _with_teachers(run: Run, model: str) -> list[str]:
    names, name = [], run.config.models[model].teacher
    while name is not None:
        names.append(name)
        name = run.config.models[name].teacher
    return [model, *names]


def _job(run: Run, settings: TrainingSearch, models: dict[str, str]) -> TuneJob:
    entry = run.config.models[settings.model]
    return TuneJob(
        search=settings,
        parent=models[settings.model],
        store=run.store.location,
        data_folder=str(run.dataset.folder),
        data_digest=run.dataset.digest,
        metric=run.config.metric,
        seed=run.config.seed_of(entry),
        allowed=tuple(sorted(run.allowed)),
        entry=entry,
        teacher=models.get(entry.teacher or ""),
        transfer_folder=job_of(run, settings.model, entry, {}).transfer_folder,
    )
