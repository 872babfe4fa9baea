"""The one training loop: plain torch, a loss is a parameter, and a stopped run goes on bit-equal."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import deterministic

from orchestrator.config.measure import Metric
from orchestrator.config.signature import Signature
from orchestrator.config.training import DistillationLoss, Training
from orchestrator.data.dataset import Part
from orchestrator.errors import ConfigError, TrainingError
from orchestrator.measure.metrics import larger_is_better, score
from orchestrator.models.base import DataInitialized
from orchestrator.runtime.bf16 import without_strided_points
from orchestrator.training import randomness, sharding
from orchestrator.training.augment import check_augment
from orchestrator.training.batches import Batches, Rows, Teacher, spread, wrap_array
from orchestrator.training.constraints import Constraints
from orchestrator.training.lookahead import SlowWeights
from orchestrator.training.losses import Loss, loss_settings, make_loss, weighed
from orchestrator.training.offset import Offset, added
from orchestrator.training.optim import make_optimizer, rate, set_rate
from orchestrator.training.sampling import drawn_rows
from orchestrator.training.sharding import Strategy
from orchestrator.training.state import EpochReport, TrainState
from orchestrator.training.watch import Watch, can_pause

log = logging.getLogger(__name__)

EVALUATION_BATCH = 512
INITIAL_ROWS = 4096
"""Of a block of those that a first layer is set from."""
CHECK_EVERY = 20
"""Steps between looks at the loss; each look waits for an accelerator."""


def train(
    module: nn.Module,
    train: Part,
    validation: Part,
    settings: Training,
    *,
    signature: Signature,
    metric: Metric,
    seed: int,
    sample_seed: int | None = None,
    threads: int | None = None,
    device: str | torch.device = "cpu",
    streamed: Batches | None = None,
    teacher: Teacher | Offset | None = None,
    masks: Mapping[str, Tensor] | None = None,
    state: TrainState | None = None,
    first_epoch: int = 0,
    rank: int = 0,
    world: int = 1,
    strategy: Strategy = "ddp",
    allowed: Collection[str] = (),
    watch: Watch | None = None,
) -> Iterator[EpochReport]:
    """Train a module in place, one report an epoch.

    At its end the module holds the result: the weights of the **last** epoch, or with `settings.patience` of
    that with the best validation metric. With FSDP the module stays sharded: take `state.weights`.

    Args:
        module: raw rows in, logits [B, K] or regression values [B, T] in raw units out.
        train: rows to learn from; for distillation a class below 0 or a NaN target means "no label".
        validation: rows for the metric of each report and for early stopping.
        settings: how to train; `settings.batch_size` counts the rows of all ranks together.
        signature: of the model; `metric` is what early stopping follows.
        seed: decides row order, augmentation and dropout; drawn rows, too, unless `sample_seed` is given.
        threads: torch threads while training, which change the weights; as they are when not given.
        device: where to train; the module is moved there.
        streamed: batches to learn from in place of `train`, which is then a sample of them.
        teacher: for a distillation loss: a function of raw rows, or its outputs on the train rows,
            [N, K] without augmentation, else [V, N, K]. For a stage of a boosting: what it adds to.
        masks: parameter name -> bool tensor, True where a weight lives; the others are zero after each step.
        state: where to start, brought up to date before each report: save it to go on later.
        first_epoch: row order, augmentation and random numbers go on as if so many epochs had been.
        rank: among the `world` processes of a group that exists; `strategy` is how they are data-parallel.
        allowed: import paths that a custom loss or metric may come from.
        watch: told of each step; may ask for the state within an epoch.

    Raises:
        TrainingError, ConfigError: loss or outputs are not finite, or something does not fit the rows.
    """
    drawn = seed if sample_seed is None else sample_seed
    place = _Place(torch.device(device), threads, seed, drawn, rank, world, strategy, first_epoch)
    run = _Run(module, validation, settings, place, metric, frozenset(allowed), state or TrainState(), watch)
    run.prepare(train, signature, streamed, teacher, masks or {})
    with run.borrowed_module():
        while not run.state.finished:
            with place.quiet_torch(run.state.epoch):
                report = run.epoch()
            yield report
        sharding.fill_model(module, run.state.weights)


@dataclass(frozen=True)
class _Place:
    """Where a run happens, and torch's global switches while it does."""

    device: torch.device
    threads: int | None
    seed: int
    sample_seed: int
    rank: int
    world: int
    strategy: Strategy
    first_epoch: int

    @contextmanager
    def quiet_torch(self, epoch: int) -> Iterator[None]:
        """Seed, threads and deterministic kernels for one epoch; all as before afterwards.

        The seed is a function of (seed, epoch, rank), so no random state needs saving; epochs are counted
        from `first_epoch` on.
        """
        threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        fill = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=devices):
                torch.manual_seed(_mixed_seed(self.seed, self.first_epoch + epoch, self.rank))
                torch.set_num_threads(self.threads or threads)
                torch.use_deterministic_algorithms(True, warn_only=True)
                # Deterministic mode would otherwise fill each fresh tensor with NaN first.
                deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
                yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(strict, warn_only=warn_only)
            deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]


class _Run:
    """One training run: everything that lives as long as it does."""

    def __init__(
        self,
        module: nn.Module,
        validation: Part,
        settings: Training,
        place: _Place,
        metric: Metric,
        allowed: frozenset[str],
        state: TrainState,
        watch: Watch | None,
    ) -> None:
        self.module, self.validation, self.settings = module, validation, settings
        self.place, self.metric, self.allowed, self.state = place, metric, allowed, state
        sharded = place.world > 1 and place.strategy == "fsdp"
        self.watch = watch
        self.images_last = settings.channels_last and validation.inputs.ndim == 4 and not sharded

    @contextmanager
    def borrowed_module(self) -> Iterator[None]:
        """The module as its training needs it; afterwards it has its own memory format and kernels again."""
        bf16 = self.settings.precision == "bf16" and self.place.device.type == "cpu"
        try:
            with without_strided_points(self.module) if bf16 else nullcontext():
                yield
        finally:
            if self.images_last:
                set_memory_format(self.module, torch.contiguous_format)

    def prepare(
        self,
        train: Part,
        signature: Signature,
        streamed: Batches | None,
        teacher: Teacher | Offset | None,
        masks: Mapping[str, Tensor],
    ) -> None:
        """Check the request; put module, optimizer and masks where they belong, and load the state."""
        settings, place = self.settings, self.place
        check_augment(settings.augment, signature)
        chosen = weighed(loss_settings(settings, signature), train.targets, signature.outputs)
        if isinstance(chosen, DistillationLoss) and teacher is None and not self.state.finished:
            raise ConfigError("a distillation loss needs a teacher", fix="name a teacher")
        self.loss: Loss = make_loss(chosen, signature, self.allowed)
        self.offset: Offset | None = None
        if isinstance(teacher, Offset):
            self.loss, self.offset, teacher = added(self.loss), teacher, teacher.train
        drawn = drawn_rows(len(train), settings.sample, place.sample_seed)
        self.rows: Batches = streamed or Rows(
            train, settings.augment, place.seed, settings.batch_size, teacher, drawn
        )
        self._check_rows(self.rows.count)
        whole = masks or settings.sparsify or settings.penalty or settings.clip_weights or settings.lookahead
        if whole and place.world > 1 and place.strategy == "fsdp":
            raise TrainingError(
                "pruning masks, sparsify, penalty, clip_weights and lookahead do not work under FSDP",
                fix="use strategy ddp",
            )
        started = self.state.epoch or self.state.step
        if not started:
            initialize(self.module, train)
        self.module.to(place.device)
        if self.images_last:
            set_memory_format(self.module, torch.channels_last)
        self.network = sharding.wrap(self.module, place.strategy, place.world, place.device)
        if settings.compile and compiler_works(place.device.type):
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        self.optimizer = make_optimizer(self.module, settings)
        if started:
            sharding.fill_model(self.module, self.state.model)
            sharding.fill_optimizer(self.module, self.optimizer, self.state.optimizer)
        self.constraints = Constraints(self.module, settings, masks)
        self.slow: SlowWeights | None = None
        if settings.lookahead is not None:
            self.slow = SlowWeights(self.module, settings.lookahead, self.constraints.project)

    def _check_rows(self, rows: int) -> None:
        if rows == 0 or len(self.validation.ids) == 0:
            raise TrainingError("the train and validation parts need at least one row each", rows)
        if rows // self.rows.steps < self.place.world:
            raise TrainingError(
                f"a step of {rows // self.rows.steps} rows cannot be shared by the workers",
                self.place.world,
                "use fewer workers or a larger batch_size",
            )

    def epoch(self) -> EpochReport:
        """One epoch and its validation; the state is then that of its end."""
        started = time.perf_counter()
        number = self.state.epoch
        loss, lr = self._learn(number)
        outputs = self._evaluate()
        if self.offset is not None:
            outputs = outputs + self.offset.validation.read(0)
        # The last step may have ended what its loss, taken before it, does not show.
        self._check_finite(float(np.abs(outputs).max()), number, "the largest output is")
        value = score(self.metric, outputs, self.validation.targets, allowed=self.allowed)
        report = EpochReport(number, loss, float(value), lr, time.perf_counter() - started)
        self._advance(report)
        return report

    def _learn(self, epoch: int) -> tuple[float, float]:
        """All steps of an epoch -> mean loss over all ranks' rows, last learning rate."""
        settings, place = self.settings, self.place
        self.network.train()
        total = self._begun()
        lr, first = 0.0, self.state.step
        which = place.first_epoch + epoch
        batches = self.rows.epoch(which, place.device, self.images_last, place.rank, place.world, first)
        for step, batch in enumerate(batches, first):
            overall, steps = epoch * self.rows.steps + step, settings.epochs * self.rows.steps
            lr = rate(settings, overall, steps)
            self.constraints.begin(overall, step, steps)
            set_rate(self.optimizer, lr)
            with self._autocast():
                outputs = self.network(batch.inputs)
            loss = self.loss(outputs.float(), batch.targets, batch.teacher) * batch.share
            self.optimizer.zero_grad(set_to_none=True)
            self._whole_loss(loss).backward()
            if settings.grad_clip is not None:
                nn.utils.clip_grad_norm_(self.module.parameters(), settings.grad_clip)
            self.optimizer.step()
            self.constraints.project()
            if self.slow is not None:
                self.slow.pull(overall, step, self.rows.steps, steps)
            total += loss.detach()
            # Only the summed loss is the same on all ranks: a lone rank must not leave the others waiting.
            if place.world == 1 and step % CHECK_EVERY == 0:
                self._check_finite(total.item(), epoch)
            wanted = self.watch is not None and self.watch.step()
            if wanted and step + 1 < self.rows.steps and can_pause(settings):
                self._keep(step + 1, total)
        mean = sharding.sum_over_ranks(total, place.world).item() / (self.rows.steps * place.world)
        self._check_finite(mean, epoch)
        return mean, lr

    def _begun(self) -> Tensor:
        """The sum of losses so far; of an epoch that goes on, random numbers go on as well."""
        begun, place = self.state.begun, self.place
        randomness.restore(begun, place.device, place.rank)
        loss = begun.get("loss") if place.rank == 0 else None
        return torch.zeros((), device=place.device) if loss is None else loss.to(place.device) * place.world

    def _keep(self, step: int, total: Tensor) -> None:
        """Save the state within an epoch; the run goes on unchanged."""
        assert self.watch is not None
        state, world = self.state, self.place.world
        state.model = sharding.model_tensors(self.module)
        state.optimizer = sharding.optimizer_tensors(self.module, self.optimizer)
        state.step = step
        # Ranks add their sums at the epoch's end: the first has the mean of all, times as many as there are
        # when it goes on, the others none.
        whole = sharding.sum_over_ranks(total.clone(), world).cpu()
        state.begun = {"loss": whole / world, **randomness.random_states(self.place.device, world)}
        self.watch.save(state)

    def _whole_loss(self, loss: Tensor) -> Tensor:
        """With what constraints and the module itself (`Hinted`) add."""
        for more in (self.constraints.penalty(), getattr(self.module, "auxiliary_loss", None)):
            loss = loss if more is None else loss + more
        return loss

    def _check_finite(self, value: float, epoch: int, what: str = "the loss is") -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"{what} not finite in epoch {epoch + 1} of {self.settings.epochs}",
                value,
                "lower lr, set grad_clip (1.0), lengthen warmup, or train with precision fp32",
            )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.place.device.type, dtype=torch.bfloat16, enabled=self.settings.precision == "bf16"
        )

    def _evaluate(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """Outputs [N, K] on the validation part, in the training's precision; ranks share the rows."""
        world, rows = self.place.world, len(self.validation.ids)
        sharding.share_buffers(self.module, world)
        self.network.eval()
        inputs = wrap_array(self.validation.inputs)
        # Every rank takes equally many rows (some twice): FSDP needs equally many calls on all.
        mine = torch.arange(-(-rows // world) * world).remainder(rows)[self.place.rank :: world]
        parts = []
        with torch.no_grad(), self._autocast():
            for piece in torch.split(mine, EVALUATION_BATCH):
                batch = spread(inputs.index_select(0, piece), self.place.device, self.images_last)
                parts.append(self.network(batch).float())
        gathered = torch.stack(sharding.gather_rows(torch.cat(parts), world), dim=1)
        return np.asarray(gathered.flatten(0, 1)[:rows].cpu().numpy(), np.float32)

    def _advance(self, report: EpochReport) -> None:
        """The state at the end of an epoch: curve, weights, best weights, whether to go on."""
        state, settings, patience = self.state, self.settings, self.settings.patience
        state.curve.append(report)
        state.epoch, state.step, state.begun = report.epoch + 1, 0, {}
        state.model = sharding.model_tensors(self.module)
        state.optimizer = sharding.optimizer_tensors(self.module, self.optimizer)
        sign = 1.0 if larger_is_better(self.metric) else -1.0
        best = None if state.best_epoch is None else sign * state.curve[state.best_epoch].metric
        if best is None or sign * report.metric > best:
            state.best_epoch = report.epoch
            if patience is not None:
                state.best = state.model
        if settings.snapshots is not None and state.epoch % (settings.epochs // settings.snapshots) == 0:
            state.snapshots.append({name: tensor.clone() for name, tensor in state.model.items()})
        stale = report.epoch - (state.best_epoch or 0)
        state.finished = state.epoch >= settings.epochs or (patience is not None and stale >= patience)


def initialize(module: nn.Module, train: Part) -> None:
    """Set what must be set from data, once: a module that was trained before stays as it is."""

    def blocks(rows: int) -> Iterator[Tensor]:
        scaling = module.get_submodule("preprocess")
        for start in range(0, rows, INITIAL_ROWS):
            inputs = train.inputs[start : min(start + INITIAL_ROWS, rows)]
            yield scaling(wrap_array(np.ascontiguousarray(inputs)))

    for layer in module.modules():
        if isinstance(layer, DataInitialized) and not layer.initialized:
            most = len(train) if layer.from_rows is None else layer.from_rows
            with torch.no_grad():
                layer.initialize(blocks(min(most, len(train))))
            layer.initialized.fill_(1)


def set_memory_format(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Lay out 4-D weights as NCHW or NHWC; values stay."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.ndim == 4:
            tensor.data = tensor.data.contiguous(memory_format=memory_format)


def _mixed_seed(seed: int, epoch: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1, np.uint64)[0] >> 1)


@functools.cache
def compiler_works(device_type: str) -> bool:
    """Whether `torch.compile` finds what it needs here; says so once if not."""
    try:
        torch.compile(lambda x: x * 2 + 1)(torch.zeros(8, device=device_type))
    except (RuntimeError, OSError) as error:
        first = str(error).strip().splitlines()[0]
        log.warning("torch.compile does not work here, training goes on without it: %s", first)
        return False
    return True
