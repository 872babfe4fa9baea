"""`orchestrator choose`: the run's models and variants become ensembles, and one of them keeps the goal."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter, ValidationError

from orchestrator.config.ensemble import Member, Node, Spec, leaves
from orchestrator.config.goal import Costs, Goal
from orchestrator.config.load import validate
from orchestrator.config.measure import Metric
from orchestrator.config.run import FRONT_NAMES, Name, RunConfig
from orchestrator.ensemble.crossfit import Evidence, Judged, Measured
from orchestrator.ensemble.goals import Choice, Honest, choose, honest
from orchestrator.ensemble.planner import STUDENT, Point, Survey, survey
from orchestrator.ensemble.tree import distinct, replay
from orchestrator.errors import ConfigError
from orchestrator.files import write_whole
from orchestrator.measure.corrupt import shifts
from orchestrator.measure.metrics import score, statistic
from orchestrator.measure.quality import quality
from orchestrator.pipeline.assembling import Assembly
from orchestrator.pipeline.compressing import compress_variants
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.ensembling import describe
from orchestrator.pipeline.evaluation import spec_latencies
from orchestrator.pipeline.gathering import Gathered, gather, walk_ms
from orchestrator.pipeline.limits import check_named, check_search
from orchestrator.pipeline.reporting import CHOICE, report, report_again, searched_summary
from orchestrator.pipeline.run import opened, read_config
from orchestrator.pipeline.searching import Found, search
from orchestrator.pipeline.training import train
from orchestrator.runtime.outputs import shifted_outputs

SCHEMA = 1
MOST_SHOWN = 24
"""Points of the front that are looked at closely: test figures, shifted rows."""
SHIFTED_ROWS = 512
"""Validation rows that are shifted; more where the metric is undefined on these."""
SEVERITIES = (1, 3, 5)
_NAME: TypeAdapter[str] = TypeAdapter(Name)


def choose_file(
    config: str,
    goal: Goal,
    *,
    costs: Mapping[str, Any],
    name: str = "choice",
    store: str | None = None,
    overrides: Sequence[str] = (),
    data: str | None = None,
    fresh: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Choose among what a run file's models, variants and search give; see `choose_for`.

    What the run has not finished is done first, as by the other commands.

    Args:
        config: path of the run file.
        goal: the bounds.
        costs: settings of `Costs`; batch and threads are the run's where not given.
        name: ref of the spec, below the run's.
        store: path or URI of the store.
        overrides: settings to change first.
        data: folder of the run's data files.
        fresh: what has to be done first is done anew even if it had other settings before.
        quiet: show no progress.

    Raises:
        ConfigError: the name is taken, or the reference is no model of the run.
        OrchestratorError: whatever else went wrong, as one sentence.
    """
    settings = read_config(config, overrides, data)
    _check_names(settings, goal, name)
    latency = settings.latency
    own = {"batches": (latency.batch,), "threads": latency.threads}
    priced = validate(Costs, {**own, **costs}, "the costs")
    with opened(settings, store, not quiet) as run, run.progress:
        check_search(run)
        check_named(run)
        models = train(run, fresh=fresh)
        variants = compress_variants(run, models)
        found = search(run, models, variants, fresh=fresh)
        members = Assembly(run, models, variants, found, fresh=fresh).students()
        variants = {variant: members[variant] for variant in settings.variants}
        gathered = gather(run, models, variants, found, priced)
        document = choose_for(run, gathered, goal, priced, name)
        document["variants"] = {variant: member.digest for variant, member in variants.items()}
        _keep(run, document, models, found)
    return document


def choose_for(run: Run, gathered: Gathered, goal: Goal, costs: Costs, name: str) -> dict[str, Any]:
    """Survey, choose, and store what was chosen as `<run>/<name>`.

    Returns:
        What `choose.json` holds: `goal`, `reference`, `candidates` (how many), `points` (the front, the
        baselines and the chosen), `recommended` and `nearest` (places in `points`, or None), `reason`,
        `honest`, `spec`, `notes`.
    """
    pool, validation = gathered.pool, run.dataset.part("validation")
    outputs = {one.member: run.outputs(one.member, "validation") for one in pool}
    task = run.dataset.signature.task
    evidence = Evidence(
        outputs, validation.targets, run.config.metric, task, seed=run.config.seed, allowed=run.allowed
    )
    surveyed = survey(pool, evidence, goal, costs, walk_ms=walk_ms(run, costs), students=gathered.students)
    count = len({point.judged for point in surveyed.points})
    run.progress("choose", f"{count} candidates of {len(pool)} models, {len(surveyed.front)} on the front")
    # A bound on the robustness can only be held against what was run on shifted rows.
    first = choose(surveyed, goal.model_copy(update={"min_robustness": None}))
    wanted = dict.fromkeys(point.judged for point in _shown(surveyed, first))
    trees = {judged: evidence.fitted(judged.candidate) for judged in wanted}
    robust = _robustness(run, trees, evidence.larger)
    choice = first if goal.min_robustness is None else choose(surveyed, goal, robustness=robust)
    shown = _shown(surveyed, first, choice)
    table = _Table(
        trees,
        dict(zip(trees, evidence.intervals(list(trees), surveyed.reference), strict=True)),
        robust if evidence.larger else {judged: -gain for judged, gain in robust.items()},
    )
    document = {
        "schema": SCHEMA,
        "run": run.config.name,
        "data": run.dataset.digest,
        "metric": run.config.metric.name,
        "larger_is_better": evidence.larger,
        "goal": goal.bounds(),
        "costs": costs.plain(),
        "candidates": count,
        "reference": _named(evidence.fitted(surveyed.reference.candidate)),
        "points": [_point(run, surveyed, table, point) for point in shown],
        "nearest": shown.index(choice.point),
        "recommended": None if choice.beyond else shown.index(choice.point),
        "notes": [*gathered.notes, *surveyed.notes],
        "honest": None,
        "spec": None,
    }
    fair = None if choice.beyond else honest(surveyed, goal)
    document["reason"] = _reason(choice, goal, table, fair, len(validation.targets))
    if fair is not None:
        document["honest"] = {"metric": fair.gain if evidence.larger else -fair.gain, "drop": fair.drop}
    if not choice.beyond:
        document["spec"] = _store(run, gathered, choice.point, table.trees[choice.point.judged], costs, name)
    run.progress("choose", str(document["reason"]))
    return document


@dataclass(frozen=True)
class _Table:
    """What is known of the candidates that are shown."""

    trees: Mapping[Judged, Node]
    """Fitted on all validation rows."""
    figures: Mapping[Judged, Measured]
    robust: Mapping[Judged, float]
    """Metric on shifted rows."""


def _check_names(settings: RunConfig, goal: Goal, name: str) -> None:
    taken = (*settings.models, *settings.variants, *settings.ensembles, *FRONT_NAMES)
    if name in taken:
        raise ConfigError("the name is taken in this run", name, "give another with --name")
    try:
        _NAME.validate_python(name)  # else found out after all is measured
    except ValidationError as error:
        fix = "give letters, digits, '_', '.' and '-' with --name, 100 at most"
        raise ConfigError("this cannot be the name of an ensemble", name, fix) from error
    known = (*settings.models, *settings.variants)
    if goal.reference is not None and goal.reference not in known:
        raise ConfigError("the reference is no model of the run", goal.reference, f"use {', '.join(known)}")


def _shown(surveyed: Survey, *choices: Choice) -> list[Point]:
    """The front, thinned where it is long, the baselines, the reference and the choices, and of each ensemble
    among them the student that was distilled from it; fastest first."""
    front = surveyed.front
    if len(front) > MOST_SHOWN:
        places = np.linspace(0, len(front) - 1, MOST_SHOWN).round().astype(int)
        front = tuple(front[place] for place in places)
    reference = next(point for point in surveyed.points if point.judged is surveyed.reference)
    chosen = [choice.point for choice in choices]
    wanted = dict.fromkeys((*front, *surveyed.baselines.values(), reference, *chosen))
    teams = [frozenset(leaf.digest for leaf in leaves(point.tree)) for point in wanted]
    wanted |= dict.fromkeys(surveyed.students[team] for team in teams if team in surveyed.students)
    return sorted(wanted, key=lambda point: (point.batch, point.latency_ms))


def _robustness(run: Run, trees: Mapping[Judged, Node], larger: bool) -> dict[Judged, float]:
    """Gain on shifted validation rows: the mean over kinds and severities."""
    kinds = [(shift, severity) for shift in shifts(run.dataset.signature) for severity in SEVERITIES]
    members = {(leaf.digest, leaf.execution): leaf for tree in trees.values() for leaf in distinct(tree)}
    part = run.dataset.part("validation")
    leaf = next(iter(members.values()))
    rows = rows_to_shift(run.config.metric, run.outputs(leaf, "validation"), part.targets, run.allowed)
    run.progress("choose", f"running {len(members)} models on {len(kinds)} kinds of shifted rows")
    said = {
        key: shifted_outputs(
            run.store,
            member.digest,
            member.execution,
            run.dataset,
            "validation",
            run.config.latency,
            shifts=kinds,
            rows=rows,
            seed=run.config.seed,
            allowed=run.allowed,
        )
        for key, member in members.items()
    }
    targets, found = part.targets[:rows], {}
    for judged, tree in trees.items():
        values = []
        for place in range(len(kinds)):
            outputs = {leaf: said[leaf.digest, leaf.execution][place] for leaf in distinct(tree)}
            answer = replay(tree, outputs, run.dataset.signature.task).outputs
            values.append(score(run.config.metric, answer, targets, allowed=run.allowed))
        found[judged] = float(np.mean(values)) * (1 if larger else -1)
    return found


def rows_to_shift(
    metric: Metric, outputs: npt.NDArray[Any], targets: npt.NDArray[Any], allowed: Collection[str]
) -> int:
    """How many of the first rows [N] are shifted: more where the metric is undefined on so few."""
    rows = min(SHIFTED_ROWS, len(targets))
    while rows < len(targets):
        at = statistic(metric, outputs[:rows], targets[:rows], allowed=allowed)
        if not math.isnan(at(np.ones(rows))):
            break
        rows = min(2 * rows, len(targets))
    return rows


def _point(run: Run, surveyed: Survey, table: _Table, point: Point) -> dict[str, Any]:
    """A row of the table as plain values."""
    tree, measured = table.trees[point.judged], table.figures[point.judged]
    labels = [name for name, one in surveyed.baselines.items() if one is point]
    if point in surveyed.students.values() and STUDENT not in labels:
        labels.append(STUDENT)
    test = run.dataset.part("test")
    outputs = {leaf: run.outputs(leaf, "test") for leaf in distinct(tree)}
    answer = replay(tree, outputs, run.dataset.signature.task).outputs
    found = quality(run.config.metric, answer, test.targets, seed=run.config.seed, allowed=run.allowed)
    return {
        "name": _named(tree),
        "kind": tree.kind,
        "members": [f"{leaf.name} ({leaf.execution})" for leaf in distinct(tree)],
        "baseline": ", ".join(labels),
        "reference": point.judged is surveyed.reference,
        "front": point in surveyed.front,
        "batch": point.batch,
        "placement": point.placement,
        "metric": {"value": measured.value, "ci": list(measured.ci)},
        "drop": {"value": measured.drop, "ci": list(measured.drop_ci)},
        "test": {"value": found.value, "ci": list(found.ci)},
        "robustness": table.robust[point.judged],
        "latency_ms": point.latency_ms,
        "p99_ms": point.p99_ms,
        "cost_per_million": point.cost_per_million,
        "bytes": point.bytes,
        "macs": point.macs,
        "models_per_answer": point.models_per_answer,
        "reach": list(point.judged.reach),
    }


def _store(run: Run, gathered: Gathered, point: Point, tree: Node, costs: Costs, name: str) -> dict[str, Any]:
    """Keep the spec as `<run>/<name>`, and measure it whole."""
    spec = Spec(
        name=name, tree=tree, signature=run.dataset.signature, batch=point.batch, threads=costs.threads
    )
    digest = run.store.put_spec(spec)
    run.name_artifact(name, digest)
    latency = run.config.latency.model_copy(update={"batch": point.batch, "threads": costs.threads})
    measuring = replace(run, config=run.config.model_copy(update={"latency": latency}))
    measured = spec_latencies(measuring, {name: spec}, gathered.baseline)[name]
    return {
        "ref": f"{run.config.name}/{name}",
        "digest": digest,
        "placement": point.placement,
        "fused_ms": {"median": measured["median"], "ci": measured["ci"]},
    }


def _reason(choice: Choice, goal: Goal, table: _Table, fair: Honest | None, rows: int) -> str:
    """Why this one, or what came nearest, as a sentence without its stop."""
    point, found = choice.point, table.figures[choice.point.judged]
    name = _named(table.trees[point.judged])
    if choice.beyond:
        said = ", ".join(f"{bound}{_by(bound, over)}" for bound, over in choice.beyond.items())
        return f"none qualifies: the nearest is {name}, which misses {said}"
    bounds = ", ".join(key for key in goal.bounds() if key != "reference")
    within = f" within {bounds}" if bounds else ""
    what = "the fastest a row" if goal.max_drop is not None else "the best metric"
    low, high = found.drop_ci
    parts = [
        f"{name}: {what}{within}",
        f"it drops by {found.drop:.4f} ({low:.4f} to {high:.4f}) against the reference and takes "
        f"{point.latency_ms:.3g} ms for {point.batch} rows, {point.placement}",
    ]
    if fair is not None:
        parts.append(
            f"chosen anew among these without each fifth of the rows it drops by {fair.drop:.4f} there"
        )
    if goal.max_drop is not None and high > goal.max_drop:
        parts.append(f"{rows} validation rows cannot rule out a drop of {high:.4f}")
    return "; ".join(parts)


def _named(tree: Node) -> str:
    """A fitted tree in words; of one model its execution too."""
    return f"{tree.name} ({tree.execution})" if isinstance(tree, Member) else f"{tree.kind}: {describe(tree)}"


def _by(bound: str, over: float) -> str:
    if bound == "single_model":
        return ""
    return f" by {over:.4f}" if bound in ("max_drop", "min_robustness") else f" by {over:.0%}"


def _keep(run: Run, document: dict[str, Any], models: dict[str, str], found: Found | None) -> None:
    """Write `choose.json`, and the run's page with its section, where the run has a page or a search."""
    document["models"] = models
    run.folder.mkdir(parents=True, exist_ok=True)
    write_whole(run.folder / CHOICE, json.dumps(document, indent=2) + "\n")
    if report_again(run.folder) is None and found is not None:
        report(run, searched_summary(run, found), models, found)
