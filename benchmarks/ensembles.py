"""Ensembles of four on CIFAR-10: mixes, cascades, missing members, the planner; other libraries beside them.

`benchmarks/ensembles.yaml` says how the models are made. Everything is fitted on validation rows, guarantees
on calibration rows; the figures are those of test rows. Latencies are of one thread and sixteen rows: part
planning, for which nothing else should run.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.ensembles_autogluon import peers as autogluon_peers
from benchmarks.ensembles_bench import (
    LONG,
    MEMBERS,
    MIX,
    RUN_FILE,
    STUDENTS,
    TEAM,
    THREADS,
    Bench,
    accuracy,
    figures,
    fitted,
    replayed,
    say,
)
from benchmarks.ensembles_digits import digits
from benchmarks.ensembles_planner import planning
from benchmarks.ensembles_sklearn import peers as sklearn_peers
from benchmarks.output import Ratio, Result, main
from benchmarks.parts import run_parts
from orchestrator.config.calibration import AutoScaling
from orchestrator.config.data import PartName
from orchestrator.config.ensemble import Cascade, Member, Node, Parallel, Stacking, WeightedMix
from orchestrator.config.load import load_run
from orchestrator.data.load import default_cache, load
from orchestrator.ensemble.pooled import renormalized
from orchestrator.ensemble.tree import distinct, mean_cost, predict
from orchestrator.errors import ExecutionError
from orchestrator.store.store import Store

PARTS = ("combining", "gains", "missing", "cascades", "planning")
FOLDS = 5
KNOWN: tuple[PartName, ...] = ("validation", "test")
MOST_DROP = 0.003
"""What a cascade may lose against the whole ensemble."""
AIMS: tuple[dict[str, Any], ...] = (
    {"tolerance": MOST_DROP},
    {"guarantee": {"max_loss": 0.005, "confidence": 0.9}},
)


def measure(arguments: argparse.Namespace) -> Result:
    """All figures of the page, of parts that are kept those that were measured."""
    torch.set_num_threads(THREADS)
    known = functools.cache(lambda: _bench(arguments))
    measured = (_combining, _gains, _missing, _cascades, planning)
    parts = {name: functools.partial(_part, part, known) for name, part in zip(PARTS, measured, strict=True)}
    with ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        return run_parts(parts, work, arguments.part)


def _bench(arguments: argparse.Namespace) -> Bench:
    """The models, and what they say of all rows."""
    config = load_run(RUN_FILE, [f"data.root={arguments.data}"])
    data = load(config.data, seed=config.seed, cache=default_cache())
    store = Store(arguments.store, create=False)
    bench = Bench(config, store, data, {part: {} for part in ("validation", "calibration", "test")})
    for name in (*TEAM, LONG, "big", *STUDENTS):
        say(bench, name, Member(name=name, digest=bench.digest(name)))
    return bench


def _part(part: Callable[[Bench], Result], known: Callable[[], Bench]) -> Result:
    return part(known())


def _combining(bench: Bench) -> Result:
    """Every combiner beside those of scikit-learn and AutoGluon on the same predictions, on two data sets."""
    rows: list[dict[str, Any]] = []
    ratios: list[Ratio] = []
    for data, one in (("CIFAR-10", bench), ("digits", digits(bench.store))):
        found, ratio = combining(one, data)
        rows += found
        ratios.append(ratio)
    worst = min(ratios, key=lambda ratio: ratio.value)
    said = "; ".join(f"{ratio.value:.4f} {ratio.of}" for ratio in ratios)
    return rows, {"vs_sklearn_nll": replace(worst, of=said, holds=all(ratio.holds for ratio in ratios))}


def combining(bench: Bench, data: str) -> tuple[list[dict[str, Any]], Ratio]:
    """Combiners on the predictions of one data set's members; ours is chosen on validation rows.

    The best of the peers is chosen by its figure on test rows.
    """
    test, validation = bench.data.part("test").targets, bench.data.part("validation").targets
    auto = AutoScaling()
    ours: dict[str, Node] = {
        "mean": Parallel(members=MEMBERS, calibration=auto),
        "logits": Parallel(members=MEMBERS, rule="logits", calibration=auto),
        "mix": WeightedMix(members=MEMBERS, calibration=auto),
        "log_mix": WeightedMix(members=MEMBERS, rule="logits", calibration=auto),
        "greedy": WeightedMix(members=MEMBERS, method="greedy", calibration=auto),
        "per_class": WeightedMix(members=MEMBERS, method="per_class", calibration=auto),
        "gate": WeightedMix(members=MEMBERS, method="gate", calibration=auto),
        "stacking": Stacking(policy="stacking", members=MEMBERS),
    }
    rows: list[dict[str, Any]] = []
    for name, tree in ours.items():
        held = _held_out_nll(bench, tree)
        found = figures(replayed(bench, fitted(bench, tree)).outputs, test)
        rows.append({"name": name, "data": data, "own": True, "validation_nll": held, **found})
    best = min(rows, key=lambda row: float(row["validation_nll"]))
    theirs = sklearn_peers(bench, validation, test) | autogluon_peers(bench, validation, test)
    peers: list[dict[str, Any]] = [
        {"name": name, "data": data, "own": False, **found} for name, found in theirs.items()
    ]
    peer = min(peers, key=lambda row: float(row["nll"]))
    most = max(float(row["accuracy"]) for row in peers)
    value = float(peer["nll"]) / float(best["nll"])
    accuracies = f"accuracy {best['accuracy']:.4f}, of peers at most {most:.4f}"
    of = f"{data}, {best['name']} over {peer['name']}, {accuracies}"
    return [*rows, *peers], Ratio(value, 1.0, of=of, holds=float(best["accuracy"]) >= most)


def _held_out_nll(bench: Bench, tree: Node) -> float:
    """Mean over folds of validation rows, each answered by a tree that was fitted on the others."""
    targets = bench.data.part("validation").targets
    fold = np.random.default_rng(0).permutation(len(targets)) % FOLDS
    found = []
    for number in range(FOLDS):
        prediction = replayed(bench, fitted(bench, tree, fold != number), "validation")
        mine = fold == number
        found.append(figures(prediction.outputs[mine], targets[mine])["nll"])
    return float(np.mean(found))


def _gains(bench: Bench) -> Result:
    """The mix beside its members, what four times the time buys, and what four times the operations buy."""
    test = bench.data.part("test").targets
    singles = {name: figures(found, test) for name, found in bench.said["test"].items()}
    mix = fitted(bench, MIX)
    assert isinstance(mix, WeightedMix)
    found = figures(replayed(bench, mix).outputs, test)
    rows = [{"name": name, "own": True, "macs": bench.macs(name), **one} for name, one in singles.items()]
    best = max(singles[name]["accuracy"] for name in TEAM)
    longest = singles[LONG]["accuracy"]
    big = singles["big"]["accuracy"]
    return [*rows, {"name": "mix of four", "own": True, "rule": mix.rule, **found}], {
        "mix_gain": Ratio(found["accuracy"] - best, 0.025),
        "mix_vs_budget": Ratio((1 - found["accuracy"]) / (1 - longest), 0.92, at_most=True),
        "mix_vs_four_times_the_macs": Ratio((1 - found["accuracy"]) / (1 - big), 1.0, at_most=True),
        "ece": Ratio(found["ece"], 0.02, at_most=True),
    }


def _missing(bench: Bench) -> Result:
    """Each member missing in turn: calibration and promised accuracy, with and without a set's own fit."""
    test = bench.data.part("test").targets
    whole, plain = fitted(bench, MIX.model_copy(update={"quorum": 3})), fitted(bench, MIX)
    assert isinstance(whole, WeightedMix)
    rows: list[dict[str, Any]] = []
    for gone, name in enumerate(TEAM):
        found = predict(whole, _answering(bench, whole, name), np.arange(len(test)), "classification")
        own = figures(found.outputs, test)
        assert found.expected is not None
        held = found.expected.low <= own["accuracy"] <= found.expected.high
        rest = [member for member in whole.members if cast(Member, member).name != name]
        naive = WeightedMix(
            members=tuple(rest),
            rule=whole.rule,
            weights=renormalized(cast(WeightedMix, plain).weights, (gone,)),
            calibration=cast(WeightedMix, plain).calibration,
        )
        rows.append(
            {
                "name": f"without {name}",
                **own,
                "expected": found.expected.value,
                "within": held,
                "plain_ece": figures(replayed(bench, naive).outputs, test)["ece"],
            }
        )
    worst = max(float(row["ece"]) for row in rows)
    return rows, {
        "quorum_ece": Ratio(worst, 0.03, at_most=True, holds=all(bool(row["within"]) for row in rows))
    }


def _answering(
    bench: Bench, tree: Node, gone: str
) -> dict[Member, Callable[[NDArray[Any]], NDArray[np.float32]]]:
    def call(name: str, rows: NDArray[Any]) -> NDArray[np.float32]:
        if name == gone:
            raise ExecutionError("the member is gone", name)
        found: NDArray[np.float32] = bench.said["test"][name][rows]
        return found

    return {member: functools.partial(call, member.name) for member in distinct(tree)}


def _cascades(bench: Bench) -> Result:
    """Students first, the mix for rows that they are not sure of: the cheapest that keeps its accuracy on
    validation rows, by its cost there."""
    mix = fitted(bench, MIX)
    whole = {part: _accuracy(bench, mix, part) for part in KNOWN}
    full = sum(bench.macs(name) for name in TEAM)
    ways: list[tuple[str, ...]] = [(name,) for name in STUDENTS]
    ways += [("quarter", "half"), ("quarter", "merged"), ("half", "merged")]
    rows: list[dict[str, Any]] = []
    for way, aim in product(ways, AIMS):
        stages = (*(Member(name=name, digest=name) for name in way), MIX)
        tree = fitted(bench, Cascade.model_validate({"stages": stages, **aim}))
        costs = {part: _share(bench, tree, part, full) for part in KNOWN}
        drops = {part: whole[part] - _accuracy(bench, tree, part) for part in KNOWN}
        rows.append(
            {
                "name": " -> ".join((*way, "mix")),
                "guarantee": "guarantee" in aim,
                "validation_cost": costs["validation"],
                "cost": costs["test"],
                "validation_drop": drops["validation"],
                "drop": drops["test"],
            }
        )
    kept_there = [row for row in rows if float(row["validation_drop"]) <= MOST_DROP]
    best = min(kept_there, key=lambda row: float(row["validation_cost"]))
    name = str(best["name"])
    kept = float(best["drop"]) <= MOST_DROP
    return rows, {"cascade_cost": Ratio(float(best["cost"]), 0.35, at_most=True, holds=kept, of=name)}


def _accuracy(bench: Bench, tree: Node, part: PartName) -> float:
    return accuracy(replayed(bench, tree, part), bench.data.part(part).targets)


def _share(bench: Bench, tree: Node, part: PartName, full: float) -> float:
    """Operations a row, in those of the four members."""
    prediction = replayed(bench, tree, part)
    macs = {member: bench.macs(member.name) for member in prediction.members}
    return mean_cost(prediction, macs) * sum(macs.values()) / full


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", required=True, metavar="FOLDER", help="of the CIFAR-10 Parquet files")
    parser.add_argument("--work", type=Path, metavar="FOLDER", help="keep parts there, and go on from them")
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="this part only, again; may be repeated"
    )
    parser.add_argument("--store", required=True, metavar="STORE", help="that the models are in")


if __name__ == "__main__":
    main("ensembles", __doc__, measure, _arguments)
