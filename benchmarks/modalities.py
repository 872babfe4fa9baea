"""Text and speech: the runs of `examples/text.yaml` and `examples/speech.yaml`, and what stands beside them.

A run that has ended is taken from the store, so a second call measures nothing twice::

    python -m benchmarks.modalities --data FOLDER --json docs/results/modalities.json

Its parts: `text` and `speech`, the runs; `svm`, a linear SVM on the same rows; `speakers`, the speech models
trained without one speaker at a time and asked of that speaker. Parts that `--work` holds already are not
measured again unless `--part` names them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.modalities_speakers import speakers
from benchmarks.modalities_svm import svm
from benchmarks.output import Ratio, Result, main
from benchmarks.parts import run_parts
from orchestrator.config.load import load_run

ROOT = Path(__file__).resolve().parents[1]
Summary = dict[str, Any]


def measure(arguments: argparse.Namespace) -> Result:
    """The parts that are asked for, or all that are missing; then all that are known."""
    parts = {name: partial(part, arguments) for name, part in PARTS.items()}
    return run_parts(parts, arguments.work / "results", arguments.part)


def _text(arguments: argparse.Namespace) -> Result:
    summary = _run("text", arguments)
    return _rows("text", summary), text_ratios(summary) | {"text_speedup": _speedup("text", summary)}


def _speech(arguments: argparse.Namespace) -> Result:
    summary = _run("speech", arguments)
    return _rows("speech", summary), speech_ratios(summary) | {"speech_speedup": _speedup("speech", summary)}


def _svm(arguments: argparse.Namespace) -> Result:
    return [svm(arguments.data)], {}


def _speakers(arguments: argparse.Namespace) -> Result:
    return speakers(_run_file("speech"), arguments.data, arguments.work / "speakers"), {}


PARTS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "text": _text,
    "svm": _svm,
    "speech": _speech,
    "speakers": _speakers,
}


def text_ratios(summary: Summary) -> dict[str, Ratio]:
    """Of the run on CLINC150."""
    models, ensembles = summary["models"], summary["ensembles"]
    whole, early = ensembles["mix"], ensembles["cascade"]
    single = max(entry["accuracy"] for entry in models.values())
    noticed = max(_auroc(entry["elsewhere"]) for entry in models.values())
    by_mix = _auroc(whole["uncertainty"]["elsewhere"])
    kept = early["accuracy"] >= whole["accuracy"] - 0.005
    return {
        "text_accuracy": Ratio(
            whole["accuracy"], 0.945, holds=single >= 0.93, of=f"best single {single:.4f}"
        ),
        "oos_auroc": Ratio(by_mix, 0.93, holds=by_mix > noticed, of=f"best single {noticed:.4f}"),
        "text_cascade_cost": Ratio(
            early["mean_cost"], 0.25, at_most=True, holds=kept, of=f"accuracy {early['accuracy']:.4f}"
        ),
    }


def speech_ratios(summary: Summary) -> dict[str, Ratio]:
    """Of the run on spoken digits."""
    return {"speech_accuracy": Ratio(summary["ensembles"]["mix"]["accuracy"], 0.99)}


def _speedup(name: str, summary: Summary) -> Ratio:
    """Of the chosen variant against its parent's eager fp32: interleaved in the run, 32 rows, one thread."""
    search = load_run(_run_file(name), []).search
    chosen, parent = summary["search"]["chosen"], search.parent if search else ""
    if chosen is None:
        return Ratio(0.0, 4.0, holds=False, of=summary["search"]["reason"])
    drop = summary["models"][parent]["accuracy"] - chosen["accuracy"]
    return Ratio(chosen["speedup"]["value"], 4.0, holds=drop <= 0.01, of=f"{chosen['name']}, drop {drop:.4f}")


def _elsewhere(entry: dict[str, Any]) -> dict[str, Any] | None:
    """How well rows that no class fits are noticed, by each score."""
    kinds = entry.get("elsewhere") or (entry.get("uncertainty") or {}).get("elsewhere")
    if not kinds:
        return None
    (found,) = kinds.values()
    return {score: found[score] for score in ("confidence", "total", "epistemic", "by")}


def _auroc(kinds: dict[str, Any]) -> float:
    """By the measure that validation rows chose for this model."""
    (found,) = kinds.values()
    return float(found[found["by"]])


def _run_file(name: str) -> Path:
    return ROOT / "examples" / f"{name}.yaml"


def _run(name: str, arguments: argparse.Namespace) -> Summary:
    """The run's summary; its finished stages are not done again."""
    command = [sys.executable, "-m", "orchestrator", "run", str(_run_file(name))]
    subprocess.run([*command, "--data", str(arguments.data)], check=True, stdout=sys.stderr)
    summary: Summary = json.loads((Path("runs") / name / "summary.json").read_text(encoding="utf-8"))
    return summary


def _rows(run: str, summary: Summary) -> list[dict[str, Any]]:
    kinds = {"model": summary["models"], "ensemble": summary["ensembles"]}
    return [
        {"run": run, "kind": kind, "name": name, "seconds": summary["seconds"]}
        | {key: entry[key] for key in ("accuracy", "accuracy_ci", "nll", "ece", "bytes")}
        | {"latency_ms": entry["latency_ms"]["median"], "mean_cost": entry.get("mean_cost")}
        | {"auroc": _elsewhere(entry)}
        for kind, entries in kinds.items()
        for name, entry in entries.items()
    ]


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, required=True, help="folder of the Parquet files")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/modalities"), help="keeps finished parts; goes on from them"
    )
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one; may be repeated")


if __name__ == "__main__":
    main("modalities", __doc__ or "", measure, _arguments)
