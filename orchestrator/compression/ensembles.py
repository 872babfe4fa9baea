"""Other models of the store that a step names: do they answer the parent's question, and an ensemble as one.

An ensemble's own answers on the train rows are made of what the store has of its members.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from orchestrator.compression.step import Other
from orchestrator.config.ensemble import Spec
from orchestrator.config.signature import Signature, are_named
from orchestrator.config.training import Training
from orchestrator.ensemble.tree import distinct, replay
from orchestrator.errors import CompressionError
from orchestrator.training.batches import Views


def as_other(spec: Spec, kept: Callable[[str, Training], Views]) -> Other:
    """The ensemble as a model that a step names.

    Its answers are those of the one walk, whatever the tree is: log-probabilities [N, K] after all mixing,
    exits and calibration, or values. Every member answers, and none is guarded against: train rows may lie
    outside of the range that its record is of. A member's outputs are those of its eager form, whatever
    execution the ensemble is served in.

    Args:
        spec: A fitted ensemble.
        kept: From a member's digest and a training to its outputs on the train rows in every view, which run
            it only where the store lacks them.

    Raises:
        CompressionError: a member sees what others say.
    """
    tree = spec.tree
    if any(member.sees for member in distinct(tree)):
        raise CompressionError(
            "a chain is no teacher: its later models cannot be asked about augmented rows",
            spec.name,
            "learn from the models that it begins with",
        )

    def outputs(training: Training) -> Views:
        said = {member: kept(member.digest, training) for member in distinct(tree)}

        def read(view: int) -> NDArray[np.float32]:
            outputs = {member: views.read(view) for member, views in said.items()}
            return replay(tree, outputs, spec.signature.task).outputs

        return Views(next(iter(said.values())).count, read)

    def module() -> NoReturn:
        raise CompressionError(
            "an ensemble has no weights of its own",
            spec.name,
            "step 'distill' learns from it: key 'ensemble'",
        )

    return Other(module, None, outputs)


def check_same_answers(name: str, own: Signature, parent: Signature) -> None:
    """Refuse a model that takes other rows than the parent, or whose outputs mean something else.

    Args:
        name: of the model, for the error.
        own: its signature.
        parent: of the model that the plan started from.

    Raises:
        CompressionError: names what differs.
    """
    differ = [
        key
        for key in ("task", "input_shape", "input_dtype", "outputs", "encoding")
        if getattr(own, key) != getattr(parent, key)
    ]
    # Only names can be in another order.
    if are_named(own.classes) and are_named(parent.classes) and own.classes != parent.classes:
        differ.append("classes")
    if differ:
        raise CompressionError(
            f"another model's {' and '.join(differ)} differ from the parent's",
            name,
            "name models that were trained on the same data",
        )
