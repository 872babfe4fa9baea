"""A run over several labels a row, from data to report, in this process: without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.compression.api import compress
from orchestrator.config.load import load_run
from orchestrator.config.measure import Metric
from orchestrator.config.search import Promise
from orchestrator.data.load import default_cache
from orchestrator.measure.metrics import score
from orchestrator.pipeline import training
from orchestrator.pipeline.context import Run, open_run
from orchestrator.pipeline.explaining import explained_with_image
from orchestrator.pipeline.run import _stages, read_config
from orchestrator.pipeline.summary import print_table
from orchestrator.progress import Progress
from orchestrator.training.fitting import fit
from orchestrator.training.job import TrainJob

FOLDER = Path(__file__).parents[2] / "examples" / "own_model"
EXAMPLE = FOLDER.parent / "multilabel.yaml"
MLP: dict[str, Any] = {"factory": "mlp", "kwargs": {"widths": [32]}}
TRAINING: dict[str, Any] = {"epochs": 12, "batch_size": 64, "optimizer": "adamw", "lr": 0.005}
BALANCED = {**TRAINING, "loss": {"kind": "binary_cross_entropy", "class_weights": "balanced"}}
TAUGHT = {**TRAINING, "loss": {"kind": "distillation"}}
SETTINGS: dict[str, Any] = {
    "name": "tags",
    "data": {
        "kind": "custom",
        "task": "multilabel",
        "dataset": "attributes:digits",
        "limit": 600,
        "shares": {"train": 0.6, "validation": 0.15, "calibration": 0.1, "contract": 0.15},
    },
    "models": {
        "one": {"model": MLP, "training": TRAINING},
        "two": {"model": MLP, "training": BALANCED, "seed": 1},
        "pupil": {"model": MLP, "training": TAUGHT, "teacher": "one"},
    },
    "ensembles": {
        "mix": {"kind": "weighted_mix", "members": ["one", "two", "pupil"], "calibration": "temperature"},
        "middle": {"kind": "parallel", "members": ["one", "two", "pupil"], "rule": "median", "quorum": 2},
        "cascade": {"kind": "sequential", "stages": ["pupil", "mix"], "criterion": "margin"},
    },
    "serving": None,
    "latency": {"blocks": 5, "most_blocks": 5, "block_ms": 1},
}


def here(run: Run, jobs: Sequence[TrainJob], *, fresh: bool = False, **_: object) -> dict[str, str]:
    """Train in this process instead of on the cluster, teachers first."""
    del fresh
    done: dict[str, str] = {}
    for job in jobs:
        if job.entry.teacher:
            job = type(job)(**{**vars(job), "teacher_digest": done[job.entry.teacher]})
        done[job.name] = fit(job, run.store, lambda _: None)
    return done


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The run, and its summary."""
    folder = tmp_path_factory.mktemp("tags")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_CACHE", str(folder / "cache"))
        patch.delenv("ORCHESTRATOR_STORE", raising=False)
        patch.syspath_prepend(str(FOLDER))
        patch.setattr(training, "trained", here)
        (folder / "run.yaml").write_text(yaml.safe_dump(SETTINGS, sort_keys=False), encoding="utf-8")
        config = read_config(str(folder / "run.yaml"))
        run = open_run(config, store=str(folder / "store"), progress=Progress(), cluster=lambda: None)
        yield run, _stages(run, "evaluate", False)


def test_the_example_is_a_run_file() -> None:
    run = load_run(EXAMPLE)
    assert run.data.task == "multilabel"
    assert run.metric.name == "macro_f1"


def test_models_learn_and_ensembles_are_better_than_their_worst_member(finished: Any) -> None:
    run, summary = finished
    assert run.dataset.signature.classes == ("even", "prime", "loop", "above four")
    for name, figures in {**summary["models"], **summary["ensembles"]}.items():
        metric = figures["metric"]
        assert metric["name"] == "macro_f1", name
        assert metric["ci"][0] < metric["value"] < metric["ci"][1]
        assert metric["value"] > 0.65
        assert figures["accuracy"] is None
        assert 0 < figures["nll"] < 0.69
        assert 0 <= figures["ece"] < 0.5
    worst = max(figures["nll"] for figures in summary["models"].values())
    assert all(figures["nll"] < worst for figures in summary["ensembles"].values())
    shares = summary["ensembles"]["cascade"]["mean_cost"]
    assert 0 < shares <= 1


def test_the_report_and_the_table_show_the_metric(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run, summary = finished
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "macro F1" in page
    assert "subset accuracy" in page
    assert "above four" in page  # in a row that is explained
    print_table(summary, run.folder)
    shown = capsys.readouterr().out
    assert "macro_f1" in shown
    assert "subset" in shown


def test_a_row_is_explained_by_its_labels(finished: Any) -> None:
    run, _ = finished
    spec = run.store.spec("tags/mix")
    told = explained_with_image(run, spec, "test", 0)
    truth = run.dataset.part("test").targets[0]
    names = [name for name, there in zip(spec.signature.classes, truth, strict=True) if there]
    assert told["truth"] == (", ".join(names) or "none")
    assert len(told["said"]["probabilities"]) == 4
    assert "occlusion" not in told


@pytest.mark.parametrize(
    "plan",
    [
        [{"kind": "int8_dynamic"}],
        [{"kind": "prune_channels", "amount": 0.5}, {"kind": "recover", "training": TAUGHT}],
        [{"kind": "distill", "model": MLP, "others": ["tags/two"], "training": TAUGHT}],
    ],
    ids=["int8", "pruned", "distilled"],
)
def test_compression_needs_nothing_but_the_losses(finished: Any, plan: list[dict[str, Any]]) -> None:
    run, summary = finished
    variant = compress("tags/one", plan, run.dataset, store=run.store)
    test = run.dataset.part("test")
    value = score(Metric(name="macro_f1"), variant(test.inputs), test.targets)
    assert value > summary["models"]["one"]["metric"]["value"] - 0.2
    rows = run.dataset.part("contract")
    verdict = variant.promise(rows.inputs, rows.targets, Promise(max_drop=0.9))
    assert verdict.holds
    assert verdict.worst_class is not None


def test_the_cache_is_the_tests_own(finished: Any) -> None:
    run, _ = finished
    assert run.dataset.folder.is_relative_to(default_cache())
