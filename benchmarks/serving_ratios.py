"""The claims of the serving benchmark, and how the gain splits. What was not measured makes no figure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from benchmarks.output import Ratio
from benchmarks.serving_arms import (
    BARE,
    BULK,
    COMPOSITION,
    DISTRIBUTED,
    EIGHT,
    FASTAPI,
    MANY,
    ONE,
    OURS,
    TRIO,
    Case,
)

Rows = Mapping[tuple[str, str], Mapping[str, Any]]
"""Rows of the table by server and case. A row that failed has no figures."""
LOST = 0.005
"""Most accuracy that compressed members may lose."""
STEPS = (
    ("transport: both switches of Ray Serve", COMPOSITION, "composition, switches"),
    ("fuse: one replica", "composition, switches", "replica, switches"),
    ("compile: one graph", "replica, switches", "replica, switches, compiled, unbatched"),
    ("batch", "replica, switches, compiled, unbatched", "replica, switches, compiled"),
    ("ingress and batcher of ours", "replica, switches, compiled", OURS),
)


def figure(rows: Rows, server: str, case: Case, name: str = "per_s") -> float:
    """One figure of the table; NaN where it was not measured."""
    found = rows.get((server, case.name), {}).get(name)
    return math.nan if found is None else float(found)


def split(rows: Rows) -> list[dict[str, Any]]:
    """Factors from Ray's documented composition to ours at 16 connections; multiplied, the whole gain."""
    found = []
    for step, before, after in STEPS:
        factor = figure(rows, after, MANY) / figure(rows, before, MANY)
        found.append(
            {"step": step, "from": before, "to": after, "factor": None if math.isnan(factor) else factor}
        )
    return found


def plain_claims(rows: Rows) -> dict[str, Ratio]:
    """Against servers without our graph."""
    ours, composition = figure(rows, OURS, MANY), figure(rows, COMPOSITION, MANY)
    best, name = best_of(rows, {server for server, _ in rows} - {OURS, DISTRIBUTED})
    return {
        "vs_composition": Ratio(ours / composition, 24.0),
        "vs_best_baseline": Ratio(ours / best, 2.8, of=f"over {name}"),
        "p50_vs_fastapi": Ratio(
            figure(rows, OURS, ONE, "p50_ms") / figure(rows, FASTAPI, ONE, "p50_ms"), 0.75, at_most=True
        ),
        "distributed_vs_composition": Ratio(figure(rows, DISTRIBUTED, MANY) / composition, 5.0),
    }


def compiled_claims(rows: Rows) -> dict[str, Ratio]:
    """Against servers with our graph and a batcher of their own."""
    best, name = best_of(rows, {server for server, _ in rows if "compiled" in server})
    return {"vs_best_compiled_baseline": Ratio(figure(rows, OURS, MANY) / best, 1.4, of=f"over {name}")}


def compressed_claims(rows: Rows, lost: Mapping[str, float], where: str) -> dict[str, Ratio]:
    """Of the fastest of the compressed ensembles that keep their accuracy.

    Args:
        rows: with every compressed ensemble at 16 connections, one row and eight a request.
        lost: accuracy that each has lost on the rows that it is chosen by.
        where: names those rows.
    """
    kept = {name: figure(rows, OURS, Case(name, 16)) for name in lost if lost[name] <= LOST}
    known = {name: rate for name, rate in kept.items() if not math.isnan(rate)}
    if not known:
        none = "no compressed ensemble that keeps its accuracy was measured"
        return {
            "compressed_gain": Ratio(math.nan, 1.4, of=none),
            "batch8_vs_composition": Ratio(math.nan, 20.0, of=none),
        }
    best = max(known, key=lambda name: known[name])
    eight = figure(rows, OURS, Case(best, 16, rows=8)) / figure(rows, COMPOSITION, EIGHT)
    return {
        "compressed_gain": Ratio(
            known[best] / figure(rows, OURS, MANY),
            1.4,
            of=f"{best} over {TRIO}, {lost[best]:.4f} accuracy lost on {where}",
        ),
        "batch8_vs_composition": Ratio(eight, 20.0, of=f"{best}, both with 8 images a request"),
    }


def member_claims(rows: Rows) -> dict[str, Ratio]:
    """What members cost when they are tiny."""
    two, eight = (figure(rows, OURS, Case(name, 1), "p50_ms") for name in ("tiny-2", "tiny-8"))
    return {"eight_members_p50": Ratio(eight / two, 1.6, at_most=True)}


def bulk_claims(rows: Rows) -> dict[str, Ratio]:
    """Large bodies beside a plain upload."""
    return {"bulk_throughput": Ratio(figure(rows, OURS, BULK) / figure(rows, BARE, BULK), 0.5)}


def best_of(rows: Rows, servers: Collection[str]) -> tuple[float, str]:
    """The highest rate at 16 connections and whose it is."""
    known = {server: rate for server in sorted(servers) if (rate := figure(rows, server, MANY)) >= 0}
    if not known:
        return math.nan, "none"
    name = max(known, key=lambda server: known[server])
    return known[name], name
