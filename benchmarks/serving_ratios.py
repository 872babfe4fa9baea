"""The claims of the serving benchmark, and how the gain splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.output import Ratio
from benchmarks.serving_arms import BARE, BULK_CONNECTIONS, COMPOSITION, DISTRIBUTED, FASTAPI, OURS, Case
from benchmarks.serving_models import BULK_ROWS

Rows = Mapping[tuple[str, str], Mapping[str, Any]]
"""Rows of the table by server and case."""
ONE, MANY = Case("trio", 1).name, Case("trio", 16).name
EIGHT = Case("trio", 16, rows=8).name
LOW_MANY, LOW_EIGHT = Case("trio-bf16", 16).name, Case("trio-bf16", 16, rows=8).name
BULK = Case("bulk", BULK_CONNECTIONS, rows=BULK_ROWS).name
STEPS = (
    ("transport: both switches of Ray Serve", COMPOSITION, "composition, switches"),
    ("fuse: one replica", "composition, switches", "replica, switches"),
    ("compile: one graph", "replica, switches", "replica, switches, compiled, unbatched"),
    ("batch", "replica, switches, compiled, unbatched", "replica, switches, compiled"),
    ("ingress and batcher of ours", "replica, switches, compiled", OURS),
)


def split(rows: Rows) -> list[dict[str, Any]]:
    """Factors from Ray's documented composition to ours at 16 connections, whose product is the whole gain;
    none where no compiled baseline was measured."""
    return [
        {
            "step": step,
            "from": before,
            "to": after,
            "factor": rows[after, MANY]["per_s"] / rows[before, MANY]["per_s"],
        }
        for step, before, after in STEPS
        if all((server, MANY) in rows for _, *pair in STEPS for server in pair)
    ]


def ratios(rows: Rows, cold_start_s: float) -> dict[str, Ratio]:
    """Each claim beside its goal."""
    others = {server for server, _ in rows} - {OURS, DISTRIBUTED, BARE}
    compiled = {server for server in others if "compiled" in server}
    ours, composition = rows[OURS, MANY]["per_s"], rows[COMPOSITION, MANY]["per_s"]
    best, best_name = _best(rows, others - compiled)
    low = rows[OURS, LOW_MANY]["per_s"]
    eight = rows[OURS, LOW_EIGHT]["per_s"] / rows[COMPOSITION, EIGHT]["per_s"]
    distributed = rows[DISTRIBUTED, MANY]["per_s"] / composition
    p50 = rows[OURS, ONE]["p50_ms"] / rows[FASTAPI, ONE]["p50_ms"]
    tiny = [rows[OURS, Case(name, 1).name]["p50_ms"] for name in ("tiny-2", "tiny-8")]
    found = {
        "vs_composition": Ratio(ours / composition, 24.0),
        "vs_best_baseline": Ratio(ours / best, 2.8, of=f"over {best_name}"),
        "p50_vs_fastapi": Ratio(p50, 0.75, at_most=True),
        "compressed_gain": Ratio(low / ours, 1.4, of="trio-bf16 over trio"),
        "batch8_vs_composition": Ratio(eight, 20.0, of="trio-bf16, both with 8 images a request"),
        "distributed_vs_composition": Ratio(distributed, 5.0),
        "eight_members_p50": Ratio(tiny[1] / tiny[0], 1.6, at_most=True),
        "bulk_throughput": Ratio(rows[OURS, BULK]["per_s"] / rows[BARE, BULK]["per_s"], 0.5),
        "cold_start_s": Ratio(cold_start_s, 1.5, at_most=True),
    }
    if compiled:
        best_compiled, name = _best(rows, compiled)
        found["vs_best_compiled_baseline"] = Ratio(ours / best_compiled, 1.4, of=f"over {name}")
    return found


def _best(rows: Rows, servers: set[str]) -> tuple[float, str]:
    name = max(servers, key=lambda server: float(rows[server, MANY]["per_s"]))
    return float(rows[name, MANY]["per_s"]), name
