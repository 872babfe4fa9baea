"""8-bit floating point linears: the bound of their rounding, what is kept, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from orchestrator.compression.api import compress
from orchestrator.compression.audit import audit
from orchestrator.compression.gate import is_masked
from orchestrator.compression.plan import apply_plan, run_step
from orchestrator.config.model import Vit, VitKwargs
from orchestrator.config.steps import Fp8, MagnitudePruning
from orchestrator.errors import CompressionError, CorruptArtifactError
from orchestrator.runtime import fp8
from orchestrator.runtime.rebuild import rebuild, replay
from orchestrator.store.store import Store
from tests.compression import toys

UNIT = 2**-4
"""Largest relative error of a normal e4m3 number: half of the last of its four bits."""


def rounded_linear(inputs: int = 64, outputs: int = 48, bias: bool = True) -> tuple[nn.Linear, nn.Module]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(inputs, outputs, bias=bias))
    before = nn.Linear(inputs, outputs, bias=bias)
    before.load_state_dict(module[0].state_dict())
    fp8.convert(module, ["0"])
    return before, module[0]


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_numbers_are_off_by_half_of_their_last_bit_at_most() -> None:
    numbers = rows(200, 64) * torch.logspace(-6, 6, 200)[:, None]
    codes, scale = fp8.rounded(numbers)
    assert codes.dtype == torch.float8_e4m3fn
    assert scale.shape == (200, 1)
    assert (codes.float().abs().amax(1) == 448).all(), "all of the range is used"
    error = (codes.float() * scale - numbers).abs()
    normal = numbers.abs() >= 2**-6 * scale
    assert (error[normal] <= UNIT * 1.001 * numbers.abs()[normal]).all()
    assert (error <= torch.maximum(UNIT * numbers.abs(), 2**-10 * scale) * 1.001).all()


def test_rows_of_zeros_stay_zero() -> None:
    codes, scale = fp8.rounded(torch.zeros(2, 16))
    assert not codes.float().any()
    assert torch.isfinite(scale).all()


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_layer_is_off_by_what_its_factors_are(bias: bool) -> None:
    before, after = rounded_linear(bias=bias)
    given = rows(50, 64)
    wanted, found = before(given), after(given)
    products = functional.linear(given.abs(), before.weight.abs())
    bound = ((1 + UNIT) ** 2 - 1) * products + 2**-7 * (products + wanted.abs())
    assert ((found - wanted).abs() <= bound).all()
    # Errors of single numbers are independent: they add up far below the bound.
    assert (found - wanted).norm() < 0.06 * wanted.norm()


@torch.no_grad()
def test_every_row_of_an_input_of_any_rank_has_its_own_scale() -> None:
    _, layer = rounded_linear()
    given = rows(3, 5, 64)
    found = layer(given)
    assert found.shape == (3, 5, 48)
    assert torch.equal(found, layer(given.reshape(15, 64)).reshape(3, 5, 48))
    assert torch.equal(found.transpose(0, 1), layer(given.transpose(0, 1)))
    louder = given.clone()
    louder[0] *= 1000
    assert torch.equal(layer(louder)[1:], found[1:])
    assert layer(given.bfloat16()).dtype == torch.bfloat16


def test_only_plain_linears_of_whole_tiles_are_rounded() -> None:
    signature = toys.signature((24,))
    module = nn.Sequential(
        nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, toys.CLASSES)
    ).eval()
    state = run_step(Fp8(), toys.state(module, signature), toys.context((24,)))
    assert state.decisions[-1]["layers"] == ["2"]
    kinds = [type(part).__name__ for part in state.module.children() if not isinstance(part, nn.ReLU)]
    assert kinds == ["Linear", "Fp8Linear", "Linear"]
    assert type(module[2]) is nn.Linear


def test_a_model_without_such_a_layer_is_refused() -> None:
    module, signature, _ = toys.toy("resnet")
    with pytest.raises(CompressionError, match=r"multiples of 16: .*use bf16, or prune .* round_to: 16"):
        run_step(Fp8(), toys.state(module, signature), toys.context(signature.input_shape))


def test_named_layers_stay_float() -> None:
    module, signature, _ = toys.toy("vit")
    state, context = toys.state(module, signature), toys.context(signature.input_shape)
    kept = run_step(Fp8(keep_float=("body.blocks.0.attention",)), state, context).decisions[-1]
    assert kept["layers"] == ["body.blocks.0.mlp.0", "body.blocks.0.mlp.2"]
    assert kept["keep_float"] == ["body.blocks.0.attention"]
    with pytest.raises(CompressionError, match=r"no layer to keep in float .*: body\.nine"):
        run_step(Fp8(keep_float=("body.nine",)), state, context)


def stored_vit(store: Store, step: Fp8) -> tuple[str, str]:
    settings = Vit(kwargs=VitKwargs(patch=8, dim=64, depth=2, heads=4))
    signature = toys.signature((3, 16, 16))
    parent = toys.put(store, toys.model(settings, signature), signature, settings)
    return parent, apply_plan(store, parent, (step,), toys.context((3, 16, 16)))


def test_the_file_holds_a_byte_a_weight_and_comes_back_bit_equal(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    parent, digest = stored_vit(store, Fp8())
    saved = store.tensors(digest)
    name = "body.blocks.1.mlp.2"
    assert saved[f"{name}.weight"].dtype == torch.float8_e4m3fn
    assert saved[f"{name}.scale"].dtype == torch.float32
    rounded = [tensor for tensor in saved.values() if tensor.dtype == torch.float8_e4m3fn]
    whole = sum(tensor.numel() for tensor in store.tensors(parent).values())
    assert sum(tensor.numel() for tensor in rounded) > 0.8 * whole
    assert store.artifact_bytes(parent) / store.artifact_bytes(digest) > 2
    layer = rebuild(store, digest).module.get_submodule(name)
    assert torch.equal(layer.get_parameter("weight"), saved[f"{name}.weight"])
    weight = rebuild(store, parent).module.get_submodule(name).get_parameter("weight").detach()
    assert torch.equal(layer.get_parameter("weight"), fp8.rounded(weight)[0])


def test_a_record_of_other_layers_is_refused() -> None:
    module, signature, _ = toys.toy("mlp")
    for layers in (["body.first"], ["body.nine"]):
        with pytest.raises(CorruptArtifactError, match="recorded layers do not fit"):
            replay(Fp8(), module, {"layers": layers}, signature)


def test_the_audit_tells_the_share_of_the_work_and_what_stays_float(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    _, digest = stored_vit(store, Fp8(keep_float=("body.blocks.0.mlp.0",)))
    facts = audit(store, digest)
    tokens, dim, hidden, pixels = 4, 64, 128, 3 * 8 * 8
    attention = 4 * tokens * dim * dim
    kept = tokens * dim * hidden
    inside = 2 * attention + 3 * kept
    outside = tokens * pixels * dim + kept + dim * toys.CLASSES + 2 * 2 * tokens * tokens * dim
    assert facts["macs"] == inside + outside
    found = facts["fp8"]
    assert found["share"] == pytest.approx(inside / (inside + outside))
    assert (found["kernels"], found["left"]) == (11, 3)
    assert found["fell_back"] == [
        {"layer": "body.patches", "why": "fp8 has a form of plain linears alone"},
        {"layer": "body.blocks.0.mlp.0", "why": "kept in float, as asked"},
        {"layer": "body.head", "why": "64 to 5 features are no multiples of 16"},
        {"layer": "outside of layers", "why": "fp8 has no products of two activations"},
    ]
    assert facts["bytes"] == store.artifact_bytes(digest)
    assert facts["int8"] is None


def test_pruned_zeros_stay_zero_and_are_not_masked_only() -> None:
    module, signature, _ = toys.toy("vit")
    part = toys.rows(signature.input_shape)
    variant = compress(module, [MagnitudePruning(amount=0.5), Fp8()], (part.inputs, part.targets))
    found = variant.audit(batches=())
    assert found.facts["zeros"] >= 0.5
    assert not is_masked(found.facts, found.baseline)
    assert "fp8" in str(found)
