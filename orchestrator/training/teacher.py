"""A teacher's outputs, computed once for each view and kept in the store for every epoch, trial and run.

A file a view: an epoch reads the one that it needs. Logits are kept as float16, values of a regression, and
all that figures are about, as float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.config.base import fingerprint
from orchestrator.config.signature import Task
from orchestrator.config.training import Training
from orchestrator.data.dataset import Part
from orchestrator.errors import StoreError
from orchestrator.measure.machine import machine
from orchestrator.store import predictions
from orchestrator.store.store import Store
from orchestrator.training.augment import views
from orchestrator.training.batches import Rows, Views

_VERSION = 2
"""Raise when outputs are kept in another form."""
_LARGEST = float(torch.finfo(torch.float16).max)


def as_kept(outputs: Tensor, task: Task) -> Tensor:
    """Outputs as the cache keeps them, so that a teacher gives the same targets with and without it."""
    return outputs.clamp(-_LARGEST, _LARGEST).half() if task != "regression" else outputs.float()


@dataclass(frozen=True)
class TeacherCache:
    """The outputs of one artifact on the augmented rows of one training.

    Kept once for each teacher, so any mixture of teachers is made of them without running one again.
    """

    store: Store
    digest: str
    """The teacher."""
    data: str
    """Digest of the data set that the rows are of."""
    rows: Part
    task: Task
    training: Training
    """Says which views there are and in which precision they are run."""
    seed: int
    threads: int
    device: str = "cpu"
    exact: bool = False
    """Kept as float32 in any case: of rows that a metric is of."""

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

    def outputs(self) -> Views:
        """Float32 [N, K] of each view that the training uses, each read when it is asked for.

        A budget of the store's caches leaves them alone while this process lives.

        Raises:
            StoreError: (when asked for) a view is not in the store.
        """
        for view in range(self._used()):
            predictions.hold(self.store.blobs, self.digest, self._key(view))
        return Views(self._used(), self._read)

    def _read(self, view: int) -> NDArray[np.float32]:
        kept = self._kept(view)
        if kept is None:
            raise StoreError("a teacher's outputs are not in the store", self.digest, "run again")
        return kept

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

        outputs = rows.outputs_of(forward, view, self._device, training.channels_last)
        kept = (outputs if self.exact else as_kept(outputs, self.task)).numpy()
        self.store.put_predictions(self.digest, self._key(view), self.rows.ids, kept)
        return "kept"

    def _key(self, view: int) -> str:
        """Names the rows, their view, and all that a teacher's last bits depend on."""
        facts = {
            "rows": self.data,
            # Without their number: a training that looks at more views finds those that there are.
            "augment": {**self.training.augment.plain(), "views": None},
            "seed": self.seed,
            "threads": self.threads,
            "device": self._device.type,
            "precision": self.training.precision,
            "channels_last": self.training.channels_last,
            "torch": torch.__version__,
            "isa": machine()["isa"],
            "count": len(self.rows.ids),
            "version": _VERSION,
            **({"exact": True} if self.exact else {}),
        }
        return f"train-view{view}-{fingerprint(facts)[:24]}"
