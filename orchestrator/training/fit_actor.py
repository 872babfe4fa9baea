"""A Ray actor that waits for Ray Train's runs, away from the driver's process.

`TorchTrainer.fit` blocks and cannot be stopped from outside. In a thread of the driver it would go on using
Ray while an interrupted driver shuts it down, and Ray answers that by ending the process.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import ray
import ray.train
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.errors import OrchestratorError, StoreError, TrainingError, last_line
from orchestrator.mailbox import Mailbox, send
from orchestrator.store.store import Store
from orchestrator.training.job import TrainJob, checkpoint_of, drop_damaged, run_name
from orchestrator.training.ray_worker import work
from orchestrator.training.watch import STEP_TIMEOUT_S, hung_at

log = logging.getLogger(__name__)

_v2: Any = ray.train  # At run time these are the classes of Train V2; type checkers see those of V1.
_trainer: Any = TorchTrainer

# Ray Train answers a report only at the controller's next look, by default every 2 s.
_ENVIRONMENT = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}
_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"


class FitActor:
    """Several fits at once, each in a thread of its own."""

    def __init__(self, mailbox: Mailbox) -> None:
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        # One more process a training, which only helps where another node can take over.
        os.environ[_WATCHER] = "1" if sum(bool(node["Alive"]) for node in ray.nodes()) > 1 else "0"
        self._mailbox = mailbox

    def fit(self, job: TrainJob, workers: int, storage: Path) -> str | OrchestratorError:
        """Train one model with at most so many workers; the artifact's digest, or why there is none."""
        try:
            store = Store(job.store)
            digest = store.stage(job.key(), lambda: _fit(job, workers, storage, self._mailbox))
            kept = checkpoint_of(job, store)
            if kept is not None:
                with suppress(StoreError):
                    kept.forget()
            return digest
        except OrchestratorError as error:
            return error
        except Exception as error:
            # The other fits of this process go on: whatever happened is this model's failure.
            log.debug("fit of %s failed", job.name, exc_info=True)
            return TrainingError(f"{type(error).__name__}: {last_line(error)}")


def start(mailbox: Mailbox, concurrent: int) -> ActorHandle[FitActor]:
    """Start the actor on the driver's node, for so many fits at once."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_concurrency": concurrent, "scheduling_strategy": here}
    return cast("ActorHandle[FitActor]", ray.remote(FitActor).options(**options).remote(mailbox))


def _fit(job: TrainJob, workers: int, storage: Path, mailbox: Mailbox) -> str:
    """One `TorchTrainer` run; under its stable name it goes on where an earlier one stopped.

    Raises:
        TrainingError: it failed after its retries, or would fail again.
    """
    folder = storage / run_name(job)
    if drop_damaged(folder):
        send(mailbox, job.name, "the record of its checkpoints was damaged, training starts over")
    resources = job.entry.resources
    least, most = resources.span
    each = {"CPU": float(resources.cpus)} | ({"GPU": resources.gpus} if resources.gpus else {})
    trainer = _trainer(
        work,
        train_loop_config={"job": job.plain(), "mailbox": mailbox, "folder": str(folder)},
        scaling_config=_v2.ScalingConfig(
            num_workers=least if least == most else (least, max(least, workers)),
            use_gpu=resources.gpus > 0,
            resources_per_worker=each,
            label_selector=resources.labels,
        ),
        run_config=_v2.RunConfig(
            name=run_name(job),
            storage_path=str(storage),
            # Two: while one is deleted the other is whole.
            checkpoint_config=_v2.CheckpointConfig(num_to_keep=2),
            failure_config=_v2.FailureConfig(
                max_failures=resources.max_failures, controller_failure_limit=resources.max_failures + 2
            ),
            logging_config=_v2.LoggingConfig(log_level="ERROR"),
        ),
    )
    try:
        result = trainer.fit()
    except _v2.TrainingFailedError as error:
        tries = resources.max_failures + 1
        often = "once" if tries == 1 else f"{tries} times"
        place = hung_at(folder)
        if place is not None:
            limit_s = resources.step_timeout_s or STEP_TIMEOUT_S
            raise TrainingError(
                f"no step ended within {limit_s:g} s; its workers were ended {often}, at last in",
                place,
                f"see {folder}/hang-*.txt; raise resources.step_timeout_s if a step may take longer",
            ) from error
        raise TrainingError(
            f"its workers failed {often}",
            last_line(error),
            "run again to go on from the last epoch; see the workers' logs",
        ) from error
    except RayError as error:
        raise TrainingError(
            "Ray Train's controller failed", last_line(error), f"run again, or first remove {folder}"
        ) from error
    answer = result.return_value
    if not isinstance(answer, dict):
        raise TrainingError("the worker gave no result", answer, "run again")
    if "error" in answer:
        raise TrainingError(*answer["error"])
    return str(answer["digest"])
