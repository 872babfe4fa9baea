"""Toy data and models: separable blobs as feature rows and as small images, learned in a second."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from orchestrator.config.measure import Metric
from orchestrator.config.model import Cnn, CnnKwargs, Mlp, MlpKwargs, ModelSettings
from orchestrator.config.signature import Signature
from orchestrator.config.training import Training
from orchestrator.data.dataset import Part
from orchestrator.models.build import build
from orchestrator.models.served import Served
from orchestrator.training.loop import train
from orchestrator.training.state import EpochReport, TrainState

FEATURES = Signature(
    task="classification",
    input_shape=(6,),
    input_dtype="float32",
    outputs=3,
    classes=("a", "b", "c"),
    mean=(0.0,) * 6,
    std=(1.0,) * 6,
)
IMAGES = Signature(
    task="classification",
    input_shape=(3, 8, 8),
    input_dtype="uint8",
    outputs=3,
    classes=("a", "b", "c"),
    mean=(128.0,) * 3,
    std=(64.0,) * 3,
)
VALUES = Signature(
    task="regression",
    input_shape=(6,),
    input_dtype="float32",
    outputs=2,
    mean=(0.0,) * 6,
    std=(1.0,) * 6,
    target_mean=(100.0, -5.0),
    target_std=(50.0, 0.1),
)
MLP: ModelSettings = Mlp(kwargs=MlpKwargs(widths=(16,), dropout=0.1))
CNN: ModelSettings = Cnn(kwargs=CnnKwargs(channels=(4, 8), hidden=16, dropout=0.1))
QUICK = Training(epochs=4, batch_size=16, lr=0.05)


def part(signature: Signature, rows: int = 70, seed: int = 0) -> Part:
    """Rows whose class is visible in their mean, or whose targets are linear in them."""
    random = np.random.default_rng(seed)
    ids = np.arange(rows, dtype=np.int64) + 1000 * seed
    noise = random.normal(size=(rows, *signature.input_shape))
    if signature.task == "regression":
        slope = np.linspace(-1, 1, 6 * signature.outputs).reshape(6, -1)
        targets = noise @ slope * np.array(signature.target_std) + np.array(signature.target_mean)
        return Part(noise.astype(np.float32), targets.astype(np.float32), ids)
    labels = random.integers(0, signature.outputs, rows).astype(np.int64)
    centres = np.random.default_rng(99).normal(size=(signature.outputs, *signature.input_shape))
    inputs = noise + 2 * centres[labels]
    if signature.input_dtype == "uint8":
        inputs = np.clip(128 + 40 * inputs, 0, 255)
    return Part(inputs.astype(signature.input_dtype), labels, ids)


def module_of(signature: Signature, seed: int = 0) -> Served:
    return build(CNN if len(signature.input_shape) == 3 else MLP, signature, seed=seed)


def run(
    module: nn.Module, signature: Signature, settings: Training = QUICK, **options: Any
) -> tuple[list[EpochReport], TrainState]:
    """Train to the end; the state at the end comes with the reports."""
    state = options.pop("state", None) or TrainState()
    metric = options.pop("metric", None) or Metric(
        name="accuracy" if signature.task == "classification" else "rmse"
    )
    rows = options.pop("train", None) or part(signature)
    validation = options.pop("validation", None) or part(signature, 50, seed=1)
    options = {"seed": 3, "threads": 1, **options}
    reports = train(
        module, rows, validation, settings, signature=signature, metric=metric, state=state, **options
    )
    return list(reports), state


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + tensors[name].detach().contiguous().numpy().tobytes())
    return found.hexdigest()
