"""A teacher's outputs, computed once for each view and kept in the store for every epoch, trial and run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.config.base import fingerprint
from orchestrator.config.training import Training
from orchestrator.data.dataset import Part
from orchestrator.measure.machine import machine
from orchestrator.store.store import Store
from orchestrator.training.augment import views
from orchestrator.training.batches import Rows


@dataclass(frozen=True)
class TeacherCache:
    """The outputs of one artifact on the augmented rows of one training."""

    store: Store
    digest: str
    """The teacher."""
    data: str
    """Digest of the data set that the rows are of."""
    rows: Part
    training: Training
    """Says which views there are and in which precision they are run."""
    seed: int
    threads: int
    device: str = "cpu"

    def fill(self, build: Callable[[], nn.Module]) -> None:
        """Compute the views that are not kept yet; of several processes one does.

        Args:
            build: makes the teacher; called only when something is missing.
        """
        teacher: list[nn.Module] = []
        for view in range(self._used()):
            if self._kept(view) is None:
                if not teacher:
                    teacher.append(build().to(self.device).eval())
                key = fingerprint([self.digest, self._key(view)])
                self.store.stage(key, lambda view=view: self._compute(teacher[0], view))  # type: ignore[misc]
                if self._kept(view) is None:  # removed from the store since
                    self._compute(teacher[0], view)

    def outputs(self) -> NDArray[np.float32] | None:
        """[V, N, K] for every view that the training uses; None when some are missing."""
        kept = [self._kept(view) for view in range(self._used())]
        found = [outputs for outputs in kept if outputs is not None]
        return np.stack(found) if len(found) == len(kept) else None

    @property
    def _device(self) -> torch.device:
        return torch.device(self.device)

    def _used(self) -> int:
        return min(views(self.training.augment), self.training.epochs)

    def _kept(self, view: int) -> NDArray[np.float32] | None:
        return self.store.predictions(self.digest, self._key(view), self.rows.ids)

    def _compute(self, teacher: nn.Module, view: int) -> str:
        training = self.training
        rows = Rows(self.rows, training.augment, self.seed, training.batch_size, None)

        def forward(inputs: Tensor) -> Tensor:
            bf16 = training.precision == "bf16"
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=bf16):
                result: Tensor = teacher(inputs)
            return result

        outputs = rows.outputs_of(forward, view, self._device, training.channels_last).numpy()
        self.store.put_predictions(self.digest, self._key(view), self.rows.ids, outputs)
        return "kept"

    def _key(self, view: int) -> str:
        """Names the rows, their view, and all that a teacher's last bits depend on."""
        facts = {
            "rows": self.data,
            "augment": self.training.augment.plain(),
            "seed": self.seed,
            "threads": self.threads,
            "device": self._device.type,
            "precision": self.training.precision,
            "channels_last": self.training.channels_last,
            "torch": torch.__version__,
            "isa": machine()["isa"],
            "count": len(self.rows.ids),
        }
        return f"train-view{view}-{fingerprint(facts)[:24]}"
