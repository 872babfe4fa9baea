"""What distillation costs beside learning from labels, with a full cache of the teacher's outputs."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import numpy as np

from orchestrator.config.measure import Metric
from orchestrator.config.training import Augment, DistillationLoss, Training
from orchestrator.data.dataset import Dataset, Part
from orchestrator.runtime.bf16 import has_bf16_kernels
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from orchestrator.training.loop import train
from orchestrator.training.teacher import TeacherCache

OVERHEAD_ROWS, OVERHEAD_EPOCHS, OVERHEAD_ROUNDS = 512, 10, 3


def cache_overhead(store: Store, parent: str, data: Dataset, metric: Metric) -> dict[str, Any]:
    """Seconds of ten epochs with labels, and with a full cache of a teacher's outputs; and of filling it."""
    whole = data.part("train")
    rows = Part(whole.inputs[:OVERHEAD_ROWS], whole.targets[:OVERHEAD_ROWS], whole.ids[:OVERHEAD_ROWS])
    plain = Training(
        epochs=OVERHEAD_EPOCHS,
        batch_size=128,
        augment=Augment(flip=True, crop=4, views=OVERHEAD_EPOCHS),
        precision="bf16" if has_bf16_kernels() else "fp32",
        channels_last=True,
    )
    distilled = plain.model_copy(update={"loss": DistillationLoss()})
    signature = store.manifest(parent).signature
    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache(
            Store(folder), parent, data.digest, rows, signature.task, distilled, seed=0, threads=1
        )
        started = time.perf_counter()
        cache.fill(lambda: rebuild(store, parent).module)
        filling = time.perf_counter() - started

        def ten_epochs(training: Training) -> float:
            module = rebuild(store, parent).module
            teacher = cache.outputs() if training is distilled else None
            started = time.perf_counter()
            for _ in train(
                module,
                rows,
                data.part("calibration"),
                training,
                signature=signature,
                metric=metric,
                seed=0,
                threads=1,
                teacher=teacher,
            ):
                pass
            return time.perf_counter() - started

        taken = [(ten_epochs(plain), ten_epochs(distilled)) for _ in range(OVERHEAD_ROUNDS)]
    return {
        "name": f"ten epochs of {OVERHEAD_ROWS} rows",
        "labels_s": float(np.median([labels for labels, _ in taken])),
        "cached_s": float(np.median([cached for _, cached in taken])),
        "filling_s": filling,
        "ratio": float(np.median([cached / labels for labels, cached in taken])),
    }
