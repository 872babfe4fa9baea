"""Pruning of the vocabulary, and embeddings as products and small integers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from orchestrator.compression.plan import run_step
from orchestrator.config.steps import Factorization, Step, VocabularyPruning, WeightOnlyInt8
from orchestrator.errors import CompressionError
from orchestrator.runtime.vocabulary import KeptTokens, forget
from tests.compression import toys

MODELS = ("text_ngrams", "text_cnn", "text_transformer")


def applied(name: str, step: Step) -> tuple[nn.Module, nn.Module, dict[str, object]]:
    module, signature, _ = toys.toy(name)
    state = run_step(step, toys.state(module, signature), toys.context(toys.TEXT))
    return module, state.module, state.decisions[-1]


@pytest.mark.parametrize("name", MODELS)
def test_rows_of_known_tokens_get_the_same_answers_and_rare_ones_count_as_unknown(name: str) -> None:
    least = 8
    whole, pruned, decision = applied(name, VocabularyPruning(least=least))
    kept = pruned.get_submodule("body.embedding")
    assert isinstance(kept, KeptTokens)
    assert decision["kept"] == {"body.embedding": kept.table.num_embeddings}
    train, columns = toys.rows(toys.TEXT).inputs, slice(0, 12) if name == "text_ngrams" else slice(12, 22)
    size = len(kept.places)
    having = np.array([(train[:, columns] == token).any(1).sum() for token in range(size)])
    rare = np.flatnonzero(having < least)
    other = 0 if name == "text_ngrams" else 1
    assert kept.table.num_embeddings == size - len(set(rare) - {0, other})
    changed = train.copy()
    changed[np.isin(changed, rare)] = other
    with torch.no_grad():
        found = pruned(torch.from_numpy(train))
        if name != "text_ngrams":
            torch.testing.assert_close(found, whole(torch.from_numpy(changed)))
        known = ~np.isin(train[:, columns], rare).any(1)
        assert known.any()
        torch.testing.assert_close(found[known], whole(torch.from_numpy(train[known])))


def test_what_cannot_be_pruned_says_why() -> None:
    features, of, _ = toys.toy("mlp")
    with pytest.raises(CompressionError, match="no embedding of tokens"):
        run_step(VocabularyPruning(), toys.state(features, of), toys.context((12,)))
    module, signature, _ = toys.toy("text_cnn")
    start = toys.state(module, signature)
    with pytest.raises(CompressionError, match="needs train rows"):
        run_step(VocabularyPruning(), start, toys.context(toys.TEXT, train=None))
    everything = toys.context(toys.TEXT, train=toys.rows(toys.TEXT, 4000))
    with pytest.raises(CompressionError, match="all tokens are in 1 train rows"):
        run_step(VocabularyPruning(least=1), start, everything)


def test_only_a_plain_embedding_can_forget() -> None:
    module, _, _ = toys.toy("text_cnn")
    with pytest.raises(TypeError, match=r"body\.head is no embedding"):
        forget(module, "body.head", 3)


@pytest.mark.parametrize("name", ["text_ngrams", "text_cnn", "ft_transformer"])
def test_embeddings_become_products_where_that_is_smaller(name: str) -> None:
    module, signature, _ = toys.toy(name)
    step = Factorization(rank=0.25)
    state = run_step(step, toys.state(module, signature), toys.context(signature.input_shape))
    ranks = state.decisions[-1]["ranks"]
    place = "body.tables.0" if name == "ft_transformer" else "body.embedding"
    first, second = state.module.get_submodule(place).children()
    assert isinstance(first, nn.Embedding)
    assert isinstance(second, nn.Linear)
    whole = module.get_submodule(place)
    assert isinstance(whole, nn.Embedding)
    left, values, right = torch.linalg.svd(whole.weight.detach().double(), full_matrices=False)
    rank = ranks[place]
    best = (left[:, :rank] * values[:rank]) @ right[:rank]
    torch.testing.assert_close((first.weight @ second.weight.T).double(), best, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["text_ngrams", "text_cnn", "text_transformer"])
def test_embeddings_are_kept_as_small_integers(name: str) -> None:
    module, signature, _ = toys.toy(name)
    state = run_step(WeightOnlyInt8(), toys.state(module, signature), toys.context(signature.input_shape))
    saved = state.module.state_dict()
    assert saved["body.embedding.codes"].dtype == torch.int8
    assert "body.embedding.weight" not in saved
    rows = torch.from_numpy(toys.rows(toys.TEXT).inputs)
    with torch.no_grad():
        wanted = module(rows)
        assert float((state.module(rows) - wanted).norm() / wanted.norm()) < 0.02
