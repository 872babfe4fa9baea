"""The page for people: what it shows beyond the summary, and how it is written again without a cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml

from orchestrator.config.ensemble import Cascade, Parallel, Spec, WeightedMix
from orchestrator.config.measure import Target
from orchestrator.config.search import Searching, SearchSettings
from orchestrator.ensemble.explain import label
from orchestrator.errors import NotFoundError
from orchestrator.files import write_whole
from orchestrator.measure.intervals import wilson
from orchestrator.measure.machine import machine
from orchestrator.measure.metrics import ROW_METRICS, larger_is_better
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.evaluation import Evaluation
from orchestrator.pipeline.judging import audit_of
from orchestrator.pipeline.searching import Found
from orchestrator.pipeline.summary import subject_of
from orchestrator.pipeline.training import curves
from orchestrator.search.objectives import PARENT, TrialRow
from orchestrator.search.report import Details, write_report
from orchestrator.search.report.schema import Searched, TrialPoint
from orchestrator.search.space import displayed

PAGE = "report.html"
SOURCE = "report.json"
"""Beside the page: the summary and details that it was made of."""
CHOICE = "choose.json"
"""What `orchestrator choose` left, a section of the page."""
TUNING = "tuning"
"""Folder of the page of a search over trainings."""
_HERE = "this machine"
_MOST_AUDITS = 12
"""Audits that a report makes, of a second or so each: of the chosen variant, then from the fastest on. One on
record costs nothing."""
GOES_ON = (
    "The search went on after the whole run: test figures, ensembles and serving are still of that run, "
    "until 'orchestrator run' makes them again."
)


def report(
    run: Run,
    summary: dict[str, Any],
    models: dict[str, str],
    found: Found | None,
    specs: dict[str, Spec] | None = None,
    evaluation: Evaluation | None = None,
) -> None:
    """Write `report.html`, and beside it all that is needed to write it again."""
    details = _details(run, models, specs or {}, evaluation)
    if found is not None and run.config.search is not None:
        details |= _searched(run, run.config.search, found)
    _write(run.folder, summary, details)


def report_search(run: Run, models: dict[str, str], found: Found) -> None:
    """The same when only the search was asked for; what a whole run found of the same models stays."""
    assert run.config.search is not None
    summary = searched_summary(run, found)
    details = _details(run, models, {}, None) | _searched(run, run.config.search, found)
    with suppress(NotFoundError):  # a page that cannot be read is written anew
        whole = _read(run.folder / SOURCE)
        if whole is not None and _is_whole(whole[0], summary, models):
            summary, details = _laid_over(*whole, summary, details, found)
    _write(run.folder, summary, details)


def _is_whole(before: dict[str, Any], summary: dict[str, Any], models: dict[str, str]) -> bool:
    """Whether a page is of a whole run of these models on these rows."""
    found = {name: figures.get("digest") for name, figures in before.get("models", {}).items()}
    rows = before.get("seed"), before.get("data", {}).get("digest")
    return rows == (summary["seed"], summary["data"]["digest"]) and models.items() <= found.items()


def _laid_over(
    whole: dict[str, Any], shown: Details, summary: dict[str, Any], details: Details, found: Found
) -> tuple[dict[str, Any], Details]:
    """A whole run's page with the search as it is now; a note where that found something else."""
    before, now = whole["search"], summary["search"]
    kept = {(row.digest, row.execution) for row in found.front}
    search = {**now, "front": [point for point in before["front"] if subject_of(point) in kept]}
    if now["chosen"] and before["chosen"] and subject_of(now["chosen"]) == subject_of(before["chosen"]):
        search["chosen"] = {**before["chosen"], **now["chosen"]}
    went_on = (now["trials"], now["reason"]) != (before["trials"], before["reason"])
    notes = list(dict.fromkeys([*shown.get("notes", []), *([GOES_ON] if went_on else [])]))
    of_the_run: Details = {
        "exits": shown.get("exits", {}),
        "stages": shown.get("stages", {}),
        "weights": shown.get("weights", {}),
        "examples": shown.get("examples", {}),
        "notes": notes,
    }
    return {**whole, "search": {**before, **search}}, details | of_the_run


def report_tuning(
    run: Run, summary: dict[str, Any], models: dict[str, str], settings: Searching, found: Found
) -> Path:
    """The same page for a search over trainings, in a folder of its own; where it is."""
    folder = run.folder / TUNING
    _write(folder, summary, _details(run, models, {}, None) | _searched(run, settings, found))
    return folder / PAGE


def _write(folder: Path, summary: dict[str, Any], details: Details) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / SOURCE, json.dumps({"summary": summary, "details": details}))
    write_report(summary, _with_choice(folder, summary, details), folder / PAGE)


def _with_choice(folder: Path, summary: Mapping[str, Any], details: Details) -> Details:
    """The details with what was chosen among these models, and maybe further ones, if anything was."""
    try:
        choice = json.loads((folder / CHOICE).read_text(encoding="utf-8"))
        models = choice["models"]
        known = {**choice.get("variants", {}), **models}
        same = (
            choice["data"] == summary["data"]["digest"]
            and details.get("models", {}).items() <= models.items()
            and all(
                found["digest"] == known.get(name, found["digest"])
                for name, found in summary["models"].items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return details
    return {**details, "choosing": choice} if same else details


def report_again(folder: Path) -> dict[str, Any] | None:
    """Write a run's page from what its folder holds.

    Returns:
        The summary that the page shows; None when the folder does not hold its source.

    Raises:
        NotFoundError: the source cannot be read.
    """
    found = _read(folder / SOURCE)
    if found is None:
        return None
    summary, details = found
    write_report(summary, _with_choice(folder, summary, details), folder / PAGE)
    return summary


def _read(source: Path) -> tuple[dict[str, Any], Details] | None:
    if not source.exists():
        return None
    try:
        found = json.loads(source.read_text(encoding="utf-8"))
        return dict(found["summary"]), cast(Details, dict(found["details"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise NotFoundError(
            "the report's source cannot be read", source, "run the run file again: finished work is kept"
        ) from error


def searched_summary(run: Run, found: Found) -> dict[str, Any]:
    """What is known when only the search was asked for: a summary without test figures."""
    chosen = None
    if found.chosen is not None and found.verdict is not None:
        chosen = {
            "name": found.chosen.name,
            "digest": found.chosen.digest,
            "execution": found.chosen.execution,
            "verdict": found.verdict.plain(),
        }
    return {
        "run": run.config.name,
        "seed": run.config.seed,
        "seconds": round(run.progress.seconds, 1),
        "metric": run.config.metric.name,
        "machine": machine(),
        "data": {"digest": run.dataset.digest, **run.dataset.facts},
        "models": {},
        "search": {
            "trials": len(found.rows),
            "front": [],
            "chosen": chosen,
            "reason": found.reason,
            "verdict": found.verdict.plain() if found.verdict else None,
            "spent": found.spent.plain(),
        },
        "ensembles": {},
        "serving": {},
    }


def _details(
    run: Run,
    models: dict[str, str],
    specs: Mapping[str, Spec],
    evaluation: Evaluation | None,
) -> Details:
    """What the report shows beyond the summary."""
    trees = {name: spec.tree for name, spec in specs.items()}
    more: Details = {
        "models": models,
        "curves": curves(run, models),  # type: ignore[typeddict-item]  # plain records of that shape
        "larger_is_better": larger_is_better(run.config.metric),
        "exits": evaluation.exits if evaluation else {},
        "examples": evaluation.examples if evaluation else {},
        "stages": {
            name: [label(stage) for stage in tree.stages]
            for name, tree in trees.items()
            if isinstance(tree, Cascade)
        },
        "weights": {
            name: {label(member): weight for member, weight in zip(tree.members, tree.weights, strict=True)}
            for name, tree in trees.items()
            if isinstance(tree, Parallel | WeightedMix) and tree.weights is not None
        },
        "config": yaml.safe_dump(run.config.plain(), sort_keys=False, allow_unicode=True),
        "notes": [],
    }
    return more


def _searched(run: Run, settings: Searching, found: Found) -> Details:
    """What the report shows of a search."""
    more: Details = {"targets": _targets(run, settings, found)}
    if settings.allowed_drop is not None:
        more["max_drop"] = settings.allowed_drop
    return more


def _targets(run: Run, settings: Searching, found: Found) -> dict[str, Searched]:
    """The trials and arms by the target that they were measured on."""
    wanted = [found.chosen, *found.front] if found.chosen else list(found.front)
    audited = set(list(dict.fromkeys(row.digest for row in wanted))[:_MOST_AUDITS])
    everything = {_HERE: (settings.latency, (*found.rows, *found.arms))}
    everything |= {name: (settings.targets[name], rows) for name, rows in found.elsewhere.items()}
    targets: dict[str, Searched] = {}
    for name, (target, rows) in everything.items():
        parent = next((row for row in rows if row.number == PARENT), None)
        targets[name] = {
            "trials": [_trial(run, settings, row, audited) for row in rows if row is not parent],
            "setting": _setting(target),
        }
        if parent is not None and parent.ok:
            targets[name]["parent"] = _point(run, parent)
        if found.chosen is not None:
            targets[name]["chosen"], targets[name]["chosen_number"] = found.chosen.name, found.chosen.number
    return targets


def _setting(target: Target) -> str:
    """Machine, batch and threads in words."""
    threads = f"{target.threads} thread{'' if target.threads == 1 else 's'}"
    held = "" if target.isa == "native" else f", held to {target.isa.upper()}"
    where = machine()["cpu"] if target.resource is None else f"a node with {target.resource}"
    return f"{where}{held}, batch {target.batch}, {threads}"


def _trial(run: Run, settings: Searching, row: TrialRow, audited: set[str]) -> TrialPoint:
    point = _point(run, row)
    if row.ok and not row.feasible:
        point["violations"] = _violations(row, settings)
    plan = _plan(run, row)
    if plan is not None:
        point["plan"] = plan
    if row.digest:
        verdict = _verdict(run, settings, row)
        if verdict is not None:
            point["verdict"] = verdict
        facts = audit_of(run, row.digest, missing=row.digest in audited)
        if facts is not None:
            point["audit"] = {name: value for name, value in facts.items() if name != "bytes"}
    return point


def _point(run: Run, row: TrialRow) -> TrialPoint:
    point = TrialPoint(
        number=row.number,
        name=row.name,
        config={} if row.arm else displayed(row.config),
        execution=row.execution,
        digest=row.digest,
        status=row.status,
        reason=row.reason,
        arm=row.arm,
        seconds=row.seconds,
    )
    if row.status != "failed":
        point["metric"] = row.metric
        if row.status != "stopped":
            point["bytes"], point["drop"], point["drop_bound"] = row.bytes, row.drop, row.drop_bound
        if run.config.metric.name in ROW_METRICS:
            count = len(run.dataset.part("validation").ids)
            point["metric_ci"] = wilson(row.metric * count, count)
    if row.ok:
        point["latency_ms"], point["latency_ci"] = row.latency_ms, row.latency_ci
        if row.p95_ms is not None:
            point["p95_ms"] = row.p95_ms
        point["speedup"], point["speedup_ci"] = row.speedup, row.speedup_ci
    return point


def _violations(row: TrialRow, settings: Searching) -> list[str]:
    """A sentence for each limit that the row does not keep."""
    said = {
        "max_drop": f"drops by {row.drop:.4f} on validation, more than the allowed {settings.allowed_drop}",
        "max_changed": f"changes {row.changed or 0:.2%} of the answers, more than max_changed",
        "max_class_drop": f"drops by {row.class_drop or 0:.4f} on one class, more than max_class_drop",
        "max_latency_ms": f"takes {row.latency_ms:.3g} ms, more than {settings.max_latency_ms}",
        "max_bytes": f"has {row.bytes:,} bytes, more than {settings.max_bytes}",
    }
    return [said[name] for name, beyond in row.violations.items() if beyond > 0]


def _plan(run: Run, row: TrialRow) -> list[dict[str, Any]] | None:
    """The row's own plan, else that of its artifact; None where neither is known."""
    if row.plan:
        return [dict(step) for step in row.plan]
    if not row.digest or not run.store.has(row.digest):
        return None
    return [step.plain() for step in run.store.manifest(row.digest).plan]


def _verdict(run: Run, settings: Searching, row: TrialRow) -> dict[str, Any] | None:
    """The contract part's answer about this promise, where this variant was looked at in this execution."""
    if not isinstance(settings, SearchSettings):
        return None
    look = {
        "kind": "look",
        "execution": row.execution,
        "data": run.dataset.digest,
        "metric": run.config.metric.plain(),
        "promise": settings.promise.plain(),
    }
    found = [record for record in run.store.records(row.digest) if look.items() <= record.items()]
    return _last(found)


def _last(records: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return records[-1] if records else None
