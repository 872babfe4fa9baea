"""What a run cannot do whose train part is a stream: it would need every row at hand."""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.config.data import DataSettings, ParquetData
from orchestrator.config.ensemble import AnyNode, Boosting, Chain, Stacking, walk_nodes
from orchestrator.config.training import CrossEntropy, DistillationLoss, Training


def is_streamed(data: DataSettings | None) -> bool:
    """Whether the train part is read anew in each epoch."""
    return isinstance(data, ParquetData) and data.stream is not None


def training_complaint(training: Training) -> str | None:
    """What of a model's training a stream cannot give, or None."""
    if isinstance(training.loss, DistillationLoss):
        return (
            "loss: a teacher's outputs are kept for every train row, and those of data.stream are not held; "
            "the steps recover and distill learn from a teacher on its sample"
        )
    if training.sample is not None:
        return "sample: data.stream is read as a whole; leave it out"
    if isinstance(training.loss, CrossEntropy) and training.loss.class_weights == "balanced":
        return "loss.class_weights: the rows of data.stream are not held; list the factors"
    return None


def run_complaint(
    data: DataSettings, trainings: Mapping[str, Training], ensembles: Mapping[str, AnyNode]
) -> str | None:
    """What of a run needs train rows that are not held, or None.

    Args:
        data: of the run.
        trainings: of its models, by name.
        ensembles: of the run file, by name.
    """
    for name, training in trainings.items():
        if is_streamed(training.transfer):
            return f"models.{name}.training.transfer: such rows are held as a whole; leave out their 'stream'"
        complaint = training_complaint(training) if is_streamed(data) else None
        if complaint is not None:
            return f"models.{name}.training.{complaint}"
    for name, tree in ensembles.items() if is_streamed(data) else ():
        for node in walk_nodes(tree):
            if isinstance(node, Boosting | Chain) or (isinstance(node, Stacking) and node.folds is not None):
                return (
                    f"ensembles.{name}: such a {node.policy} learns from outputs on every train row, "
                    "and those of data.stream are not held: use another kind, or stacking without folds"
                )
    return None
