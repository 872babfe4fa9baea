"""Population based training of recoveries, a generation at a time.

Jaderberg et al. 2017 (https://arxiv.org/abs/1711.09846), with truncation selection. The paper's members copy
weights whenever one of them is ready; here all train equally many epochs first, so what is suggested does not
depend on which trial ends first. A member's config holds all that it was trained with (`going_on`): its plan
has a recovery for each generation. To go on from another's weights is to begin the plan as the other one did,
and what was trained so far is in the store.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from pydantic import ValidationError

from orchestrator.config.free import Config, Parameter, Scalar, complete, option_at, rounded
from orchestrator.config.search import Population, SearchSettings
from orchestrator.errors import SearchError
from orchestrator.search.objectives import TrialRow
from orchestrator.search.space import draw, drawn, going_on, plan_of, variant_key
from orchestrator.search.study import Suggestion

_TRIES = 20
"""Draws of a first member that no other one equals."""


class PopulationStudy:
    """Suggestions in generations: a batch of members that train on, the worst ones from the best.

    Members are compared by the metric alone, since they are of one form. What is suggested does not depend on
    how many trials are asked for, so a search can be extended by generations.
    """

    def __init__(self, settings: SearchSettings, seed: int) -> None:
        assert isinstance(settings.sampler, Population)
        self._settings, self._how, self._seed = settings, settings.sampler, seed
        self._asked = 0
        self._open: list[Suggestion] = []
        self._last: list[TrialRow] = []
        """Of the generation before, by number."""

    def ask(self) -> list[Suggestion]:
        """The next generation; cut short at the end, empty when the budget is used up.

        Raises:
            SearchError: the last generation was not told yet.
        """
        if self._open:
            raise SearchError("a batch was asked for before the last one was told", self._asked)
        survivors = self._survivors()
        for place in range(min(self._settings.batch, self._settings.trials - self._asked)):
            source = random.Random(f"{self._seed} {self._asked}")
            config = self._first(source) if not survivors else self._next(place, survivors, source)
            self._open.append(Suggestion(self._asked, config))
            self._asked += 1
        return list(self._open)

    def tell(self, rows: Sequence[TrialRow]) -> None:
        """The whole generation's results, in any order.

        Raises:
            SearchError: they are not exactly its trials.
        """
        if {row.number for row in rows} != {suggestion.number for suggestion in self._open}:
            raise SearchError("results do not match the batch", sorted(row.number for row in rows))
        self._open = []
        self._last = sorted(rows, key=lambda row: row.number)

    def _survivors(self) -> list[TrialRow]:
        """The members of the last generation that can be trained on, the best first."""
        return sorted((row for row in self._last if row.ok), key=lambda row: (row.drop, row.number))

    def _first(self, source: random.Random) -> Config:
        seen = {variant_key(suggestion.config, self._settings) for suggestion in self._open}
        config = complete(self._settings.space, {})  # a plan, as every space's first options are
        for _ in range(_TRIES):
            found = draw(self._settings, source, {})
            if not self._is_plan(found):
                continue
            config = found
            if variant_key(config, self._settings) not in seen:
                break
        return config

    def _next(self, place: int, survivors: list[TrialRow], source: random.Random) -> Config:
        """A member's next config: its own settings again, or one of the best's, changed."""
        size = max(1, int(self._how.quantile * len(self._last)))
        own = self._last[place]
        ranks = [row.number for row in survivors]
        if own.ok and ranks.index(own.number) < len(self._last) - size:
            return going_on(own.config, own.config)
        donor = source.choice(survivors[:size]).config
        changed = going_on(donor, self._explored(donor, source))
        return changed if self._is_plan(changed) else going_on(donor, donor)

    def _is_plan(self, config: Config) -> bool:
        """Whether the config is a plan; some combinations are none."""
        try:
            plan_of(config, self._settings)
        except ValidationError:
            return False
        return True

    def _explored(self, config: Config, source: random.Random) -> Config:
        """The free values of a config, each changed a little or drawn anew."""
        found: Config = {}

        def pick(parameter: Parameter) -> Scalar:
            name = parameter.name
            if name not in found:
                anew = source.random() < self._how.resample or name not in config
                found[name] = (
                    drawn(parameter, source) if anew else self._near(parameter, config[name], source)
                )
            return found[name]

        self._settings.space.walk(pick)
        return found

    def _near(self, parameter: Parameter, value: Scalar, source: random.Random) -> Scalar:
        """A number times one of the factors, within its range; of options one beside it."""
        numbers = parameter.numbers
        if numbers is None:
            labels = parameter.labels or ()
            return _at(labels, option_at(labels, value, parameter.name) + source.choice((-1, 1)))
        low, high = numbers.range
        change = float(value) * (source.choice(self._how.factors) - 1)
        values = numbers.values()
        if values is None:
            return rounded(min(max(float(value) + change, low), high))
        step = values[1] - values[0] if len(values) > 1 else 1
        steps = max(1, round(abs(change) / step))
        return _at(values, round((float(value) - low) / step) + (steps if change > 0 else -steps))


def _at(values: Sequence[Scalar], place: int) -> Scalar:
    return values[min(max(place, 0), len(values) - 1)]
