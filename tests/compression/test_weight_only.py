"""Weight-only integers: few bytes, close weights, float speed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from orchestrator.compression.api import compress
from orchestrator.compression.gate import MASKED
from orchestrator.compression.plan import apply_plan, run_step
from orchestrator.compression.qat import weight_rounding
from orchestrator.compression.weight_only import rounded_codes
from orchestrator.config.model import ResNet9, ResNet9Kwargs
from orchestrator.config.steps import Step, WeightOnlyInt4, WeightOnlyInt8
from orchestrator.errors import CompressionError, CorruptArtifactError
from orchestrator.runtime import weight_only
from orchestrator.runtime.rebuild import load_tensors, rebuild
from orchestrator.store.store import Store
from tests.compression import toys


@pytest.mark.parametrize("columns", [1, 2, 5, 16])
def test_four_bits_take_half_a_byte_and_come_back(columns: int) -> None:
    codes = torch.randint(-8, 8, (3, columns), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    packed = weight_only.pack(codes)
    assert packed.dtype == torch.uint8
    assert packed.shape == (3, (columns + 1) // 2)
    ones = torch.ones((3, columns), dtype=weight_only.SCALE_TYPE)
    assert torch.equal(weight_only.unpack(packed, ones, torch.Size((3, columns))), codes.float())


@pytest.mark.parametrize(("bits", "group"), [(8, 27), (8, 8), (4, 8), (4, 7), (4, 27)])
def test_weights_are_off_by_half_a_step_at_most_unless_cut(bits: int, group: int) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    codes, scales = rounded_codes(weight, group, bits)
    stored = codes if bits == 8 else weight_only.pack(codes)
    back = weight_only.unpack(stored, scales, weight.shape)
    step = scales.float().repeat_interleave(group, dim=1)[:, :27].reshape(weight.shape)
    inside = weight.abs() <= step * (2 ** (bits - 1) - 1)
    assert ((back - weight).abs()[inside] <= step[inside] * 0.5001).all()
    assert (back - weight).square().sum() <= (0.02 if bits == 4 else 0.0002) * weight.square().sum()


def test_named_layers_stay_float() -> None:
    module, signature, _ = toys.toy("mlp")
    first, *others = weight_only.layers(module)
    step = WeightOnlyInt8(keep_float=(first,))
    state = run_step(step, toys.state(module, signature), toys.context((12,)))
    assert list(state.decisions[-1]["groups"]) == others
    assert torch.equal(state.module.get_parameter(f"{first}.weight"), module.get_parameter(f"{first}.weight"))
    with weight_rounding(module, None, 8, (first,)):
        assert type(module.get_submodule(first)) is nn.Linear
        assert all(type(module.get_submodule(name)) is not nn.Linear for name in others)
    assert "keep_float" not in WeightOnlyInt8().plain()


def test_a_row_of_zeros_stays_zero() -> None:
    codes, scales = rounded_codes(torch.zeros(2, 8), 4, 4)
    assert not codes.any()
    assert not scales.any()


@pytest.mark.parametrize(
    ("step", "smaller"), [(WeightOnlyInt8(), 3.7), (WeightOnlyInt4(), 6.2), (WeightOnlyInt4(group=128), 6.9)]
)
def test_bytes_shrink_as_the_bits_say(tmp_path: Path, step: Step, smaller: float) -> None:
    store = Store(tmp_path / "store")
    settings = ResNet9(kwargs=ResNet9Kwargs(width=16))
    signature = toys.signature((3, 16, 16))
    parent = toys.put(store, toys.model(settings, signature), signature, settings)
    digest = apply_plan(store, parent, (step,), toys.context((3, 16, 16)))
    assert store.artifact_bytes(parent) / store.artifact_bytes(digest) > smaller
    again, before = rebuild(store, digest).module, rebuild(store, parent).module
    assert sum(p.numel() for p in again.parameters()) == sum(p.numel() for p in before.parameters())


def test_layers_that_would_not_shrink_stay_float() -> None:
    signature = toys.signature((1,))
    tiny = nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, toys.CLASSES)).eval()
    state = run_step(WeightOnlyInt4(group=2), toys.state(tiny, signature), toys.context((1,)))
    assert set(state.decisions[-1]["groups"]) == {"0", "2"}
    bare = nn.Sequential(nn.ReLU())
    with pytest.raises(CompressionError, match="no convolution, linear or embedding would become smaller"):
        run_step(WeightOnlyInt4(), toys.state(bare, signature), toys.context((1,)))


def test_layers_without_a_form_are_named_with_the_reason() -> None:
    part = toys.rows((12,))
    module = nn.Sequential(nn.Unflatten(1, (1, 12)), nn.Conv1d(1, 8, 3), nn.Flatten(), nn.Linear(80, 5))
    variant = compress(module, [WeightOnlyInt8()], (part.inputs, part.targets))
    why = "there is no weight-only form of Conv1d"
    assert variant.decisions[-1]["left"] == {"body.1": why}
    assert f"int8_weight_only  left body.1 ({why})" in str(variant.audit(batches=()))


def test_zeros_that_rounding_makes_are_no_mask() -> None:
    part = toys.rows((12,))
    layer = nn.Linear(12, toys.CLASSES)
    with torch.no_grad():
        layer.weight.normal_(generator=torch.manual_seed(0))
        layer.weight[:, 0] = 4.0  # what is small beside it becomes zero
    found = compress(nn.Sequential(layer), [WeightOnlyInt4()], (part.inputs, part.targets))
    audited = found.audit(batches=())
    assert audited.facts["zeros"] > MASKED
    assert not audited.facts["masked_only"]
    assert "masked" not in audited.gate.reason


def test_tensors_of_another_form_are_refused() -> None:
    module, signature, _ = toys.toy("mlp")
    context = toys.context(signature.input_shape)
    state = run_step(WeightOnlyInt8(), toys.state(module, signature), context)
    saved = state.module.state_dict()
    name = next(key for key in saved if key.endswith("codes"))
    assert f"{name.removesuffix('codes')}weight" not in saved
    for bad in (
        {key: tensor for key, tensor in saved.items() if key != name},
        saved | {name: saved[name][:1]},
    ):
        with pytest.raises(CorruptArtifactError, match="do not fit"):
            load_tensors(state.module, bad, None)
