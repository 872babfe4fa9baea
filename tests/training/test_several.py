"""Several models of one training, without Ray: snapshots, mutual learning, negative correlation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.config.groups import nth_seed
from orchestrator.config.load import validate
from orchestrator.config.measure import Metric
from orchestrator.config.model import Mlp, MlpKwargs, ResNet9, ResNet9Kwargs
from orchestrator.config.run import ModelEntry
from orchestrator.config.signature import Signature
from orchestrator.config.training import Augment, MutualLoss, NegativeCorrelation, Training
from orchestrator.data.dataset import Part
from orchestrator.ensemble.diversity import decompose, disagreement
from orchestrator.models.base import DataInitialized
from orchestrator.models.build import build
from orchestrator.models.together import Together, weights_of_member
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from orchestrator.training.fitting import fit
from orchestrator.training.job import TrainJob, run_name
from orchestrator.training.loop import train
from orchestrator.training.state import EpochReport, TrainState
from tests.training.test_job import dataset
from tests.training.toy import FEATURES, IMAGES, VALUES, digest, module_of, part, run

NET = {"factory": "mlp", "kwargs": {"widths": [16]}}
CYCLES = {"epochs": 6, "batch_size": 16, "lr": 0.05, "schedule": "cosine", "snapshots": 3}
MUTUAL = {"epochs": 3, "batch_size": 16, "lr": 0.05, "loss": {"kind": "mutual"}}
OTHER = {"factory": "mlp", "kwargs": {"widths": [8, 8], "dropout": 0.1}}


def jobs_of(folder: Path, **entry: Any) -> list[TrainJob]:
    base = TrainJob(
        name="net",
        entry=validate(ModelEntry, entry, "entry"),
        data_folder=str(dataset(folder).folder),
        store=str(folder / "store"),
        seed=1,
        metric=Metric(),
    )
    return [replace(base, name=name, entry=entry) for name, entry in base.entry.models("net", 1).items()]


def snapshots(folder: Path) -> list[TrainJob]:
    return jobs_of(folder, model=NET, training=CYCLES)


def fitted(job: TrainJob, store: Store) -> tuple[str, list[EpochReport]]:
    reports: list[EpochReport] = []
    return store.stage(job.key(), lambda: fit(job, store, reports.append)), reports


def test_snapshots_are_models_of_one_training(tmp_path: Path) -> None:
    jobs, store = snapshots(tmp_path), Store(tmp_path / "store")
    last, reports = fitted(jobs[2], store)
    assert len(reports) == 6  # what one model of so many epochs costs, whichever is asked for first
    digests = [store.stage_result(job.key()) for job in jobs]
    assert digests[2] == last
    assert len(set(digests)) == 3
    assert len({run_name(job) for job in jobs}) == 1
    for number, found in enumerate(digests, 1):
        assert found is not None
        (record,) = store.records(found)
        assert (record["name"], record["kept_epoch"]) == (f"net-{number}", 2 * number - 1)
        assert store.manifest(found).what["number"] == number
    rows = torch.from_numpy(np.array(dataset(tmp_path).part("test").inputs))
    with torch.no_grad():
        answers = [rebuild(store, str(found)).module(rows) for found in digests]
    assert not torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[1], answers[2])


def test_the_first_snapshot_is_an_ordinary_training_of_one_cycle() -> None:
    cycles = Training.model_validate(CYCLES)
    _, state = run(module_of(FEATURES), FEATURES, cycles)
    _, short = run(module_of(FEATURES), FEATURES, cycles.model_copy(update={"epochs": 2, "snapshots": None}))
    assert [digest(each) for each in state.snapshots][::2] == [digest(short.weights), digest(state.weights)]
    assert [report.lr for report in state.curve][:2] * 3 == [report.lr for report in state.curve]


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_snapshots_survive_a_stop(tmp_path: Path, stop: int) -> None:
    def dies(report: EpochReport) -> None:
        if report.epoch + 1 == stop:
            raise InterruptedError

    whole, broken = (snapshots(tmp_path / name) for name in ("whole", "broken"))
    store, other = Store(tmp_path / "whole" / "store"), Store(tmp_path / "broken" / "store")
    fitted(whole[0], store)
    with pytest.raises(InterruptedError):
        fit(broken[0], other, dies)
    fitted(broken[0], other)
    assert [store.stage_result(job.key()) for job in whole] == [
        other.stage_result(job.key()) for job in broken
    ]


def test_models_trained_together_are_artifacts_of_their_own(tmp_path: Path) -> None:
    jobs, store = jobs_of(tmp_path, together=[NET, OTHER], training=MUTUAL), Store(tmp_path / "store")
    fitted(jobs[0], store)
    digests = [str(store.stage_result(job.key())) for job in jobs]
    manifests = [store.manifest(found) for found in digests]
    assert [manifest.model for manifest in manifests] == [job.entry.model for job in jobs]
    part_ = dataset(tmp_path).part("validation")
    rows = torch.from_numpy(np.array(part_.inputs))
    with torch.no_grad():
        logs = torch.stack([rebuild(store, found).module(rows).log_softmax(1) for found in digests])
    right = (logs.exp().mean(0).argmax(1).numpy() == part_.targets).mean()
    (record,) = store.records(digests[0])
    assert record["epochs"][-1]["metric"] == pytest.approx(right)  # of the mean of their probabilities

    again = jobs_of(tmp_path / "again", together=[NET, OTHER], training=MUTUAL)
    other = Store(tmp_path / "again" / "store")
    assert fitted(again[1], other)[0] == digests[1]


def noisy(signature: Signature, rows: int, seed: int = 0) -> Part:
    """Rows that members can differ about."""
    found = part(signature, rows, seed)
    noise = np.random.default_rng(seed + 1).normal(scale=3, size=found.inputs.shape)
    return replace(found, inputs=(found.inputs + noise).astype(np.float32))


def together(signature: Signature, loss: MutualLoss | NegativeCorrelation, **changes: Any) -> Together:
    """Three trained models."""
    members = [build(NETWORK, signature, seed=nth_seed(0, number)) for number in (1, 2, 3)]
    module = Together(members, signature.task)
    settings = TRAINING.model_copy(update={"loss": loss, **changes})
    run(module, signature, settings, train=noisy(signature, 60), seed=3)
    return module.eval()


NETWORK = Mlp(kwargs=MlpKwargs(widths=(16,)))
TRAINING = Training(epochs=12, batch_size=16, lr=0.05, schedule="cosine")
ALONE = NegativeCorrelation(weight=1e-9)


@pytest.fixture(scope="module")
def logs() -> dict[str, torch.Tensor]:
    """Log-probabilities [M, N, K] of members trained apart, mutually and in negative correlation."""
    rows = torch.from_numpy(noisy(FEATURES, 400, seed=1).inputs)
    losses: dict[str, MutualLoss | NegativeCorrelation] = {
        "alone": ALONE,
        "mutual": MutualLoss(weight=3.0),
        "apart": NegativeCorrelation(weight=0.9),
    }
    return {
        name: torch.stack(
            [member(rows).detach().log_softmax(1) for member in together(FEATURES, loss).members]
        )
        for name, loss in losses.items()
    }


def test_a_weight_of_nothing_trains_each_as_if_alone() -> None:
    members = together(FEATURES, ALONE).members
    for number, member in enumerate(members, 1):
        single = build(NETWORK, FEATURES, seed=nth_seed(0, number))
        run(single, FEATURES, TRAINING, train=noisy(FEATURES, 60), seed=3)
        for mine, its in zip(single.parameters(), member.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-5)


def test_mutual_learning_brings_members_together_and_negative_correlation_apart(
    logs: dict[str, torch.Tensor],
) -> None:
    targets = noisy(FEATURES, 400, seed=1).targets
    differ, ambiguity = {}, {}
    for name, members in logs.items():
        differ[name] = disagreement(members.argmax(2).numpy()).sum() / 6  # mean over the pairs
        mean = members.exp().mean(0).log().double().numpy()
        found = decompose(list(members.double().numpy()), mean, targets, "classification")
        ambiguity[name] = found.ambiguity
    assert differ["mutual"] < differ["alone"] < differ["apart"], differ
    assert ambiguity["mutual"] < ambiguity["alone"] < ambiguity["apart"], ambiguity


def test_negative_correlation_spreads_values() -> None:
    rows = torch.from_numpy(noisy(VALUES, 200, seed=1).inputs)

    def spread(loss: NegativeCorrelation) -> float:
        module = together(VALUES, loss, optimizer="adamw", lr=0.01)
        with torch.no_grad():
            values = torch.stack([member(rows) for member in module.members])
        return float((values / torch.tensor(VALUES.target_std)).var(0).mean())

    assert spread(NegativeCorrelation(weight=0.9)) > spread(ALONE)


def test_first_layers_are_set_from_rows_in_every_member() -> None:
    whitened = ResNet9(kwargs=ResNet9Kwargs(width=4, whiten=True))
    module = Together([build(whitened, IMAGES, seed=seed) for seed in (0, 1)], "classification")
    run(module, IMAGES, Training(epochs=1, loss=MutualLoss()))
    layers = [layer for layer in module.modules() if isinstance(layer, DataInitialized)]
    assert [layer.initialized.item() for layer in layers] == [1, 1]


def test_together_is_bit_equal_after_a_stop_and_in_bf16(tmp_path: Path) -> None:
    settings = TRAINING.model_copy(
        update={
            "epochs": 3,
            "loss": MutualLoss(),
            "precision": "bf16",
            "channels_last": True,
            "augment": Augment(flip=True, crop=1),
        }
    )

    def fresh(seed: int) -> Any:
        return Together([module_of(IMAGES, seed), module_of(IMAGES, seed + 1)], "classification")

    reports, whole = run(fresh(0), IMAGES, settings)
    assert reports[-1].metric > 0.8
    state, rows, metric = TrainState(), part(IMAGES), Metric()
    held = part(IMAGES, 50, seed=1)
    stopped = train(
        fresh(0), rows, held, settings, signature=IMAGES, metric=metric, seed=3, threads=1, state=state
    )
    assert [next(stopped).epoch for _ in range(2)] == [0, 1]
    state.save(tmp_path)
    _, resumed = run(fresh(7), IMAGES, settings, state=TrainState.load(tmp_path))
    assert digest(resumed.weights) == digest(whole.weights)
    members = [weights_of_member(resumed.weights, number) for number in (1, 2)]
    assert all(member.keys() == module_of(IMAGES).state_dict().keys() for member in members)
    assert digest(members[0]) != digest(members[1])
