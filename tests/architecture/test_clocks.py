"""Who reads the wall clock, which jumps: durations and deadlines come from a clock that only rises."""

from __future__ import annotations

import ast

from tests.architecture.modules import ROOT

WALL = {
    *("time.time", "time.time_ns", "time.localtime", "datetime.now", "datetime.utcnow", "datetime.today"),
    *("date.today", "datetime.datetime.now", "datetime.date.today"),
}
STAMPS = {
    "deployments/front.py": "the moment of the last request, for people",
    "deployments/placement.py": "when a record was made",
    "orchestrator/measure/artifacts.py": "when a record was made",
    "orchestrator/pipeline/evaluation.py": "when a record was made",
    "orchestrator/pipeline/recording.py": "when a record was made",
    "orchestrator/search/ledger.py": "when a search began",
    "orchestrator/store/refs.py": "when an entry was made",
    "orchestrator/store/store.py": "names of records, which sort by age",
    "orchestrator/support.py": "times of files in an archive",
    "orchestrator/tracking/mlflow.py": "points of a curve",
    "orchestrator/tracking/tensorboard.py": "points of a curve",
}
AGES = {
    "orchestrator/data/cache.py": "data sets in use are held by locks",
    "orchestrator/store/arrow.py": "nothing is removed there",
    "orchestrator/store/local.py": "whether a time is worth setting anew",
}
"""Compared with times of files; why a wrong clock does no harm. All other ages are the storage's to tell."""


def _reads(name: str) -> bool:
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    bare = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
        if alias.name in ("time", "time_ns", "localtime")
    }
    called = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, (ast.Attribute, ast.Name))}
    return bool(called & (WALL | bare))


def test_the_wall_clock_is_read_for_stamps_and_ages_alone() -> None:
    files = [path for top in ("orchestrator", "deployments", "jobs") for path in (ROOT / top).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if _reads(str(path.relative_to(ROOT)))}
    assert found == {*STAMPS, *AGES}
