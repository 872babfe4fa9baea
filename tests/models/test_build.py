"""Every architecture on every input it fits, and clear refusals of the others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orchestrator.config.model import (
    Airbench,
    AirbenchKwargs,
    Cnn,
    Mlp,
    MlpKwargs,
    ModelSettings,
    ResNet,
    ResNet9,
    ResNet9Kwargs,
    ResNetKwargs,
    Vit,
    VitKwargs,
)
from orchestrator.errors import ModelError
from orchestrator.models.airbench import NormRelu
from orchestrator.models.build import build, example_rows
from orchestrator.models.resnet import WhiteningConv
from tests.models.toys import COLOUR, DIGITS, FITTING, ROWS, SMALL, rows, signature


@pytest.mark.parametrize(("name", "shape"), FITTING)
def test_forward_gives_one_finite_row_of_outputs_for_each_input_row(
    name: str, shape: tuple[int, ...]
) -> None:
    model = build(SMALL[name], signature(shape), seed=0)
    assert model.training
    for count in (2, 5):
        out = model(rows(shape, count))
        assert out.shape == (count, 10)
        assert out.dtype == torch.float32
        assert torch.isfinite(out).all()
    assert model.eval()(rows(shape, 1)).shape == (1, 10)


@pytest.mark.parametrize("settings", [Mlp(), Cnn(), ResNet(), ResNet9(), Vit()])
def test_default_settings_build_for_digits(settings: ModelSettings) -> None:
    model = build(settings, signature(DIGITS), seed=0).eval()
    assert model(rows(DIGITS, 2)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 8, 12), (3, 20, 20)])
def test_odd_image_sizes_fit(name: str, shape: tuple[int, ...]) -> None:
    assert build(SMALL[name], signature(shape), seed=0).eval()(rows(shape, 2)).shape == (2, 10)


@pytest.mark.parametrize("name", SMALL)
def test_the_seed_decides_the_weights_and_leaves_the_callers_generator_alone(name: str) -> None:
    state = torch.random.get_rng_state()
    first, again, other = (
        build(SMALL[name], signature(DIGITS), seed=seed).state_dict() for seed in (3, 3, 4)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())
    assert any(not torch.equal(tensor, other[key]) for key, tensor in first.items())


def test_without_a_seed_the_callers_generator_decides() -> None:
    torch.manual_seed(5)
    first = build(SMALL["mlp"], signature(ROWS)).state_dict()
    assert not torch.equal(
        first["body.1.weight"], build(SMALL["mlp"], signature(ROWS)).state_dict()["body.1.weight"]
    )


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name: str) -> None:
    model = build(SMALL[name], signature(DIGITS), seed=0)
    model(rows(DIGITS, 8)).square().sum().backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.requires_grad}
    assert not [key for key, grad in gradients.items() if grad is None or not grad.isfinite().all()]


@pytest.mark.parametrize("name", ["cnn", "resnet", "resnet9", "vit"])
def test_image_architectures_refuse_feature_rows(name: str) -> None:
    with pytest.raises(ModelError, match=rf"{name} needs images.*\[6\]\. use mlp"):
        build(SMALL[name], signature(ROWS))


def test_vit_refuses_a_patch_that_does_not_divide_the_image() -> None:
    with pytest.raises(ModelError, match=r"8x8 pixels into patches of: 3x3\. set kwargs\.patch"):
        build(Vit(kwargs=VitKwargs(patch=3)), signature(DIGITS))


def test_images_are_scaled_by_channel() -> None:
    model = build(Mlp(kwargs=MlpKwargs(widths=())), signature((2, 4, 4)), seed=0)
    pixels = rows((2, 4, 4), 3)
    scaled = model.preprocess(pixels)
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled[:, 0], (pixels[:, 0].float() - 10) / 50)
    torch.testing.assert_close(scaled[:, 1], (pixels[:, 1].float() - 11) / 51)


def test_feature_rows_are_scaled_by_feature_and_a_constant_one_becomes_zero() -> None:
    wanted = signature(ROWS).model_copy(update={"std": (0.0, *range(51, 56))})
    values = rows(ROWS, 4)
    values[:, 0] = 10.0
    scaled = build(SMALL["mlp"], wanted, seed=0).preprocess(values)
    assert torch.equal(scaled[:, 0], torch.zeros(4))
    torch.testing.assert_close(scaled[:, 5], (values[:, 5] - 15) / 55)


def test_a_regression_answers_in_raw_units() -> None:
    wanted = signature(ROWS, task="regression", outputs=2)
    model = build(SMALL["mlp"], wanted, seed=0).eval()
    last = [part for part in model.body.modules() if isinstance(part, nn.Linear)][-1]
    nn.init.zeros_(last.weight)
    nn.init.ones_(last.bias)
    assert torch.equal(model(rows(ROWS, 3)), torch.tensor([[110.0, 210.0]]).expand(3, 2))


def test_a_regression_on_images_builds_every_architecture() -> None:
    wanted = signature(DIGITS, task="regression", outputs=2)
    for settings in SMALL.values():
        assert build(settings, wanted, seed=0).eval()(rows(DIGITS, 3)).shape == (3, 2)


@pytest.mark.parametrize("field", ["mean", "std"])
def test_a_signature_with_too_few_scaling_values_is_refused(field: str) -> None:
    wanted = signature(COLOUR).model_copy(update={field: (1.0, 2.0)})
    with pytest.raises(ModelError, match=f"{field} needs one value or 3, one a channel.*; it has: 2"):
        build(SMALL["mlp"], wanted)


def test_a_regression_without_target_scaling_is_refused() -> None:
    wanted = signature(ROWS, task="regression", outputs=2).model_copy(update={"target_mean": ()})
    with pytest.raises(ModelError, match="target_mean must have 2 values"):
        build(SMALL["mlp"], wanted)


def test_the_saved_tensors_are_the_bodys_alone() -> None:
    assert {name.split(".")[0] for name in build(SMALL["resnet"], signature(COLOUR)).state_dict()} == {"body"}


def test_resnet_has_the_depth_and_widths_that_were_asked_for() -> None:
    model = build(ResNet(kwargs=ResNetKwargs(depth=20, width=16)), signature(COLOUR), seed=0)
    three = [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (3, 3)]
    assert len(three) == 19
    assert sorted({part.out_channels for part in three}) == [16, 32, 64]
    ones = [part for part in model.modules() if isinstance(part, nn.Conv2d) and part.kernel_size == (1, 1)]
    assert [(part.in_channels, part.out_channels) for part in ones] == [(16, 32), (32, 64)]


def test_resnet9_pools_large_images_three_times_and_digits_once() -> None:
    for shape, pools in ((COLOUR, 3), (DIGITS, 1), ((1, 4, 4), 0)):
        model = build(SMALL["resnet9"], signature(shape), seed=0)
        assert sum(isinstance(part, nn.MaxPool2d) for part in model.modules()) == pools


def test_whitening_looks_at_as_many_large_images_as_have_the_pixels_of_its_small_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (WhiteningConv.from_rows or 0) * 32 * 32 == WhiteningConv.MOST_PIXELS
    monkeypatch.setattr(WhiteningConv, "MOST_PIXELS", 5 * 16 * 16)
    images = torch.randn(8, 3, 16, 32, generator=torch.Generator().manual_seed(0))

    def filters(rows: torch.Tensor) -> torch.Tensor:
        stem = WhiteningConv(3)
        stem.initialize(iter(rows.split(3)))
        return stem.conv.weight

    assert torch.equal(filters(images), filters(images[:2]))
    assert not torch.equal(filters(images), filters(images[:1]))
    assert filters(images.repeat(1, 1, 2, 2)).isfinite().all()  # a single one has more pixels than that


def test_example_rows_have_the_signatures_type() -> None:
    assert example_rows(signature(DIGITS), 2).dtype == torch.uint8
    assert example_rows(signature(ROWS), 3).shape == (3, 6)


def test_airbench_pools_first_while_training_and_last_afterwards_with_the_same_result() -> None:
    part = NormRelu(6, pool=True).eval()
    generator = torch.Generator().manual_seed(0)
    assert part.norm.running_var is not None
    part.norm.bias.data.uniform_(-1, 1, generator=generator)
    rows = torch.randn(4, 6, 8, 8, generator=generator)
    part.norm.momentum = 1.0
    with torch.no_grad():
        during = part.train()(rows)
        part.norm.running_var *= 1 - 1 / (4 * 4 * 4)  # the running one is of a sample, the batch's own is not
        torch.testing.assert_close(part.eval()(rows), during)


def test_airbench_starts_as_the_identity_and_trains_no_scale() -> None:
    model = build(Airbench(kwargs=AirbenchKwargs(widths=(24,))), signature((3, 16, 16)), seed=0)
    first = next(p for n, p in model.named_parameters() if n == "body.2.weight")
    assert torch.equal(first[:, :, 1, 1], torch.eye(24))
    scales = [part.weight for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert scales
    assert not any(scale.requires_grad for scale in scales)


def test_airbench_refuses_images_that_it_cannot_halve() -> None:
    with pytest.raises(ModelError, match="too small"):
        build(Airbench(), signature((3, 4, 4)), seed=0)


def test_a_mirrored_model_gives_an_image_and_its_mirror_image_the_same_answer() -> None:
    settings = ResNet9(kwargs=ResNet9Kwargs(width=4, mirror=True))
    plain = ResNet9(kwargs=ResNet9Kwargs(width=4))
    model = build(settings, signature((3, 16, 16)), seed=0).eval()
    alone = build(plain, signature((3, 16, 16)), seed=0).eval()
    images = rows((3, 16, 16), 5)
    with torch.no_grad():
        found = model(images)
        torch.testing.assert_close(found, model(images.flip(3)))
        torch.testing.assert_close(found, (alone(images) + alone(images.flip(3))) / 2)
        model.train()
        alone.train()
        torch.testing.assert_close(model(images), alone(images))
