"""The example of a user's own model and data works as its README says."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import Dim

from orchestrator.config.load import load_run
from orchestrator.config.model import ImportedModel
from orchestrator.config.signature import Signature
from orchestrator.models.build import build
from orchestrator.models.served import Served
from tests.compression import toys
from tests.models.toys import rows

FOLDER = Path(__file__).parents[2] / "examples" / "own_model"
SHAPE = (1, 12, 12)


@pytest.fixture(autouse=True)
def _on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


def signature(shape: tuple[int, ...] = SHAPE) -> Signature:
    channels = shape[0]
    return Signature(
        task="classification",
        input_shape=shape,
        input_dtype="uint8",
        outputs=4,
        mean=(100.0,) * channels,
        std=(80.0,) * channels,
    )


def checked(factory: str, shape: tuple[int, ...] = SHAPE) -> Served:
    """Built twice alike, trainable, and exported with any batch size."""
    model, again = (
        build(ImportedModel(factory=factory), signature(shape), allowed=(factory,), seed=0) for _ in range(2)
    )
    assert all(
        torch.equal(first, second)
        for first, second in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )
    model(rows(shape, 4)).sum().backward()
    model.eval()
    graph = torch.export.export(model, (rows(shape, 4),), dynamic_shapes=({0: Dim.AUTO},)).module()
    torch.testing.assert_close(graph(rows(shape, 7)), model(rows(shape, 7)), rtol=1e-4, atol=1e-5)
    return model


def test_the_run_file_names_the_only_code_that_may_run() -> None:
    run = load_run(FOLDER / "run.yaml")
    assert run.allowed() == {"own:model", "own:dataset"}


def test_the_data_are_repeatable_images_of_four_classes() -> None:
    own = importlib.import_module("own")
    images, labels, classes = own.dataset(rows=40)
    assert images.shape == (40, *SHAPE)
    assert images.dtype == np.uint8
    assert labels.tolist() == [0, 1, 2, 3] * 10
    assert len(classes) == 4
    assert np.array_equal(images, own.dataset(rows=40)[0])
    assert not np.array_equal(images, own.dataset(rows=40, seed=1)[0])


def test_the_own_model_learns_the_own_data() -> None:
    own = importlib.import_module("own")
    inputs, labels, _ = own.dataset(rows=400)
    images, targets = torch.from_numpy(inputs), torch.from_numpy(labels)
    model = build(ImportedModel(factory="own:model"), signature(), allowed=("own:model",), seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(6):
        for start in range(0, 320, 32):
            chosen = slice(start, start + 32)
            optimizer.zero_grad()
            torch.autograd.backward(torch.nn.functional.cross_entropy(model(images[chosen]), targets[chosen]))
            optimizer.step()
    hits = model.eval()(images[320:]).argmax(1) == targets[320:]
    assert hits.float().mean() > 0.6


def test_the_own_model_is_built_and_exported() -> None:
    checked("own:model")


@pytest.mark.parametrize("factory", ["hugging_face:vit", "hugging_face:resnet"])
def test_transformers_models_are_built_from_a_configuration(factory: str) -> None:
    pytest.importorskip("transformers")
    checked(factory)


def test_a_transformers_model_of_text_is_built_from_a_configuration_and_exported() -> None:
    pytest.importorskip("transformers")
    settings = ImportedModel(factory="hugging_face:bert", kwargs={"dim": 16, "depth": 1})
    model = build(settings, toys.signature(toys.TEXT), allowed=("hugging_face:bert",), seed=0).eval()
    part = toys.rows(toys.TEXT, 9)
    texts = torch.from_numpy(part.inputs)
    graph = torch.export.export(model, (texts,), dynamic_shapes=({0: Dim.AUTO},), strict=True).module()
    with torch.no_grad():
        torch.testing.assert_close(graph(texts[:3]), model(texts[:3]), rtol=1e-4, atol=1e-5)


def test_a_timm_model_is_built_by_name() -> None:
    toys.need_timm()
    checked("timm_net:create", (3, 32, 32))
