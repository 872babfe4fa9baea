"""Spoken digits of a speaker that no model has heard: each of the six left out in turn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import stats

from benchmarks.ensembles_digits import trained
from orchestrator.config.data import PartName
from orchestrator.config.ensemble import Member, WeightedMix
from orchestrator.config.load import load_run
from orchestrator.data.load import default_cache, load
from orchestrator.ensemble.fit import fit
from orchestrator.ensemble.tree import replay
from orchestrator.measure.intervals import wilson

PARTS: tuple[PartName, ...] = ("validation", "test")
FILES = ("spoken-digits-train.parquet", "spoken-digits-test.parquet")


def speakers(run_file: Path, data: Path, work: Path) -> list[dict[str, Any]]:
    """Accuracy of each model and of their mix, by speaker and over all.

    Args:
        run_file: of the speech run: its models, recipes and seed.
        data: folder of the Parquet files; both are used, the official split is left aside.
        work: folder for the files of one speaker.
    """
    table = pa.concat_tables(pq.read_table(data / name) for name in FILES)
    spoken_by = np.asarray(table["speaker"].to_pylist())
    work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for speaker in sorted(set(spoken_by.tolist())):
        for name, mine in (("train", spoken_by != speaker), ("test", spoken_by == speaker)):
            pq.write_table(table.filter(pa.array(mine)), work / f"{name}.parquet")
        right = _right(run_file, work)
        rows += [_row(name, speaker, hits) for name, hits in right.items()]
        print(
            "  ".join(f"{row['name']} {row['accuracy']:.3f}" for row in rows[-len(right) :]),
            speaker,
            flush=True,
        )
    for name in {row["name"]: None for row in rows}:
        own = [row for row in rows if row["name"] == name]
        hits, count = (sum(row[key] for row in own) for key in ("right", "rows"))
        found = np.array([row["accuracy"] for row in own])
        # Speakers were drawn, not recordings: of another one as little is known as six tell.
        half = stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
        ends = [float(found.mean() - half), float(found.mean() + half)]
        rows.append({**_row(name, "all", np.arange(count) < hits), "accuracy_ci": ends})
    return rows


def _right(run_file: Path, work: Path) -> dict[str, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """For each model and the mix, which test rows [N] it answers rightly."""
    config = load_run(run_file, [f"data.root={work}", "data.train=train.parquet", "data.test=test.parquet"])
    dataset = load(config.data, seed=config.seed, cache=default_cache())
    parts = {part: dataset.part(part) for part in PARTS}
    said = {
        name: trained(config, dataset, entry, PARTS) for name, entry in config.models.items() if entry.model
    }
    members = {name: Member(name=name, digest=name) for name in said}
    tables = {part: {members[name]: found[part] for name, found in said.items()} for part in parts}
    tree = fit(
        WeightedMix(members=tuple(members.values()), prior=1),
        tables["validation"],
        parts["validation"].targets,
        config.metric,
        "classification",
    )
    answers = {name: found["test"] for name, found in said.items()}
    answers["mix"] = replay(tree, tables["test"], "classification").outputs
    return {name: outputs.argmax(axis=1) == parts["test"].targets for name, outputs in answers.items()}


def _row(name: str, speaker: str, right: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    hits, count = int(right.sum()), len(right)
    return {
        "run": "speech",
        "kind": f"left out: {speaker}",
        "name": name,
        "rows": count,
        "right": hits,
        "accuracy": hits / count,
        "accuracy_ci": list(wilson(hits, count)),
    }
