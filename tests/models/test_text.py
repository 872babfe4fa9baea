"""Models of text: which numbers they read, what padding and unknown tokens do, what training drops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from orchestrator.config.model import (
    Mlp,
    ModelSettings,
    TextCnn,
    TextCnnKwargs,
    TextNgrams,
    TextNgramsKwargs,
    TextTransformer,
    TextTransformerKwargs,
    Vit,
)
from orchestrator.data.dataset import Part
from orchestrator.errors import ModelError
from orchestrator.measure.cost import count
from orchestrator.models.build import build
from orchestrator.models.text import TextView, TokenDropout, rows_with
from orchestrator.models.text_ngrams import TokenWeights
from orchestrator.runtime.int8 import export
from orchestrator.training import loop
from tests.compression import toys

NAMES = ("text_ngrams", "text_votes", "text_cnn", "text_transformer")
SETTINGS: dict[str, ModelSettings] = {
    "text_votes": TextNgrams(),
    **{name: toys.MODELS[name][0] for name in NAMES if name != "text_votes"},
}
SIGNATURE = toys.signature(toys.TEXT)
PIECES, WORDS = slice(0, 12), slice(12, 22)
"""Columns of the two segments."""


def model(settings: ModelSettings) -> nn.Module:
    return build(settings, SIGNATURE, seed=0).eval()


def texts(count: int = 8) -> Tensor:
    return torch.from_numpy(toys.rows(toys.TEXT, count).inputs)


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_graph_of_full_length_agrees_with_eager_code_that_leaves_padding_out(name: str) -> None:
    network, rows = model(SETTINGS[name]), texts()
    rows[:, 5:12] = 0
    rows[:, 17:] = 0
    graph = export(network, rows).module()
    with torch.no_grad():
        torch.testing.assert_close(graph(rows), network(rows), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(graph(rows[:3]), network(rows[:3]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_does_not_depend_on_the_length_of_the_batchs_other_texts(name: str) -> None:
    network, rows = model(SETTINGS[name]), texts()
    rows[0, 2:12], rows[0, 14:] = 0, 0
    with torch.no_grad():
        torch.testing.assert_close(network(rows)[:1], network(rows[:1]), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_nothing_and_tokens_beyond_the_vocabulary_have_answers(name: str) -> None:
    network = model(SETTINGS[name])
    rows = torch.zeros(3, *toys.TEXT, dtype=torch.int32)
    rows[1], rows[2] = 2**31 - 1, -5
    with torch.no_grad():
        answers = network(rows)
    assert answers.isfinite().all()
    assert torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    network = build(SETTINGS[name], SIGNATURE, seed=0)
    network(texts()).square().sum().backward()
    assert not [key for key, value in network.named_parameters() if value.grad is None]


@pytest.mark.parametrize(
    ("settings", "read"),
    [
        (TextNgrams(), PIECES),
        (TextNgrams(kwargs=TextNgramsKwargs(view="pieces")), PIECES),
        (TextCnn(kwargs=TextCnnKwargs(widths=(2,))), WORDS),
        (TextTransformer(kwargs=TextTransformerKwargs(view="words")), WORDS),
    ],
    ids=["default", "named", "tokens", "named-tokens"],
)
def test_a_model_reads_its_segment_alone(settings: ModelSettings, read: slice) -> None:
    network, rows = model(settings), texts()
    other = rows.clone()
    ignored = PIECES if read == WORDS else WORDS
    other[:, ignored] = 3
    with torch.no_grad():
        assert torch.equal(network(rows), network(other))
        other[:, read] = 7
        assert not torch.equal(network(rows), network(other))


def test_a_segment_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(ModelError, match=r"no such segment: letters.*pieces \(ngrams\), words \(tokens\)"):
        model(TextCnn(kwargs=TextCnnKwargs(view="letters")))
    with pytest.raises(ModelError, match=r"reads tokens"):
        model(TextCnn(kwargs=TextCnnKwargs(view="pieces")))


def test_text_models_refuse_rows_of_another_kind_and_others_refuse_text() -> None:
    with pytest.raises(ModelError, match=r"text_cnn needs text"):
        build(TextCnn(), toys.signature((6,)))
    for settings in (Mlp(), Vit()):
        with pytest.raises(ModelError, match=r"needs images"):
            build(settings, SIGNATURE)


def test_operations_are_counted_at_the_whole_length() -> None:
    settings = TextCnn(kwargs=TextCnnKwargs(dim=4, widths=(3,), channels=8))
    # Three columns of padding on both sides.
    assert count(model(settings), SIGNATURE).macs == (10 + 2 * 3 - 2) * 8 * 3 * 4 + 8 * toys.CLASSES


def test_ngrams_are_counted_in_all_train_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "INITIAL_ROWS", 2)
    module = build(TextNgrams(), SIGNATURE, seed=0)
    (layer,) = (part for part in module.modules() if isinstance(part, TokenWeights))
    rows = np.zeros((5, *toys.TEXT), np.int32)
    rows[:, 0], rows[-1, 1] = 5, 6
    loop.initialize(module, Part(rows, np.zeros(5, np.int64), np.arange(5)))
    assert layer.weights[5] == 1
    assert float(layer.weights[6]) == pytest.approx(float(np.log(3)) + 1)


def test_ngrams_that_many_train_rows_have_weigh_less() -> None:
    encoding = SIGNATURE.encoding
    assert encoding is not None
    assert encoding.kind == "text"
    weights = TokenWeights(TextView(encoding.segments[0], 0))
    rows = torch.zeros(3, *toys.TEXT, dtype=torch.int32)
    rows[:, 0], rows[0, 1:3] = 5, 6
    weights.initialize([rows[:2], rows[2:]])
    assert weights.weights[0] == 0
    assert weights.weights[5] == 1
    assert float(weights.weights[6]) == pytest.approx(float(torch.tensor(2.0).log()) + 1)
    found = weights(rows[:, :4])
    torch.testing.assert_close(found.square().sum(1), torch.ones(3))
    assert (found[:, 3] == 0).all()


def test_tokens_are_dropped_in_training_alone() -> None:
    dropout, ids = TokenDropout(0.5, 1), torch.full((4, 100), 7)
    ids[:, 50:] = 0
    torch.manual_seed(0)
    dropped = dropout(ids)
    assert set(dropped[:, :50].unique().tolist()) == {1, 7}
    assert (dropped[:, 50:] == 0).all()
    assert dropout.eval()(ids) is ids


def test_a_hidden_layer_needs_an_embedding() -> None:
    with pytest.raises(ValueError, match="'hidden' needs 'dim'"):
        TextNgramsKwargs(hidden=8)


@pytest.mark.parametrize("length", [1, 6])
def test_rows_with_a_number_are_counted_without_a_table_of_all_numbers(length: int) -> None:
    ids = torch.randint(0, 9, (40, length), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    wanted = [int((ids == number).any(1).sum()) for number in range(12)]
    assert rows_with(ids, 12).tolist() == wanted
    # A table of [rows, numbers] would take gigabytes.
    assert int(rows_with(ids, 10**7)[:12].sum()) == sum(wanted)
