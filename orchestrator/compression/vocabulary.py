"""Pruning of the vocabulary: embeddings lose the tokens that train rows hardly use."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.compression.step import Context, State, apply_step, copy_of
from orchestrator.config.steps import VocabularyPruning
from orchestrator.data.dataset import Part
from orchestrator.errors import CompressionError
from orchestrator.models.text import rows_with
from orchestrator.runtime.vocabulary import forget, vocabularies
from orchestrator.training.batches import wrap_array

_ROWS = 1024
"""Counted at a time."""


@apply_step.register
def prune_vocabulary(step: VocabularyPruning, state: State, context: Context) -> State:
    """Keep the tokens that at least `step.least` train rows have, padding and the substitute.

    Raises:
        CompressionError: the model has no embedding of tokens, there are no train rows, or all tokens
        would stay.
    """
    module = copy_of(state.module)
    found = [(name, tokens, other) for name, tokens, other in vocabularies(module) if _plain(module, name)]
    if not found:
        raise CompressionError(
            "the model has no embedding of tokens",
            type(module.get_submodule("body")).__name__,
            "name it in vocabulary()",
        )
    if context.train is None:
        raise CompressionError("pruning the vocabulary needs train rows", step.kind)
    kept: dict[str, int] = {}
    for name, tokens, other in found:
        whole = module.get_submodule(name)
        assert isinstance(whole, nn.Embedding)
        stay = _rows_with(module, tokens, context.train, whole.num_embeddings) >= step.least
        stay[[0, other]] = True
        if bool(stay.all()):
            continue
        smaller = forget(module, name, kept.setdefault(name, int(stay.sum())))
        with torch.no_grad():
            places = torch.where(stay, stay.cumsum(0) - 1, stay[:other].sum())
            smaller.places.copy_(places)
            smaller.table.weight.copy_(whole.weight[stay])
    if not kept:
        raise CompressionError(
            f"all tokens are in {step.least} train rows at least", step.least, "raise least"
        )
    return state.after(step, module.eval(), {"kept": kept})


def _plain(module: nn.Module, name: str) -> bool:
    return type(module.get_submodule(name)) is nn.Embedding


def _rows_with(module: nn.Module, tokens: nn.Module, train: Part, size: int) -> Tensor:
    """How many train rows have each token, int64 [size]."""
    counts = torch.zeros(size, dtype=torch.int64)
    before = module.get_submodule("preprocess")
    with torch.no_grad():
        for piece in wrap_array(train.inputs).split(_ROWS):
            counts += rows_with(tokens(before(piece)), size)
    return counts
