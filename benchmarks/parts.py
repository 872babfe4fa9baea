"""A benchmark in parts: each fails by itself and is kept in a folder, so a run that broke off goes on."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.output import Ratio, Result, commit


def run_parts(
    parts: Mapping[str, Callable[[], Result]], results: Path, wanted: Collection[str] | None = None
) -> Result:
    """Measure what is missing in the folder `results`, or what is wanted; then all that is known.

    Args:
        parts: by name, which is that of their file.
        results: made if it is not there.
        wanted: these parts, measured again if they were before; without any, all that are missing.
    """
    results.mkdir(parents=True, exist_ok=True)
    for name, measure in parts.items():
        if name in wanted if wanted else not kept(results, name):
            run_part(name, results, measure)
    return gathered(results, parts)


def run_part(name: str, results: Path, measure: Callable[[], Result]) -> None:
    """Measure one part, and keep what came of it."""
    print(f"part {name}", file=sys.stderr)
    started = time.monotonic()
    try:
        rows, ratios = measure()
    except Exception as error:  # the other parts are to be measured
        print(f"part {name} failed: {error}", file=sys.stderr)
        rows, ratios = [{"failed": f"{type(error).__name__}: {error}"}], {}
    _write(
        results / f"{name}.json",
        {
            "part": name,
            "git": commit(),
            "seconds": round(time.monotonic() - started, 1),
            "rows": [{"part": name, **row} for row in rows],
            "ratios": {
                key: ratio.plain() | {"at_most": ratio.at_most, "holds": ratio.holds}
                for key, ratio in ratios.items()
            },
        },
    )


def kept(results: Path, name: str) -> bool:
    """Whether this part was measured to its end before."""
    file = results / f"{name}.json"
    return file.exists() and not any("failed" in row for row in json.loads(file.read_text())["rows"])


def gathered(results: Path, names: Iterable[str]) -> Result:
    """All parts that are kept, in this order."""
    rows, ratios = list[dict[str, Any]](), dict[str, Ratio]()
    for name in names:
        file = results / f"{name}.json"
        if not file.exists():
            continue
        part = json.loads(file.read_text())
        rows += [{"part": name, "git": part["git"], "seconds": part["seconds"]}, *part["rows"]]
        for key, found in part["ratios"].items():
            value = math.nan if found["value"] is None else found["value"]
            ratios[key] = Ratio(
                value,
                found["goal"],
                at_most=found["at_most"],
                holds=found.get("holds", True),
                of=found.get("of", ""),
            )
    return rows, ratios


def _write(file: Path, result: Mapping[str, Any]) -> None:
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(result, indent=2))
    draft.rename(file)
