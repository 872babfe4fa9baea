"""`orchestrator reproduce`: a variant made again, and what is said when that cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from orchestrator.config.ensemble import Member, Parallel, Spec
from orchestrator.data.load import load
from orchestrator.errors import CompressionError, InputError, NotFoundError
from orchestrator.models.build import build
from orchestrator.pipeline import reproducing, retraining
from orchestrator.pipeline.run import read_config
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from orchestrator.training.fitting import fit
from orchestrator.training.job import TrainJob
from tests.architecture.modules import ROOT
from tests.deployments.toys import DIGITS, SMALL_MLP
from tests.pipeline import toys
from tests.pipeline.command import Answer, command

pytestmark = pytest.mark.slow

PLAN = "[{kind: prune_channels, amount: 0.5}, {kind: recover, training: {epochs: 1}}, {kind: bf16}]"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with `digits/net` and `digits/small`, compressed from it; tests copy it."""
    folder = tmp_path_factory.mktemp("made")
    store = Store(folder / "store")
    net(store, "digits/net")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_CACHE", str(folder / "cache"))
        answer = compressed(store, "digits")
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture
def store(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(made / "cache"))
    shutil.copytree(made / "store", tmp_path / "store")
    return Store(tmp_path / "store")


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    """With the data of `compress --data digits`, cut by its seed; the variant has another one."""
    digits = read_config("digits")
    return toys.write(tmp_path / "run.yaml", data=digits.data.plain(), seed=digits.seed)


def net(store: Store, name: str, what: dict[str, Any] | None = None) -> str:
    draft = Draft(model=SMALL_MLP, signature=DIGITS, data="", seed=0, what=what or {"imported": True})
    digest = store.put_artifact(draft, build(SMALL_MLP, DIGITS, seed=0).state_dict())
    store.set_ref(name, digest)
    return digest


def compressed(store: Store, data: str | Path) -> Answer:
    return command(
        "compress", "digits/net", "--plan", PLAN, "--data", data, "--name", "digits/small", "--store",
        store.root, "--batch", "8",
    )  # fmt: skip


def reproduced(store: Store, name: str = "digits/small", *more: str | Path) -> Answer:
    return command("reproduce", name, "--store", store.root, "--json", "--tolerance", "1", *more)


def statuses(answer: Answer) -> dict[str, str]:
    return {check["name"].partition(" ")[0]: check["status"] for check in answer.document["checks"]}


def edit(store: Store, kind: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a record of `digits/small` of this kind in place."""
    for path in (store.root / "records" / store.ref("digits/small")).iterdir():
        record = json.loads(path.read_text())
        if record["kind"] == kind:
            change(record)
            path.write_text(json.dumps(record))


def claim(store: Store, **made: Any) -> None:
    """`digits/claimed`: a manifest with another learning rate than that its weights were made with."""
    digest = store.ref("digits/small")
    manifest = store.manifest(digest)
    plan = [step.plain() for step in manifest.plan]
    plan[1]["training"]["lr"] = 0.5
    values = {name: value for name, value in manifest.plain().items() if name != "files"}
    what = {**manifest.what, "compression": {**manifest.what["compression"], **made}}
    claimed = Draft.model_validate({**values, "plan": plan, "what": what})
    store.set_ref("digits/claimed", store.put_artifact(claimed, store.tensors(digest)))


def files(store: Store) -> set[Path]:
    return {path for path in store.root.rglob("*") if path.is_file() and "leases" not in path.parts}


def test_a_variant_reproduces(store: Store) -> None:
    before = files(store)
    answer = reproduced(store)
    assert answer.code == 0, answer.err
    found = answer.document
    assert found["reproduces"]
    assert found["digest"] == store.ref("digits/small")
    assert found["parent"] == store.ref("digits/net")
    assert found["plan"] == ["prune_channels", "recover", "bf16"]
    assert found["differences"] == []
    assert [check["name"] for check in found["checks"]] == [
        "digest",
        "accuracy on validation (eager)",
        "latency in ms (eager, batch 8, 1 thread)",
        "times its parent's speed (eager, batch 8, 1 thread)",
    ]
    digest, accuracy, *_ = found["checks"]
    assert (digest["status"], digest["then"]) == ("holds", digest["now"])
    assert accuracy["then"]["value"] == accuracy["now"]["value"]
    assert accuracy["then"]["ci"][0] < accuracy["then"]["value"] < accuracy["then"]["ci"][1]
    assert files(store) == before, "the store gets nothing"


def test_the_beginning_of_a_digest_and_a_table_for_people(store: Store) -> None:
    digest = store.ref("digits/small")
    answer = command("reproduce", digest[:10], "--store", store.root, "--tolerance", "1")
    assert answer.code == 0, answer.err
    first, *_, last = answer.out.splitlines()
    assert first.startswith(f"{digest[:10]} is {digest[:12]}: prune_channels > recover > bf16 on ")
    assert last == "it reproduces"


def test_an_altered_metric_is_found(store: Store) -> None:
    edit(store, "quality", lambda record: record["metric"].update(value=0.999, ci=[0.998, 1.0]))
    answer = reproduced(store)
    assert answer.code == 1
    found = statuses(answer)
    assert (found["digest"], found["accuracy"]) == ("holds", "fails")
    assert found["latency"] in ("holds", "near")


def test_an_altered_latency_is_found(store: Store) -> None:
    faster = {"median_ms": 1e-6, "ci": [0.9e-6, 1.1e-6], "ratio": 1e5, "ratio_ci": [0.9e5, 1.1e5]}
    edit(store, "latency", lambda record: record.update(faster))
    answer = reproduced(store)
    assert answer.code == 1
    assert (statuses(answer)["accuracy"], statuses(answer)["latency"]) == ("holds", "fails")


def test_a_latency_of_another_method_is_not_compared(store: Store) -> None:
    edit(store, "latency", lambda record: record.update(median_ms=1e-6, method=1))
    assert statuses(reproduced(store)) == {"digest": "holds", "accuracy": "holds", "latency": "unknown"}


def test_other_weights_are_found(store: Store, run_file: Path) -> None:
    claim(store)
    answer = reproduced(store, "digits/claimed", "--config", run_file)
    assert answer.code == 1
    assert statuses(answer) == {"digest": "fails", "accuracy": "unknown", "latency": "unknown"}


def test_another_device_is_named_and_explains(store: Store, run_file: Path) -> None:
    claim(store, device="Another GPU")
    found = reproduced(store, "digits/claimed", "--config", run_file).document
    (device,) = (one for one in found["differences"] if one["what"] == "device")
    now = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    assert (device["then"], device["now"]) == ("Another GPU", now)
    digest = found["checks"][0]
    assert (digest["status"], digest["reason"]) == ("explained", "it cannot be equal with another device")
    assert found["reproduces"]


@pytest.mark.parametrize(("name", "device"), [("claimed", "cuda"), ("small", "cpu")])
def test_what_was_made_on_a_gpu_is_made_on_one_again(
    store: Store, run_file: Path, monkeypatch: pytest.MonkeyPatch, name: str, device: str
) -> None:
    claim(store, device="A GPU")
    asked: list[str] = []

    def applied(*given: Any) -> str:
        asked.append(given[-1].device)
        raise CompressionError("enough was seen")

    monkeypatch.setattr(reproducing, "device_of", lambda gpus: "cuda" if gpus > 0 else "cpu")
    monkeypatch.setattr(reproducing, "apply_plan", applied)
    reproduced(store, f"digits/{name}", "--config", run_file).sentence(1)
    assert asked == [device]


@pytest.mark.parametrize("name", ["net-2", "earlier"])
def test_a_copy_with_a_seed_of_its_own_is_trained_again(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Its rows were cut by the seed of the run; another run file may have given it another name."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(made / "cache"))
    models = {"net": {"model": {"factory": "mlp"}, "training": {"epochs": 1}, "copies": 2}}
    run_file, store = toys.write(tmp_path / "run.yaml", models=models), Store(tmp_path / "store")
    config = read_config(str(run_file), (), None)
    entry, data = config.models["net-2"], load(config.data, seed=config.seed, cache=made / "cache")
    job = TrainJob(name, entry, str(data.folder), str(store.root), config.seed_of(entry), config.metric)
    store.set_ref("toy/net-2", fit(job, store, lambda _: None))

    def here(jobs: list[TrainJob], **_: object) -> dict[str, str]:
        return {job.name: fit(job, Store(job.store), lambda _: None) for job in jobs}

    monkeypatch.setattr(retraining, "connected", nullcontext)
    monkeypatch.setattr(retraining, "train_models", here)
    answer = reproduced(store, "toy/net-2", "--retrain", "--config", run_file)
    assert answer.code == 0, answer.err
    assert store.manifest(store.ref("toy/net-2")).seed != config.seed
    assert answer.document["checks"][0]["status"] == "holds"


def test_without_records_the_run_file_says_where_the_data_is(store: Store, run_file: Path) -> None:
    shutil.rmtree(store.root / "records")
    said = reproduced(store).sentence(2)
    assert "no record says where the data lies" in said
    assert "--config" in said
    answer = reproduced(store, "digits/small", "--config", run_file)
    assert answer.code == 0, answer.err
    assert statuses(answer) == {"digest": "holds", "accuracy": "unknown", "latency": "unknown"}


def test_another_instruction_set_is_named_first_and_explains(store: Store, made: Path) -> None:
    line = [sys.executable, "-m", "orchestrator", "reproduce", "digits/small", "--store", str(store.root)]
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default", "ORCHESTRATOR_CACHE": str(made / "cache")}
    found = subprocess.run(
        [*line, "--json", "--tolerance", "1"], capture_output=True, text=True, env=environment, check=False
    )
    document = json.loads(found.stdout)
    assert document["differences"][0]["what"] == "instruction set"
    assert document["checks"][0]["status"] == "explained", (
        "another digest, for the manifest says what made it"
    )


def test_changed_or_missing_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    rows = pq.read_table(ROOT / "orchestrator" / "data" / "embedded" / "digits.parquet")
    file, store = tmp_path / "rows.parquet", Store(tmp_path / "store")
    pq.write_table(rows.slice(0, 400), file)
    net(store, "digits/net")
    assert compressed(store, file).code == 0
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.move(file, moved)
    assert str(file) in reproduced(store).sentence(2), "the sentence names the missing file"
    assert reproduced(store, "digits/small", "--data", moved).code == 0
    pq.write_table(rows.slice(1, 400), file)
    assert "the data is not what 'digits/small' was made with" in reproduced(store).sentence(2)


def test_a_missing_parent_is_one_sentence(store: Store) -> None:
    shutil.rmtree(store.root / "artifacts" / store.ref("digits/net"))
    assert "the parent of 'digits/small' is gone" in reproduced(store).sentence(2)


def test_what_has_no_plan_is_one_sentence(store: Store) -> None:
    assert "was imported" in reproduced(store, "digits/net").sentence(2)
    net(store, "digits/trained", {"training": {}, "threads": 1})
    said = reproduced(store, "digits/trained").sentence(2)
    assert "its plan is empty" in said
    assert "--retrain" in said
    for part in ({"before": [[store.ref("digits/net"), 1.0]]}, {"fold": [0, 5]}):
        net(store, "digits/part", {"training": {}, "threads": 1, **part})
        for more in ((), ("--retrain", "--config", "no.yaml")):
            assert "a part of an ensemble" in reproduced(store, "digits/part", *more).sentence(2)
    members = tuple(Member(name=name, digest=store.ref(f"digits/{name}")) for name in ("net", "small"))
    tree = Parallel(members=members)
    spec = Spec(name="mix", tree=tree, signature=DIGITS, batch=8, threads=1)
    store.set_ref("digits/mix", store.put_spec(spec))
    assert "name one of its members" in reproduced(store, "digits/mix").sentence(2)


def test_unknown_names_are_one_sentence(store: Store) -> None:
    assert "digits/smal" in reproduced(store, "digits/smal").sentence(2)
    assert "did you mean 'digits/small'" in reproduced(store, "digits/smal").err
    assert reproduced(store, "ab" * 32).sentence(2)
    assert reproduced(store, "0000").sentence(2)


def test_the_beginning_of_two_digests_is_refused(store: Store) -> None:
    digests = store.digests()
    assert store.find(digests[0][:16]) == digests[0]
    with pytest.raises(NotFoundError):
        store.find("0000000")
    twin = store.root / "artifacts" / (digests[0][:16] + "0" * 48)
    shutil.copytree(store.root / "artifacts" / digests[0], twin)
    with pytest.raises(InputError, match="2 artifacts begin so"):
        store.find(digests[0][:16])
