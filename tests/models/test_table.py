"""Models of tables: numbers as they are, categories embedded, unknown ones alike."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator.config.model import FtTransformer, FtTransformerKwargs, Mlp, MlpKwargs
from orchestrator.errors import ModelError
from orchestrator.models.build import build
from tests.compression import toys

NAMES = ("ft_transformer", "table_mlp")
SIGNATURE = toys.signature(toys.TABLE)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_code_of_its_column_counts_as_unknown(name: str) -> None:
    network = toys.toy(name)[0]
    row = torch.from_numpy(toys.rows(toys.TABLE, 1).inputs)
    codes = (0.0, 6.0, -1.0, 1e9, float("nan"), 5.0)
    rows = row.repeat(len(codes), 1)
    rows[:, 1] = torch.tensor(codes)
    with torch.no_grad():
        answers = network(rows)
    for other in answers[1:5]:
        torch.testing.assert_close(other, answers[0])
    assert not torch.allclose(answers[5], answers[0])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    network = build(toys.MODELS[name][0], SIGNATURE, seed=0)
    network(torch.from_numpy(toys.rows(toys.TABLE, 16).inputs)).square().sum().backward()
    assert not [key for key, value in network.named_parameters() if value.grad is None]


def test_the_width_of_an_embedding_follows_the_number_of_values() -> None:
    network = build(Mlp(kwargs=MlpKwargs(widths=())), SIGNATURE, seed=0)
    tables = [part for part in network.modules() if isinstance(part, nn.Embedding)]
    assert [(part.num_embeddings, part.embedding_dim) for part in tables] == [(6, 3), (2, 1)]
    (head,) = [part for part in network.modules() if isinstance(part, nn.Linear)]
    assert head.in_features == 3 + 3 + 1


def test_plain_feature_rows_are_numbers_alone() -> None:
    network = build(FtTransformer(kwargs=FtTransformerKwargs(dim=16)), toys.signature((6,)), seed=0).eval()
    assert not [part for part in network.modules() if isinstance(part, nn.Embedding)]
    assert network(torch.randn(3, 6)).shape == (3, toys.CLASSES)
    plain = build(Mlp(), toys.signature((6,)), seed=0)
    assert next(iter(plain.state_dict())) == "body.1.weight"


def test_images_are_refused() -> None:
    with pytest.raises(ModelError, match="ft_transformer needs rows of columns"):
        build(FtTransformer(), toys.signature((3, 8, 8)))
