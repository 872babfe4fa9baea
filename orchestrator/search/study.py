"""An Optuna study that is asked and told in batches, so that its suggestions do not depend on timing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState
from pydantic import ValidationError

from orchestrator.config.free import Config, grid
from orchestrator.config.search import Searching, SearchSettings
from orchestrator.config.steps import work_of
from orchestrator.errors import SearchError
from orchestrator.search.objectives import TrialRow, objectives
from orchestrator.search.siblings import TrainedParents
from orchestrator.search.space import anchors, draw, plan_of, suggest, variant_key

_STARTUP = 8
"""Trials before a model of their results is made; with siblings also suggestions that are drawn at random."""
_TRIES = {"tpe": 20, "nsga2": 20, "random": 20, "gp": 3, "grid": 0}
"""Suggestions of known variants that are thrown away before an untried one is taken from the grid; one of a
Gaussian process takes long."""

_OTHERS = 100
_SIBLING_TRIES = 3
"""The same for the ends of a plan whose training is shared, of which there are few."""


class Suggestion(NamedTuple):
    """One trial to run; `number` counts distinct variants from 0."""

    number: int
    config: Config
    trainings: tuple[str, ...] = ()
    """Names what it trains, in order; trials share a training of one name."""
    shares: bool = False
    """Other trials, earlier ones or of its batch, train all of that."""


class BatchStudy:
    """Suggestions in batches of fixed size, each batch from the results of all earlier ones; where batches
    overlap, of all but the last.

    The samplers see two objectives (metric up, log latency down) and each limit as a constraint of its own.
    A variant is suggested once: a repeated one is told FAIL, which no sampler learns from. What is suggested
    does not depend on how many trials are asked for, so a search can be extended.

    `siblings` of a batch share what other trials train (`TrainedParents`), as far as there is such a parent
    with untried ways to end its plan; the sampler chooses among those ways, and learns from them as from any
    other trial. The first suggestions after the plain baselines are then drawn at random: the many results of
    the baselines' one training would make a model that knows that one alone.
    """

    def __init__(
        self,
        settings: Searching,
        seed: int,
        valid: Callable[[Config], bool] = lambda config: True,  # noqa: ARG005
    ) -> None:
        """Begin; `valid` says which configs may run, where the settings alone do not tell."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        assert isinstance(settings.sampler, str)  # a population is no study of Optuna's
        self._settings, self._seed, self._sampler = settings, seed, settings.sampler
        self._valid = valid
        self._study = optuna.create_study(
            directions=["maximize", "minimize"], sampler=_sampler(settings, seed)
        )
        self._seen: set[str] = set()
        self._open: dict[int, optuna.Trial] = {}
        self._batches: list[set[int]] = []
        """Numbers of those that were not told yet, the oldest first."""
        self._asked = self._drawn = 0
        self._sharing: set[int] = set()
        every = grid(settings.space)
        self._endless = every is None
        every = every or []
        if self._sampler != "grid":
            random.Random(seed).shuffle(every)
        self._untried = iter(every)
        self._trained = TrainedParents(settings) if isinstance(settings, SearchSettings) else None
        self._siblings = settings.siblings if isinstance(settings, SearchSettings) else 0
        self._of = (settings.cheapest_of if isinstance(settings, SearchSettings) else None) or 1
        for config in () if self._sampler == "grid" else anchors(settings):
            self._study.enqueue_trial(config)

    @property
    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """What the sampler knows."""
        return self._study.trials

    def ask(self) -> list[Suggestion]:
        """The next batch; shorter at the end, empty when the budget or the space is used up.

        Raises:
            SearchError: the last batch, or where batches overlap the one before it, was not told yet.
        """
        if len(self._batches) > self._settings.overlap:
            raise SearchError("a batch was asked for before the last one was told", sorted(self._open))
        if self._trained is not None:
            self._trained.begin()
        batch: list[Suggestion] = []
        news = self._settings.batch - self._siblings
        for _ in range(min(self._settings.batch, self._settings.trials - self._asked)):
            is_full = sum(not suggestion.shares for suggestion in batch) >= news
            found = (self._sibling() if is_full else None) or self._next()
            if found is None:
                break
            batch.append(found)
        if batch:
            self._batches.append({suggestion.number for suggestion in batch})
        return batch

    def tell(self, rows: Sequence[TrialRow]) -> None:
        """The results of the whole batch, the oldest that was not told; in trial order, whatever order they
        come in.

        Raises:
            SearchError: they are not exactly the trials of the batch.
        """
        if not self._batches or {row.number for row in rows} != self._batches[0]:
            raise SearchError("results do not match the batch", sorted(row.number for row in rows))
        self._batches.pop(0)
        for row in sorted(rows, key=lambda row: row.number):
            trial = self._open.pop(row.number)
            if row.status == "stopped" and row.number not in self._sharing:
                trial.set_user_attr("epochs", row.epochs)
                self._study.tell(trial, state=TrialState.PRUNED)
                continue
            if not row.ok:
                self._study.tell(trial, state=TrialState.FAIL)
                continue
            for name, beyond in row.violations.items():
                trial.set_constraint(name, beyond)
            self._study.tell(trial, objectives(row))
        if self._trained is not None:
            self._trained.learn(rows)

    def _sibling(self) -> Suggestion | None:
        """Another end for a plan whose training others do; None when no such parent has one left."""
        trained = self._trained
        if self._has_waiting():
            return None  # plain baselines come first
        while trained is not None and (parent := trained.next()) is not None:
            prefix = parent.prefix
            # A sampler that likes one end best suggests that again and again; then chance decides.
            source = random.Random(f"{self._seed} {self._asked}")
            ends = [prefix] * _SIBLING_TRIES
            ends += [draw(self._settings, source, prefix) for _ in range(_TRIES[self._sampler])]
            for end in ends:
                if len(end) > len(prefix) and not self._is_new(end):
                    continue
                self._study.enqueue_trial(dict(end))
                if (found := self._ask_once()) is None:
                    continue
                if trained.is_end_of(parent, found[1]):
                    return self._take(*found)
                self._study.tell(found[0], state=TrialState.FAIL)
            trained.forget(parent)
        return None

    def _next(self) -> Suggestion | None:
        """A plain baseline, the sampler's suggestion, or of several the one that trains least."""
        found: list[tuple[optuna.Trial, Config]] = []
        is_baseline = self._has_waiting()
        is_drawn = self._siblings > 0 and self._drawn < _STARTUP and not is_baseline
        tries = _TRIES[self._sampler]
        for attempt in range(tries and max(tries, self._of)):
            if is_drawn:
                source = random.Random(f"{self._seed} new {self._asked} {attempt}")
                self._study.enqueue_trial(draw(self._settings, source, {}))
            if (one := self._ask_once()) is None:
                continue
            found.append(one)
            trained = [config for _, config in found if self._work(config)]
            # What trains nothing costs nothing, and is not to be compared.
            if is_baseline or len(trained) == self._of or not self._work(found[0][1]):
                break
        self._drawn += is_drawn
        if not found:
            config = next((config for config in self._others() if self._is_new(config)), None)
            if config is None:
                return None
            self._study.enqueue_trial(config)
            found = [one for one in [self._ask_once()] if one is not None]
        return self._cheapest(found)

    def _cheapest(self, found: Sequence[tuple[optuna.Trial, Config]]) -> Suggestion | None:
        """Take the one that trains least of those that train; the others are as if never suggested."""
        trained = [one for one in found if self._work(one[1])]
        taken = min(trained or found, key=lambda one: self._work(one[1]), default=None)
        for one in found:
            if one is not taken:
                self._study.tell(one[0], state=TrialState.FAIL)
        return None if taken is None else self._take(*taken)

    def _work(self, config: Config) -> float:
        """How much it trains."""
        return work_of(plan_of(config, self._settings)) if isinstance(self._settings, SearchSettings) else 0.0

    def _has_waiting(self) -> bool:
        """Whether configs are waiting that the sampler did not choose."""
        return bool(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def _others(self) -> Iterator[Config]:
        """What the sampler does not think of: the rest of the grid, or of an endless space some at random."""
        yield from self._untried
        source = random.Random(f"{self._seed} other {self._asked}")
        for _ in range(_OTHERS if self._endless else 0):
            yield draw(self._settings, source, {})

    def _is_new(self, config: Config) -> bool:
        """Whether the config is a variant that was not suggested yet; some combinations are none."""
        try:
            return variant_key(config, self._settings) not in self._seen and self._valid(config)
        except ValidationError:
            return False

    def _ask_once(self) -> tuple[optuna.Trial, Config] | None:
        trial = self._study.ask()
        config = suggest(trial, self._settings)
        if not self._is_new(config):
            self._study.tell(trial, state=TrialState.FAIL)
            return None
        return trial, config

    def _take(self, trial: optuna.Trial, config: Config) -> Suggestion:
        self._seen.add(variant_key(config, self._settings))
        self._open[self._asked] = trial
        self._asked += 1
        trainings, shares = ((), False) if self._trained is None else self._trained.took(config)
        number = self._asked - 1
        if shares:
            self._sharing.add(number)
        return Suggestion(number, config, trainings, shares)


def _sampler(settings: Searching, seed: int) -> BaseSampler:
    """TPE: Watanabe 2023 (https://arxiv.org/abs/2304.11127); NSGA-II: Deb et al. 2002."""
    if settings.sampler in ("random", "grid"):
        return RandomSampler(seed=seed)
    if settings.sampler == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(2, settings.batch))
    if settings.sampler == "gp":
        return GPSampler(seed=seed, n_startup_trials=_STARTUP, deterministic_objective=False)
    return TPESampler(seed=seed, n_startup_trials=_STARTUP)
