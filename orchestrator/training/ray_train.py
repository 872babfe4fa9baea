"""Training on Ray: each model its own `TorchTrainer` run, as many at once as the cluster holds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from orchestrator.cluster import offers
from orchestrator.config.training import Resources
from orchestrator.errors import OrchestratorError, ResourceError, TrainingError, last_line
from orchestrator.mailbox import Mailbox, deliver, open_mailbox
from orchestrator.store import artifacts
from orchestrator.store.store import Store
from orchestrator.training import fit_actor
from orchestrator.training.job import TrainJob, claim
from orchestrator.training.state import EpochReport

__all__ = ["Ended", "Failed", "TrainJob", "train_models"]


class Ended(str):
    """The line that tells that a model is trained."""


class Failed(str):
    """The line that tells that a model cannot be trained."""


OnEvent = Callable[[str, EpochReport | str], None]
OnDone = Callable[[str, str], None]
POLL_S = 0.2
KEEP_EVERY_S = 3600.0
"""Between two looks at the models that are done: those that nothing names yet are removed as old some day."""


def train_models(
    jobs: Sequence[TrainJob],
    *,
    storage: Path,
    on_event: OnEvent,
    on_done: OnDone = lambda name, digest: None,  # noqa: ARG005
    fresh: bool = False,
) -> dict[str, str]:
    """Train models concurrently; a finished one is looked up, an interrupted one goes on.

    A job starts when its cores and accelerators are free and its teacher, if that is a job too, is done. Of
    jobs whose models come out of one training the first trains them all. Each training is its own fault
    domain: when one fails the others go on (not when the process that guides them all is lost). Ray must be
    connected.

    Args:
        jobs: names must differ.
        storage: folder for checkpoints that all nodes reach.
        on_event: called in this thread with the job's name and each epoch's report, or a line of text:
            an `Ended` or `Failed` when it is the last.
        on_done: called in this thread with the name and digest of each model as soon as it is there.
        fresh: forget settings kept under these names that were others, and their checkpoints.

    Returns:
        Name -> digest of the artifact, in the order of `jobs`.

    Raises:
        ResourceError: the cluster can never run one of the jobs; nothing was started.
        ConfigError: a name was used with other settings; nothing was started.
        TrainingError: jobs failed; names all of them. The others are in the store.
    """
    storage = storage.resolve()
    totals = _totals()
    workers = {job.name: _check_resources(job, _totals(job.entry.resources.labels)) for job in jobs}
    for job in jobs:
        claim(job, storage, fresh)
    return _Schedule(jobs, workers, totals, storage, on_event, on_done).run()


@dataclass(frozen=True)
class _Totals:
    """What the cluster has: cores and accelerators of each node."""

    nodes: tuple[tuple[float, float], ...]

    @property
    def cpus(self) -> float:
        """Of all nodes together."""
        return sum(cpus for cpus, _ in self.nodes)

    @property
    def gpus(self) -> float:
        """Of all nodes together."""
        return sum(gpus for _, gpus in self.nodes)

    def places(self, resources: Resources) -> int:
        """Workers that the nodes hold: none is spread over two of them."""
        return sum(
            int(min(cpus / resources.cpus, gpus / resources.gpus if resources.gpus else math.inf))
            for cpus, gpus in self.nodes
        )


def _totals(labels: Mapping[str, str] | None = None) -> _Totals:
    """Of the nodes with these labels."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [node["Resources"] for node in alive if offers(node["Labels"], labels or {})]
    return _Totals(tuple((float(node.get("CPU", 0)), float(node.get("GPU", 0))) for node in nodes))


def _check_resources(job: TrainJob, totals: _Totals) -> int:
    """How many workers the job can have at most.

    Raises:
        ResourceError: fewer than it needs at least; with the numbers.
    """
    resources = job.entry.resources
    least, most = resources.span
    if not totals.cpus and resources.labels:
        wanted = ", ".join(f"{name}: {value}" for name, value in resources.labels.items())
        raise ResourceError(
            f"no node with cores has the labels that model '{job.name}' asks for",
            wanted,
            f"change models.{job.name}.resources.labels, or start such a node with 'ray start --labels'",
        )
    places = totals.places(resources)
    if places < least:
        each, total = f"{resources.cpus} CPUs", f"{totals.cpus:g} CPUs"
        if resources.gpus:
            each, total = f"{resources.gpus:g} GPUs with {each}", f"{totals.gpus:g} GPUs and {total}"
        raise ResourceError(
            f"model '{job.name}' can never be placed: it needs {least} x {each}; "
            f"the cluster has {total}, and its nodes hold",
            f"{places} such workers",
            f"set models.{job.name}.resources lower, or join a larger cluster",
        )
    return min(most, places)


class _Schedule:
    """Starts each job when it fits and its teacher is done; runs in the caller's thread."""

    def __init__(
        self,
        jobs: Sequence[TrainJob],
        workers: Mapping[str, int],
        totals: _Totals,
        storage: Path,
        on_event: OnEvent,
        on_done: OnDone,
    ) -> None:
        self.jobs, self.workers, self.totals = jobs, workers, totals
        self.storage, self.on_event, self.on_done = storage, on_event, on_done
        self.kept = time.monotonic()
        self.mailbox: Mailbox | None = None
        self.fits: ActorHandle[Any] | None = None
        self.running: dict[Any, TrainJob] = {}
        self.digests: dict[str, str] = {}
        self.failures: dict[str, str] = {}
        self.failed_groups: set[str] = set()

    def run(self) -> dict[str, str]:
        """Until every job is done or has failed."""
        names = {job.name for job in self.jobs}
        teachers = {job.entry.teacher for job in self.jobs}
        # Others wait for teachers, so they go first; else the caller's order holds.
        pending = sorted(self.jobs, key=lambda job: job.name not in teachers)
        try:
            while pending or self.running:
                pending = [job for job in pending if not self._start(job, names)]
                self._deliver()
                self._keep()
                if self.running:
                    self._collect()
            self._deliver()
        finally:
            for actor in filter(None, (self.fits, self.mailbox)):
                ray.kill(actor)
        if self.failures:
            told = "; ".join(f"{name}: {message}" for name, message in self.failures.items())
            raise TrainingError(f"training failed for {len(self.failures)} of {len(self.jobs)} models", told)
        return {job.name: self.digests[job.name] for job in self.jobs}

    def _start(self, job: TrainJob, names: set[str]) -> bool:
        """Start the job or give it up, if it is time; whether it is no longer pending."""
        if any(other.group == job.group for other in self.running.values()):
            return False
        teacher = job.entry.teacher
        if teacher in names and job.teacher_digest is None:
            if teacher in self.failures:
                self._fail(job.name, f"its teacher '{teacher}' failed")
                return True
            if teacher not in self.digests:
                return False
            job = replace(job, teacher_digest=self.digests[teacher])
        if not self._fits(job):
            return False  # before a look into the store, which costs something several times a second
        known = self._known(job)
        if known is not None:
            self._done(job.name, known, f"trained before, taken from the store: {known[:12]}")
            return True
        if job.group in self.failed_groups:
            self._fail(job.name, f"the training of '{job.group}' failed")
            return True
        self.mailbox = self.mailbox or open_mailbox()
        self.fits = self.fits or fit_actor.start(self.mailbox, len(self.jobs))
        self.running[self.fits.fit.remote(job, self.workers[job.name], self.storage)] = job
        return True

    def _known(self, job: TrainJob) -> str | None:
        """The finished job's artifact; a damaged record is left to the job itself to report."""
        try:
            return Store(job.store).stage_result(job.key())
        except OrchestratorError:
            return None

    def _fits(self, job: TrainJob) -> bool:
        cpus, gpus = self._need(job.name, job.entry.resources)
        used = [self._need(other.name, other.entry.resources) for other in self.running.values()]
        return (
            cpus + sum(need[0] for need in used) <= self.totals.cpus
            and gpus + sum(need[1] for need in used) <= self.totals.gpus
        )

    def _need(self, name: str, resources: Resources) -> tuple[float, float]:
        return self.workers[name] * resources.cpus, self.workers[name] * resources.gpus

    def _deliver(self) -> None:
        if self.mailbox is not None:
            with suppress(RayError):  # a lost mailbox loses lines of a log and no more
                deliver(self.mailbox, self._tell)

    def _tell(self, name: str, content: Any) -> None:
        self.on_event(name, content if isinstance(content, str) else EpochReport(**content))

    def _collect(self) -> None:
        """Wait a little for the next job that ends."""
        ended, _ = ray.wait(list(self.running), timeout=POLL_S)
        for reference in ended:
            job = self.running.pop(reference)
            name = job.name
            result = self._result(reference)
            self._deliver()  # what it reported comes before how it ended
            if isinstance(result, str):
                self._done(name, result, f"trained: {result[:12]}")
            else:
                self.failed_groups.add(job.group)
                self._fail(name, str(result))

    def _result(self, reference: Any) -> str | OrchestratorError:
        """The digest, or why there is none."""
        try:
            result: str | OrchestratorError = ray.get(reference)
        except RayError as error:
            # Models that wait fail with it: its own processes may hold the cores for long.
            return TrainingError("the process that guides the training ended", last_line(error), "run again")
        return result

    def _keep(self) -> None:
        """Renew what is done while others still train."""
        if time.monotonic() - self.kept >= KEEP_EVERY_S:
            self.kept = time.monotonic()
            for job in self.jobs:
                if job.name in self.digests:
                    artifacts.renew(Store(job.store).blobs, self.digests[job.name])

    def _done(self, name: str, digest: str, line: str) -> None:
        self.digests[name] = digest
        self.on_done(name, digest)
        self.on_event(name, Ended(line))

    def _fail(self, name: str, message: str) -> None:
        self.failures[name] = message
        self.on_event(name, Failed(f"failed: {message}"))
