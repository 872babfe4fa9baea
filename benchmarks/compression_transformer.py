"""The same comparison for a small vision transformer, with torchao's `quantize_` as the peer."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.compression_table import ALLOWED_DROP, Bench, Entry, accuracy, descends, stored, timed
from benchmarks.interleaved import Peer
from benchmarks.output import Ratio

PARENT = "vit"
PEERS = {"torchao int8, dynamic": "torchao_dynamic", "torchao int8, weights": "torchao_weight_only"}


def transformer(bench: Bench, stack: ExitStack) -> tuple[list[dict[str, Any]], dict[str, Ratio]]:
    """The table's rows, and how many times as fast as the best peer our best is at batch 32.

    Both are the fastest that lose at most 0.01 on test rows: there are too few to choose among to need more.
    """
    folder = bench.folder / PARENT
    folder.mkdir()
    made = {"store": str(bench.store.location), "digest": bench.digest(PARENT)}
    (folder / "artifact.json").write_text(json.dumps(made))
    np.save(folder / "test.npy", bench.data.part("test").inputs)
    names = [PARENT, *(name for name in bench.config.variants if descends(bench.config, name, PARENT))]
    entries = list(stored(bench, names))
    for name, module in PEERS.items():
        print(f"starting {name}", file=sys.stderr)
        process = Peer(module, sys.executable, folder)
        stack.callback(process.close)
        entries.append(
            Entry(name, process, own=False, test=accuracy(process, bench.data.part("test"), folder))
        )
    rows = [{**row, "of": PARENT} for row in timed(entries, PARENT)]
    kept = [row for row in rows if row["drop"] <= ALLOWED_DROP]
    peers = [row for row in kept if not row["own"]]
    if not peers:
        return rows, {}
    own, peer = min((row for row in kept if row["own"]), key=_latency), min(peers, key=_latency)
    name = f"{own['name']} ({own['execution']}) beside {peer['name']}"
    return rows, {"transformer_vs_torchao": Ratio(_latency(peer) / _latency(own), 1.2, of=name)}


def _latency(row: dict[str, Any]) -> float:
    return float(row["b32_ms"])
