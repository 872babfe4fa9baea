"""Compressed ensembles for the serving benchmark: networks that are trained, so that losing accuracy shows.

Three networks of `serving_models`, trained here in a minute or two: on CIFAR-10 where its files are given,
else on the embedded digits, enlarged to 3x32x32. Each plan below makes an ensemble of the same tree. Which
is the best is chosen by the rows of the validation part; what it lost on those of the test part is printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.serving_arms import TRIO
from benchmarks.serving_models import CHECKED, MEMBERS, NETWORK, Models, prepare, spec_of
from orchestrator.compression.plan import Context, apply_plan
from orchestrator.config.base import fingerprint
from orchestrator.config.data import EmbeddedData, ParquetData
from orchestrator.config.ensemble import Spec
from orchestrator.config.measure import Execution, Metric
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Bf16, ChannelPruning, Plan, Recovery, StaticInt8
from orchestrator.config.training import DistillationLoss, Training
from orchestrator.data.dataset import Dataset, Part
from orchestrator.data.load import default_cache, load
from orchestrator.errors import OrchestratorError
from orchestrator.models.build import build
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from orchestrator.training.loop import train

SEED = 0
CIFAR = ("cifar10-train.parquet", "cifar10-test.parquet")
CIFAR_ROWS, CIFAR_EPOCHS, DIGITS_EPOCHS = 20_000, 3, 8
HALF = ChannelPruning(amount=0.5)
PLANS: Mapping[str, tuple[Plan, Execution]] = {
    f"{TRIO}-bf16": ((Bf16(),), "aoti"),
    f"{TRIO}-int8": ((StaticInt8(),), "lowered"),
    f"{TRIO}-int8-openvino": ((StaticInt8(),), "openvino"),
    f"{TRIO}-half": ((HALF, Recovery()), "aoti"),
    f"{TRIO}-half-bf16": ((HALF, Recovery(), Bf16()), "aoti"),
}


def make(
    folder: Path, data: Path | None, *, aoti: bool, epochs: int | None = None
) -> tuple[Models, dict[str, dict[str, float]], dict[str, str]]:
    """Train, compress, store; a folder that was made before is used again.

    Args:
        folder: for the store and the baselines' files.
        data: folder of CIFAR-10's Parquet files; the embedded digits when not given.
        aoti: float networks are compiled.
        epochs: of each training.

    Returns:
        The models (with `trio`, the uncompressed one), the accuracy of each by part (`validation`, `test`),
        and why plans are missing that this machine cannot run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder / "store")
    dataset = _dataset(data)
    training = Training(epochs=epochs or (CIFAR_EPOCHS if data else DIGITS_EPOCHS), lr=0.1)
    plain = [_trained(store, dataset, training, seed) for seed in range(MEMBERS)]
    specs: dict[str, Spec] = {}
    specs[TRIO] = spec_of(TRIO, plain, "aoti" if aoti else "eager", dataset.signature)
    images = np.array(dataset.part("calibration").inputs[:CHECKED])
    missing = {}
    models = Models(store, specs, folder, images)
    accuracy = {TRIO: _accuracy(models, TRIO, dataset)}
    for name, (plan, execution) in PLANS.items():
        run = "eager" if execution == "aoti" and not aoti else execution
        try:
            digests = [apply_plan(store, one, _short(plan, epochs), _context(dataset)) for one in plain]
            specs[name] = spec_of(name, digests, run, dataset.signature)
            accuracy[name] = _accuracy(models, name, dataset)
        except OrchestratorError as error:
            specs.pop(name, None)
            missing[name] = str(error)
    prepare(models, plain)
    return models, accuracy, missing


def _short(plan: Plan, epochs: int | None) -> Plan:
    if epochs is None:
        return plan
    quick = Recovery(training=Training(epochs=epochs, lr=0.02, loss=DistillationLoss()))
    return tuple(quick if isinstance(step, Recovery) else step for step in plan)


def _context(dataset: Dataset) -> Context:
    return Context(
        seed=SEED,
        data=dataset.digest,
        calibration=dataset.part("calibration").inputs,
        train=dataset.part("train"),
        validation=dataset.part("validation"),
    )


def _dataset(data: Path | None) -> Dataset:
    if data is not None:
        names = dict(zip(("train", "test"), CIFAR, strict=True))
        settings = ParquetData(root=str(data), limit=CIFAR_ROWS, **names)
        return load(settings, seed=SEED, cache=default_cache())
    found = load(EmbeddedData(), seed=SEED, cache=default_cache())
    parts = {name: replace(part, inputs=_enlarged(part.inputs)) for name, part in found.parts.items()}
    facts = found.signature.model_dump()
    shape = {"input_shape": (3, 32, 32), "mean": facts["mean"] * 3, "std": facts["std"] * 3}
    return replace(found, parts=parts, signature=Signature.model_validate(facts | shape))


def _enlarged(images: np.ndarray) -> np.ndarray:
    """uint8 [N, 1, 8, 8] to [N, 3, 32, 32]."""
    return np.repeat(images.repeat(4, axis=2).repeat(4, axis=3), 3, axis=1)


def _trained(store: Store, dataset: Dataset, training: Training, seed: int) -> str:
    draft = Draft(
        model=NETWORK, signature=dataset.signature, data=dataset.digest, seed=seed, what=training.plain()
    )

    def compute() -> str:
        module = build(NETWORK, dataset.signature, seed=seed)
        reports = train(
            module,
            dataset.part("train"),
            dataset.part("validation"),
            training,
            signature=dataset.signature,
            metric=Metric(),
            seed=seed,
            threads=1,
        )
        for _ in reports:
            pass
        return store.put_artifact(draft, tensors_of(module))

    return store.stage(fingerprint(draft.plain()), compute)


def _accuracy(models: Models, name: str, dataset: Dataset) -> dict[str, float]:
    def share(part: Part) -> float:
        labels = models.expected(name, np.array(part.inputs)).argmax(axis=1)
        return float((labels == part.targets).mean())

    return {part: share(dataset.part(part)) for part in ("validation", "test")}
