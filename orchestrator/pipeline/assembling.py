"""The ensemble stage: ensembles are fitted and learned from, each after what it is made of."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.config.ensemble import Member, Node, Spec, leaves
from orchestrator.config.run import FRONT_NAMES
from orchestrator.pipeline.compressing import compress_variant
from orchestrator.pipeline.context import Run
from orchestrator.pipeline.ensembling import fit_ensemble
from orchestrator.pipeline.searching import Found


class Assembly:
    """A run's ensembles, and the variants that learn from one.

    A student may be a member of another ensemble, as the first stage of a cascade that ends in its teacher.
    """

    def __init__(
        self,
        run: Run,
        models: Mapping[str, str],
        variants: Mapping[str, Member],
        found: Found | None,
        *,
        fresh: bool = False,
    ) -> None:
        """Take what is there already.

        Args:
            run: whose.
            models: name -> digest.
            variants: those that need no ensemble.
            found: what the search found.
            fresh: forget the settings of what ensembles train: stages, and members without a fold.
        """
        self._run, self._fresh = run, fresh
        self._members = {name: Member(name=name, digest=digest) for name, digest in models.items()}
        self._members |= variants
        self._known: dict[str, Node] = dict(self._members)
        self._digests = {name: member.digest for name, member in self._members.items()}
        self._specs: dict[str, Spec] = {}
        self._front(found)

    def all(self) -> tuple[dict[str, Member], dict[str, Spec]]:
        """Models and variants, and the specs of the ensembles, both by name.

        Raises:
            EnsembleError: an ensemble cannot be fitted for this task.
            TrainingError: a stage of a boosting, or a member without a fold, cannot be trained.
            CompressionError: a student cannot be trained; the sentence names it.
        """
        for name in self._run.config.ensembles:
            self._make(name)
        return self.students(), {name: self._specs[name] for name in self._run.config.ensembles}

    def students(self) -> dict[str, Member]:
        """Models and variants by name, with as few ensembles fitted as that needs; raises as `all`."""
        for name in self._run.config.taught():
            self._make(name)
        return self._members

    def _front(self, found: Found | None) -> None:
        if found is None:
            return
        self._known |= {name: found.member(name) for name in FRONT_NAMES}
        named = {leaf.name for tree in self._run.config.ensembles.values() for leaf in leaves(tree)}
        if found.chosen is None and "chosen" in named:
            self._run.progress("ensemble", f"'chosen' stands for {found.parent.name}: {found.reason}")

    def _make(self, name: str) -> None:
        """Fit an ensemble or make a variant of that name, and before it what it needs; anything else is there
        already, or is no name of the run."""
        if name in self._known:
            return
        if name in self._run.config.ensembles:
            for leaf in leaves(self._run.config.ensembles[name]):
                self._make(leaf.name)
            made = fit_ensemble(self._run, name, self._known, fresh=self._fresh)
            self._specs[name], self._digests[name] = made
            self._known[name] = self._specs[name].tree
        elif name in self._run.config.variants:
            for other in self._run.config.variants[name].needs():
                self._make(other)
            self._members[name] = compress_variant(self._run, name, self._digests)
            self._digests[name] = self._members[name].digest
            self._known[name] = self._members[name]
