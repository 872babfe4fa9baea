"""Distillation of layers: what is compared, what is trained, and what is left behind."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from orchestrator.compression.plan import State, run_step
from orchestrator.compression.step import masks_of
from orchestrator.config.constraints import Sparsify
from orchestrator.config.model import Cnn, CnnKwargs
from orchestrator.config.run import ModelEntry
from orchestrator.config.steps import ChannelPruning, Distill, MagnitudePruning, Recovery
from orchestrator.config.training import DistillationLoss, Feature, Training
from orchestrator.errors import ConfigError
from orchestrator.models.base import weights_of
from orchestrator.training.features import Hinted
from tests.compression import toys


def layer_of(module: nn.Module, kind: type[nn.Module], index: int = 0) -> str:
    names = [str(name) for name, part in module.named_modules() if isinstance(part, kind)]
    return names[index]


def training(*features: Feature, epochs: int = 6) -> Training:
    loss = DistillationLoss(features=features, weight=1.0, temperature=2.0)
    return Training(epochs=epochs, batch_size=16, lr=0.02, loss=loss)


def output_of(module: nn.Module, name: str, rows: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = module.get_submodule(name).register_forward_hook(lambda _m, _i, out: seen.append(out))
    with torch.no_grad():
        module(rows)
    handle.remove()
    return seen[0]


def attention(layer: Tensor) -> Tensor:
    return nn.functional.normalize(layer.square().sum(1).flatten(1), dim=1)


def test_attention_transfer_makes_a_layer_look_where_the_teacher_looks() -> None:
    module, signature, _ = toys.toy("resnet")
    rows = torch.from_numpy(toys.rows(signature.input_shape, 32).inputs)
    name = layer_of(module, nn.Conv2d, 3)

    def distance(*features: Feature) -> float:
        start = run_step(
            ChannelPruning(amount=0.5), toys.state(module, signature), toys.context(signature.input_shape)
        )
        step = Recovery(training=training(*features))
        after = run_step(step, start, toys.context(signature.input_shape)).module
        return float(
            (attention(output_of(after, name, rows)) - attention(output_of(module, name, rows))).norm()
        )

    assert distance(Feature(student=name, kind="attention", weight=100.0)) < 0.8 * distance()


def hinted(**changes: Any) -> tuple[Hinted, nn.Module, Tensor]:
    teacher, signature, _ = toys.toy("cnn")
    student = toys.model(Cnn(kwargs=CnnKwargs(channels=(4, 8), hidden=8)), signature)
    rows = torch.from_numpy(toys.rows(signature.input_shape, 8).inputs)
    feature = Feature(**{"student": layer_of(student, nn.Conv2d), **changes})
    return Hinted(student, teacher, [feature], rows), teacher, rows


def test_a_hint_of_the_teacher_itself_vanishes_under_the_identity() -> None:
    teacher, signature, _ = toys.toy("cnn")
    rows = torch.from_numpy(toys.rows(signature.input_shape, 8).inputs)
    name = layer_of(teacher, nn.Conv2d)
    joined = Hinted(teacher, teacher, [Feature(student=name)], rows)
    projection = joined.projections[0]
    assert isinstance(projection.weight, nn.Parameter)
    nn.init.eye_(projection.weight)
    joined.train()
    joined(rows)
    assert joined.auxiliary_loss is not None
    assert float(joined.auxiliary_loss.detach()) == pytest.approx(0, abs=1e-6)


def test_a_hint_trains_student_and_projection_but_not_the_teacher() -> None:
    joined, teacher, rows = hinted(weight=2.0)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    joined.train()
    joined(rows)
    assert joined.auxiliary_loss is not None
    joined.auxiliary_loss.backward()
    first = joined.student.get_submodule(layer_of(joined.student, nn.Conv2d))
    assert isinstance(first.weight, Tensor)
    assert first.weight.grad is not None
    assert all(parameter.grad is not None for parameter in joined.projections.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any("teacher" in name for name in joined.state_dict())
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_teacher_goes_where_the_student_goes() -> None:
    module, signature, _ = toys.toy("mlp")
    teacher, rows = toys.near(module), torch.from_numpy(toys.rows(signature.input_shape).inputs)
    joined = Hinted(module, teacher, (Feature(student=layer_of(module, nn.Linear)),), rows)
    joined.to("meta")
    assert {parameter.device.type for parameter in teacher.parameters()} == {"meta"}


def test_the_weight_is_a_factor() -> None:
    found = []
    for weight in (1.0, 3.0):
        torch.manual_seed(0)
        joined, _, rows = hinted(weight=weight, kind="attention")
        joined.train()
        joined(rows)
        assert joined.auxiliary_loss is not None
        found.append(float(joined.auxiliary_loss.detach()))
    assert found[1] == pytest.approx(3 * found[0])


def test_outside_training_it_is_the_student_alone() -> None:
    joined, _, rows = hinted()
    joined.eval()
    with torch.no_grad():
        outputs = joined(rows)
        assert joined.auxiliary_loss is None
        assert torch.equal(outputs, joined.release()(rows))
    assert not any(part._forward_hooks for part in joined.student.modules())


class _Blocks(nn.Module):
    """A list of layers that is never called itself, and one that gives no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(6, 6)])
        self.pair = _Pair()

    def forward(self, rows: Tensor) -> Tensor:
        return torch.as_tensor(self.pair(self.blocks[0](rows))["rows"])


class _Pair(nn.Module):
    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return {"rows": rows}


@pytest.mark.parametrize("name", ["blocks", "pair"])
def test_a_layer_that_gives_no_tensor_is_refused_by_name(name: str) -> None:
    for names, whose in (
        ({"student": name}, "student"),
        ({"student": "blocks.0", "teacher": name}, "teacher"),
    ):
        with pytest.raises(
            ConfigError, match=f"a layer of the {whose} gives no tensor when .*: {name}. name"
        ):
            Hinted(_Blocks(), _Blocks(), (Feature(**names),), torch.zeros(2, 6))


def test_a_student_of_other_architecture_learns_from_hints() -> None:
    module, signature, _ = toys.toy("cnn")
    small = Cnn(kwargs=CnnKwargs(channels=(4, 8), hidden=8))
    name = layer_of(module, nn.Conv2d)
    step = Distill(model=small, training=training(Feature(student=name)))
    state = run_step(step, toys.state(module, signature), toys.context(signature.input_shape))
    assert type(state.module) is type(module)
    assert not any(part._forward_hooks for part in state.module.modules())
    assert not any("projections" in key for key in state.module.state_dict())


def test_zeros_stay_zero_beside_hints() -> None:
    module, signature, _ = toys.toy("cnn")
    context = toys.context(signature.input_shape)
    masked = run_step(MagnitudePruning(amount=0.5), toys.state(module, signature), context)
    name = layer_of(module, nn.Conv2d)
    after: State = run_step(Recovery(training=training(Feature(student=name), epochs=2)), masked, context)
    masks = masks_of(masked.module, masked.plan)
    assert masks is not None
    for key, mask in masks.items():
        assert not after.module.get_parameter(key)[~mask].any()


def test_gradual_pruning_beside_hints_counts_the_students_weights_alone() -> None:
    module, signature, _ = toys.toy("cnn")
    chosen = training(Feature(student=layer_of(module, nn.Conv2d)), epochs=4)
    chosen = chosen.model_copy(update={"sparsify": Sparsify(amount=0.5, every=2)})
    context = toys.context(signature.input_shape)
    after = run_step(Recovery(training=chosen), toys.state(module, signature), context)
    weights = list(weights_of(after.module).values())
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    assert zeros == round(0.5 * sum(weight.numel() for weight in weights))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"student": "body.convolution"}, "no layer of this name.*near"),
        ({"teacher": "body"}, "cannot be compared"),
    ],
)
def test_layers_that_do_not_fit_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        hinted(**changes)


def test_a_model_of_a_run_file_takes_no_features() -> None:
    with pytest.raises(ValidationError, match="are for the steps"):
        ModelEntry.model_validate(
            {
                "model": {"factory": "mlp"},
                "teacher": "other",
                "training": {"loss": {"kind": "distillation", "features": [{"student": "body.1"}]}},
            }
        )
