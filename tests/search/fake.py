"""A made-up run that looks like a real one, for the report."""

from __future__ import annotations

import math
import random
from typing import Any

from orchestrator.search.report import Details
from orchestrator.search.report.schema import Epoch, Searched, TrialPoint

PRECISIONS = ("fp32", "bf16", "int8_static", "int8_dynamic")
REASON = (
    "p50-lamp-t4-bf16 runs 19.79 times as fast as its parent (interval 19.10 to 20.41) and takes 13% of its "
    "bytes; on the contract part the promise holds (accuracy drops by 0.0000 on 144 rows and at 95% "
    "confidence by at most 0.0185, which is within the allowed 0.03)"
)
HOSTILE = "</script><script>alert(1)</script>"


def quality(value: float, spread: float = 0.011) -> dict[str, Any]:
    ci = [value - spread, min(1.0, value + spread * 0.8)]
    return {
        "metric": {"name": "accuracy", "value": value, "ci": ci},
        "accuracy": value,
        "accuracy_ci": ci,
        "nll": 1.2 * (1 - value) + 0.02,
        "ece": 0.4 * (1 - value),
    }


def latency(median: float, execution: str) -> dict[str, Any]:
    ci = [0.98 * median, 1.03 * median]
    figures = {"median": median, "ci": ci, "p95": 1.5 * median}
    return {"batch": 32, "threads": 1, "execution": execution, **figures}


def model(value: float, spread: float, params: int, median: float) -> dict[str, Any]:
    size = 4 * params + 4000
    return {
        **quality(value, spread),
        "params": params,
        "bytes": size,
        "latency_ms": latency(median, "eager"),
    }


def ensemble(kind: str, value: float, median: float, cost: float) -> dict[str, Any]:
    return {
        "kind": kind,
        **quality(value),
        "bytes": 1_280_000,
        "latency_ms": latency(median, "eager"),
        "mean_cost": cost,
    }


def served(name: str, p50: float) -> dict[str, Any]:
    return {
        "url": f"http://127.0.0.1:8000/v2/models/{name}",
        "requests": 64,
        "errors": 0,
        "p50_ms": p50,
        "p99_ms": 3 * p50,
        "per_s": 900 / p50,
        "accuracy": 0.984,
    }


def trials() -> list[TrialPoint]:
    """Sixteen of a small space; the last of them failed."""
    found: list[TrialPoint] = []
    speed = {"fp32": 2.4, "bf16": 7.5, "int8_static": 6.9, "int8_dynamic": 1.6}
    loss = {"fp32": 0.0, "bf16": 0.0007, "int8_static": 0.004, "int8_dynamic": 0.001}
    for index, (amount, precision) in enumerate((a, p) for a in (0.0, 0.25, 0.5, 0.65) for p in PRECISIONS):
        name = f"whole-{precision}" if not amount else f"p{100 * amount:g}-lamp-t4-{precision}"
        if amount == 0.65 and precision == "int8_dynamic":
            reason = "cannot quantize: no linear layer is left whole. Prune less."
            config = {"amount": amount, "precision": precision}
            found.append(
                {"number": index, "name": name, "config": config, "status": "failed", "reason": reason}
            )
            continue
        ratio = speed[precision] * (1 - amount) ** -1.4
        found.append(
            {
                "number": index,
                "name": name,
                "config": {"amount": amount, "precision": precision},
                "execution": "lowered" if "int8" in precision else "aoti",
                "metric": 0.986 - loss[precision] - 0.05 * amount**3 + 0.001 * math.sin(index),
                "latency_ms": 24.9 / ratio,
                "latency_ci": (24.3 / ratio, 25.9 / ratio),
                "speedup": ratio,
                "bytes": round(1.1e6 * (1 - amount) ** 1.9 * {"fp32": 1, "bf16": 0.5}.get(precision, 0.27)),
                "drop": loss[precision] + 0.05 * amount**3 - 0.001 * math.sin(index),
                "status": "ok",
                "reason": "",
                "plan": [{"kind": "prune_channels", "amount": amount}] if amount else [],
            }
        )
    return found


ARMS = ("fp32 eager", "fp32 compiled", "bf16", "best single member", "from scratch", "plain distillation")


def many_trials(count: int, seed: int = 0) -> list[TrialPoint]:
    """A study of a wide conditional space: honest arms first, some trials failed, some not feasible."""
    chance = random.Random(seed)
    return [_drawn(number, chance) for number in range(count)]


def _drawn(number: int, chance: random.Random) -> TrialPoint:
    arm = ARMS[number] if number < len(ARMS) else ""
    amount = 0.0 if arm else round(chance.uniform(0, 0.8), 3)
    precision = ("fp32", "fp32", "bf16")[number] if number < 3 else chance.choice(PRECISIONS)
    config: dict[str, Any] = {
        "prune_channels.amount": amount,
        "quantize.precision": precision,
        "width": chance.choice([16, 24, 32]),
        "augment": chance.random() < 0.5,
    }
    if amount > 0:
        config["recovery.learning_rate"] = round(10 ** chance.uniform(-4, -1), 6)
        config["recovery.temperature"] = chance.choice([1.0, 2.0, 4.0])
        config["prune_channels.criterion"] = chance.choice(["l2", "lamp", "fpgm"])
    if "int8" in precision:
        config["quantize.observer"] = chance.choice(["minmax", "mse", "percentile"])
    point: TrialPoint = {
        "number": number,
        "name": arm or f"p{100 * amount:g}-w{config['width']}-{precision}-{number}",
        "arm": arm,
        "config": config,
        "seconds": 3.0 * (number + 1) + chance.random(),
        "plan": [
            {"kind": "prune_channels", "amount": amount, "criterion": config.get("prune_channels.criterion")},
            {"kind": "recovery", "training": {"epochs": 4, "loss": {"kind": "distillation", "alpha": 0.9}}},
            {"kind": precision, "range": [0, "1e3", "no"], "keep_float": []},
        ],
    }
    if not arm and chance.random() < 0.06:
        width = chance.choice([8, 12])
        reason = f"cannot quantize: no linear layer of {width} channels is left whole. Prune less."
        return {**point, "status": "failed", "reason": reason}
    return {**point, **_figures(config, amount, precision, chance)}


def _figures(config: dict[str, Any], amount: float, precision: str, chance: random.Random) -> TrialPoint:
    ratio = {"fp32": 2.4, "bf16": 7.5, "int8_static": 6.9, "int8_dynamic": 1.6}[precision]
    ratio *= (1 - amount) ** -1.4 * 24 / config["width"] * chance.uniform(0.93, 1.07)
    poor = 0.02 * abs(math.log10(config.get("recovery.learning_rate", 0.01)) + 2)
    drop = 0.16 * amount**3 + poor * amount + 0.0004 * (32 - config["width"]) + chance.gauss(0, 0.003)
    if chance.random() < 0.03:
        drop += 0.5
    size = round(1.1e6 * (1 - amount) ** 1.9 * {"fp32": 1, "bf16": 0.5}.get(precision, 0.27))
    value = 0.986 - drop
    return {
        "execution": "lowered" if "int8" in precision else "aoti",
        "digest": f"{round(1e6 * amount):064x}",
        "metric": value,
        "metric_ci": (value - 0.011, value + 0.009),
        "drop": drop,
        "drop_bound": drop + 0.012,
        "latency_ms": 24.9 / ratio,
        "latency_ci": (24.3 / ratio, 25.9 / ratio),
        "p95_ms": 31.5 / ratio,
        "speedup": ratio,
        "speedup_ci": (0.97 * ratio, 1.02 * ratio),
        "bytes": size,
        "status": "ok",
        "violations": [f"drops by {drop:.4f}, more than the allowed 0.03"] if drop > 0.03 else [],
        "audit": {"macs": 41_200_000, "zeros": 0.01, "int8": {"share": 0.98, "fell_back": []}},
    }


def summary() -> dict[str, Any]:
    points = trials()
    chosen = next(point for point in points if point["name"] == "p50-lamp-t4-bf16")
    front_names = [
        "whole-bf16",
        "p25-lamp-t4-bf16",
        "p50-lamp-t4-bf16",
        "p65-lamp-t4-bf16",
        "p65-lamp-t4-int8_static",
    ]
    return {
        "schema": 1,
        "run": "digits",
        "seconds": 203.4,
        "machine": {
            "cpu": "Intel Xeon (AMX)",
            "cores": 2,
            "isa": ["avx512f", "avx512_vnni", "amx_bf16", "amx_int8"],
            "memory_bytes": 8_200_000_000,
            "versions": {"python": "3.11.9", "torch": "2.13.0", "ray": "2.60.0", "torchao": "0.18.0"},
        },
        "data": {
            "source": "embedded digits",
            "digest": "ab12" * 16,
            "parts": {
                "train": {"rows": 1077, "class_counts": [108, 109, 106, 110, 108, 109, 109, 107, 104, 107]},
                "validation": {"rows": 144},
                "contract": {"rows": 144},
                "test": {"rows": 360},
            },
        },
        "models": {
            "teacher": model(0.983, 0.011, 275_000, 24.9),
            "small-a": model(0.961, 0.016, 21_000, 1.31),
            "small-b": model(0.956, 0.017, 21_000, 1.29),
        },
        "search": {
            "trials": len(points),
            "front": [
                {
                    "name": point["name"],
                    "digest": "1" * 64 if point["name"] == chosen["name"] else "0" * 64,
                    "execution": point["execution"],
                    **quality(0.98),
                    "latency_ms": latency(point["latency_ms"], point["execution"]),
                    "bytes": point["bytes"],
                }
                for point in points
                if point["name"] in front_names
            ],
            "chosen": {
                "name": chosen["name"],
                "digest": "1" * 64,
                "execution": chosen["execution"],
                **quality(0.981),
                "latency_ms": latency(chosen["latency_ms"], "aoti"),
                "bytes": chosen["bytes"],
                "verdict": {"holds": True},
            },
            "reason": REASON,
        },
        "ensembles": {
            "panel": ensemble("parallel", 0.984, 27.5, 1.0),
            "cascade": ensemble("sequential", 0.982, 4.2, 0.21),
            "mix": ensemble("weighted_mix", 0.987, 27.6, 1.0),
        },
        "serving": {
            "panel": served("panel", 4.1),
            "cascade": served("cascade", 2.7),
            "mix": served("mix", 4.2),
        },
    }


def curve(scale: float, top: float) -> list[Epoch]:
    return [
        {
            "epoch": epoch,
            "loss": scale * math.exp(-epoch / 5) + 0.03,
            "metric": top - 0.6 * math.exp(-epoch / 3),
        }
        for epoch in range(1, 21)
    ]


def searched() -> Searched:
    return {
        "trials": trials(),
        "parent": {
            "name": "teacher",
            "metric": 0.986,
            "latency_ms": 24.9,
            "latency_ci": (24.4, 25.6),
            "bytes": 1_104_000,
        },
        "setting": "Intel Xeon (AMX), batch 32, 1 thread",
        "chosen": "p50-lamp-t4-bf16",
    }


def many(count: int) -> Details:
    """Two targets with so many trials each; the second is a slower machine."""
    found = details()
    server: Searched = {**searched(), "trials": many_trials(count)}
    edge: Searched = {**server, "setting": "AVX2, batch 1, 1 thread", "trials": many_trials(count, seed=1)}
    for target in (server, edge):
        fit = [trial for trial in target["trials"] if trial["status"] == "ok" and not trial["violations"]]
        fastest = min(fit, key=lambda trial: trial["latency_ms"])
        fastest["verdict"] = {"holds": True, "status": "holds", "reason": "accuracy drops by 0.0100"}
        target["chosen"] = fastest["name"]
    found["targets"] = {"server": server, "edge": edge}
    return found


def details() -> Details:
    return {
        "curves": {
            "teacher": curve(2.1, 0.985),
            "small-a": curve(2.4, 0.962),
            "small-b": curve(2.5, 0.957),
        },
        "targets": {"this machine": searched()},
        "max_drop": 0.03,
        "exits": {"cascade": [0.86, 0.14]},
        "stages": {"cascade": ["small-a", "teacher"]},
        "weights": {"mix": {"teacher": 0.62, "chosen": 0.23, "small-a": 0.15}},
        "config": "name: digits\nseed: 0\ndata:\n  kind: embedded\n  name: digits\n",
        "notes": ["small-b was restarted once after its worker died."],
    }


def choosing() -> dict[str, Any]:
    """What `orchestrator choose` left: two single models, a cascade that was chosen, and the ensemble."""
    return {
        "metric": "accuracy",
        "goal": {"max_drop": 0.005, "reference": "teacher"},
        "candidates": 1234,
        "reference": "teacher (eager)",
        "points": [
            _choice("small-a (lowered)", "member", 0.961, 0.4, "best single model"),
            _choice(f"sequential: small-a if sure of 0.9, else {HOSTILE}", "sequential", 0.985, 0.9, ""),
            _choice("teacher (eager)", "member", 0.987, 24.9, ""),
            _choice("parallel: teacher, small-a", "parallel", 0.988, 31.0, "uncompressed ensemble"),
        ],
        "recommended": 1,
        "nearest": 1,
        "reason": "sequential: small-a if sure of 0.9, else teacher: the fastest a row within max_drop",
        "spec": {"ref": "digits/choice", "digest": "2" * 64},
        "notes": ["merged student: no model here was distilled from several"],
    }


def _choice(name: str, kind: str, value: float, latency_ms: float, baseline: str) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "baseline": baseline,
        "batch": 32,
        "placement": "fused",
        "metric": {"value": value, "ci": [value - 0.01, value + 0.01]},
        "drop": {"value": 0.987 - value, "ci": [0.977 - value, 0.997 - value]},
        "test": {"value": value - 0.002, "ci": [value - 0.012, value + 0.008]},
        "robustness": value - 0.1,
        "latency_ms": latency_ms,
        "p99_ms": 2 * latency_ms,
        "cost_per_million": latency_ms / 1000,
        "bytes": 123_000,
        "models_per_answer": 1 if kind != "parallel" else 2,
    }
