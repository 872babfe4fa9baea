"""What a training run is at an epoch boundary, or within one: enough to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import load_file, save_file
from safetensors.torch import save as save_tensors
from torch import Tensor

from orchestrator.errors import CorruptArtifactError

TENSORS = "state.safetensors"
FACTS = "state.json"
_GROUPS = ("model", "optimizer", "best", "begun")
_SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class EpochReport:
    """One epoch, in plain Python numbers."""

    epoch: int
    """From 0."""
    loss: float
    """Mean over the epoch's rows."""
    metric: float
    """Of the validation part, as `measure.metrics.score` gives it (of an error metric, less is better)."""
    lr: float
    """Of the last step."""
    seconds: float
    """Training and validation together."""

    def text(self, metric: str) -> str:
        """One line for people; `metric` is the name of the validation figure."""
        return (
            f"epoch {self.epoch + 1}: loss {self.loss:.4f}, "
            f"validation {metric} {self.metric:.4f}, {self.seconds:.1f} s"
        )

    def plain(self) -> dict[str, float | int]:
        """As plain values, for records and messages."""
        return asdict(self)


@dataclass
class TrainState:
    """Whole (never sharded) CPU tensors and plain values; `train` brings it up to date before each report.

    At the end of an epoch neither a random state nor a schedule is kept: both are pure functions of (seed,
    epoch, rank) and step.
    """

    epoch: int = 0
    """Finished epochs."""
    finished: bool = False
    """All epochs are done, or the run stopped early."""
    model: dict[str, Tensor] = field(default_factory=dict)
    """`state_dict` after the last finished epoch, or after `step` steps of the next one."""
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    """`<parameter>/<slot>`, such as `body.0.weight/momentum_buffer`."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """`state_dict` of the best epoch; kept only when the run has a patience."""
    snapshots: list[dict[str, Tensor]] = field(default_factory=list)
    """`state_dict` at the end of each finished cycle; kept only when the run has snapshots."""
    step: int = 0
    """Finished steps of the epoch that has begun; above 0 only in a state that was saved within an epoch."""
    begun: dict[str, Tensor] = field(default_factory=dict)
    """Of such an epoch: `loss`, the sum so far on this rank, and torch's generators (`random_states`)."""
    best_epoch: int | None = None
    curve: list[EpochReport] = field(default_factory=list)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The result: the best epoch's weights when the run has a patience, else the last epoch's."""
        return self.best or self.model

    def save(self, folder: str | Path) -> None:
        """Write the state into a folder: tensors first, then the facts with the tensors' sha256.

        Raises:
            OSError: the folder cannot be written.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        save_file(self._tensors(), place / TENSORS)
        (place / FACTS).write_bytes(self._facts(_sha256(place / TENSORS)))

    def files(self) -> dict[str, bytes]:
        """The same files by name, in the order in which they are to be written."""
        tensors = save_tensors(self._tensors())
        return {TENSORS: tensors, FACTS: self._facts(hashlib.sha256(tensors).hexdigest())}

    def _tensors(self) -> dict[str, Tensor]:
        # Right after the best epoch both are the same tensors, which are written once.
        groups = tuple(group for group in _GROUPS if group != "best" or self.best is not self.model)
        tensors = {f"{group}:{name}": t for group in groups for name, t in getattr(self, group).items()}
        for number, snapshot in enumerate(self.snapshots):
            tensors |= {f"{_SNAPSHOT}{number}:{name}": tensor for name, tensor in snapshot.items()}
        return tensors

    def _facts(self, sha256: str) -> bytes:
        facts = {
            "schema": 1,
            "epoch": self.epoch,
            "finished": self.finished,
            "best_epoch": self.best_epoch,
            "best_is_last": self.best is self.model,
            "snapshots": len(self.snapshots),
            "curve": [report.plain() for report in self.curve],
            "sha256": sha256,
            **({"step": self.step} if self.step else {}),
        }
        return json.dumps(facts).encode()

    @classmethod
    def load(cls, folder: str | Path) -> TrainState:
        """Read a state that `save` wrote.

        Raises:
            CorruptArtifactError: a file is missing, cut short, or not what was written.
        """
        place = Path(folder)
        with _corrupt_in(place, f"remove {place.parent} and train again"):
            written, sha256 = (place / FACTS).read_bytes(), _sha256(place / TENSORS)
            return cls._of(written, sha256, lambda: load_file(place / TENSORS))

    @classmethod
    def of_files(cls, files: Mapping[str, bytes], origin: str) -> TrainState:
        """The state that gave these `files`; `origin` is where they are, for errors.

        Raises:
            CorruptArtifactError: one is cut short, or not what was written.
        """
        tensors = files[TENSORS]
        with _corrupt_in(origin, "remove it and train again"):
            sha256 = hashlib.sha256(tensors).hexdigest()
            return cls._of(files[FACTS], sha256, lambda: load_tensors(tensors))

    @classmethod
    def _of(cls, written: bytes, sha256: str, read: Callable[[], Mapping[str, Tensor]]) -> TrainState:
        facts: dict[str, Any] = json.loads(written)
        if facts["sha256"] != sha256:
            raise ValueError("sha256 differs")
        state = cls(
            epoch=facts["epoch"],
            step=facts.get("step", 0),
            finished=facts["finished"],
            best_epoch=facts["best_epoch"],
            curve=[EpochReport(**report) for report in facts["curve"]],
            snapshots=[{} for _ in range(facts.get("snapshots", 0))],
        )
        for name, tensor in read().items():
            group, _, key = name.partition(":")
            if group.startswith(_SNAPSHOT):
                state.snapshots[int(group.removeprefix(_SNAPSHOT))][key] = tensor
            else:
                getattr(state, group)[key] = tensor
        if facts["best_is_last"]:
            state.best = state.model
        return state


@contextmanager
def _corrupt_in(place: object, fix: str) -> Iterator[None]:
    """What reading a state raises, as one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CorruptArtifactError(f"training checkpoint cannot be read ({error})", place, fix) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
