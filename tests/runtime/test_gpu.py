"""fp8 and int4 linears on a GPU, against the same network on the CPU; what can be held without one, too.

Imports little, so that it runs where Ray and the packages of compression are missing:
`pytest --noconftest -o addopts= -m gpu tests/runtime/test_gpu.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from orchestrator.config.model import Vit, VitKwargs
from orchestrator.config.signature import Signature
from orchestrator.errors import ExecutionError
from orchestrator.models.build import build
from orchestrator.runtime import fp8, gpu, weight_only
from orchestrator.runtime.bf16 import round_numbers, to_bf16
from orchestrator.runtime.gpu import Int4Linear, for_gpu
from orchestrator.runtime.weight_only import WeightOnlyLinear

SIDE, CLASSES = 16, 10
DEPTH = 2
LINEARS = 6 * DEPTH
"""Of the transformer's blocks."""
CLOSE = 2e-2
"""Of bfloat16 networks on two machines: a number between two e4m3 ones may be rounded either way."""

needs_fp8 = pytest.mark.skipif(
    not torch.cuda.is_available() or not fp8.has_kernels(torch.device("cuda:0")),
    reason="needs a GPU that multiplies e4m3 (compute capability 8.9)",
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")


def vit() -> nn.Module:
    signature = Signature(
        task="classification",
        input_shape=(3, SIDE, SIDE),
        input_dtype="uint8",
        outputs=CLASSES,
        mean=(120.0,) * 3,
        std=(60.0,) * 3,
    )
    settings = Vit(kwargs=VitKwargs(patch=4, dim=128, depth=DEPTH, heads=4))
    return build(settings, signature, seed=0).eval()


def fp8_vit() -> nn.Module:
    module = vit()
    fp8.convert(module, [name for name, part in module.named_modules() if fp8.why_not(part) is None])
    return module


def int4_vit(group: int = 32) -> nn.Module:
    module = vit()
    groups = {
        name: min(group, layer.get_parameter("weight")[0].numel())
        for name, layer in weight_only.layers(module).items()
    }
    weight_only.convert(module, groups, 4)
    for name, own in groups.items():
        fill(module.get_submodule(name), own)
    return module


def fill(layer: nn.Module, group: int) -> None:
    """Random codes; weights about as large as those of a fresh layer."""
    generator = torch.Generator().manual_seed(1)
    weight, scales = layer.get_parameter("weight").flatten(1), layer.get_buffer("scales")
    width = scales.shape[1] * group
    codes = torch.randint(-7, 8, (len(weight), width), generator=generator).to(torch.int8)
    sizes = torch.rand(scales.shape, generator=generator) * 0.3 * weight.shape[1] ** -0.5
    weight_only.fill(layer, codes, sizes)


def int4_linear(inputs: int, outputs: int, group: int, bias: bool = True) -> WeightOnlyLinear:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(inputs, outputs, bias=bias))
    weight_only.convert(module, {"0": group}, 4)
    fill(module[0], group)
    assert isinstance(module[0], WeightOnlyLinear)
    return module[0]


def images(count: int = 33) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)


def distance(found: Tensor, wanted: Tensor) -> float:
    """As in `orchestrator.runtime.forms`, which imports the store."""
    return float((found - wanted).norm() / wanted.norm())


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_on_the_cpu_the_same_network_is_a_bfloat16_one_close_to_the_artifact() -> None:
    for module in (fp8_vit(), int4_vit(), to_bf16(vit())):
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        reference, _ = for_gpu(module, "cpu")
        assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
        found, wanted = reference(images()), module(images())
        assert found.dtype == torch.float32
        assert distance(found, wanted) < CLOSE
        kinds = {part.weight.dtype for part in reference.modules() if isinstance(part, nn.LayerNorm)}
        assert kinds == {torch.bfloat16}, "CUDA's kernel takes one type"


def test_layers_without_a_kernel_are_named() -> None:
    _, left = for_gpu(fp8_vit(), "cpu")
    assert len(left) == LINEARS
    assert "body.blocks.0.attention.query" in left
    module, left = for_gpu(int4_vit(), "cpu")
    assert set(left) == set(weight_only.layers(vit()))
    assert not any(name.endswith(("codes", "scales")) for name in module.state_dict())


class _Tokens(nn.Module):
    """Embeddings of tokens alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Embedding(64, 32), nn.Flatten())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


@torch.no_grad()
def test_embeddings_of_integers_are_unpacked_into_a_bfloat16_network() -> None:
    torch.manual_seed(0)
    module = _Tokens()
    weight_only.convert(module, {"body.0": 32}, 4)
    fill(module.body[0], 32)
    found, left = for_gpu(module, "cpu")
    assert left == ("body.0",)
    assert {tensor.dtype for tensor in found.state_dict().values()} == {torch.bfloat16}
    rows = torch.arange(12).reshape(3, 4)
    assert distance(found(rows), module(rows)) < CLOSE


@torch.no_grad()
def test_a_float32_module_stays_one() -> None:
    module, left = for_gpu(vit(), "cpu")
    assert left == ()
    assert torch.equal(module(images()), vit()(images()))


@pytest.mark.parametrize(
    ("inputs", "outputs", "group", "fits"),
    [
        (128, 8, 32, True),
        (256, 48, 256, True),
        (384, 8, 64, True),
        (384, 8, 256, False),  # the last group is padded
        (128, 8, 33, False),  # as many groups as of 32, the last one padded
        (128, 8, 16, False),
        (192, 8, 64, False),
        (128, 12, 32, False),
    ],
)
def test_tinygemm_gets_the_shapes_it_takes(inputs: int, outputs: int, group: int, fits: bool) -> None:
    assert gpu._fits(int4_linear(inputs, outputs, group)) is fits


def test_eight_bit_codes_are_none_of_tinygemms() -> None:
    module = nn.Sequential(nn.Linear(128, 8))
    weight_only.convert(module, {"0": 32}, 8)
    layer = module[0]
    assert isinstance(layer, WeightOnlyLinear)
    assert not gpu._fits(layer)


def test_codes_and_scales_are_laid_out_as_tinygemm_reads_them() -> None:
    """Against torch's kernel of the same interface for CPUs, which takes a code an integer."""
    layer = int4_linear(128, 32, 32, bias=False)
    swapped = gpu._high_first(layer.codes)
    codes = torch.stack([swapped >> 4, swapped & 15], dim=-1).flatten(1).int()
    rows = normal(5, 128).bfloat16()
    found = torch.ops.aten._weight_int4pack_mm_for_cpu(
        rows,
        torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1),
        32,
        gpu._scales_and_zeros(layer.scales),
    )
    wanted = functional.linear(rows.float(), layer.weight.detach())
    assert distance(found.float(), wanted) < 0.01


def test_the_kernels_take_the_arguments_they_get(monkeypatch: pytest.MonkeyPatch) -> None:
    """By torch's own checks of shapes, types and strides, without data."""
    monkeypatch.setattr(fp8, "has_kernels", lambda device: True)  # noqa: ARG005
    module = nn.Sequential(nn.Linear(32, 48))
    fp8.convert(module, ["0"])
    module.to("meta")
    for rows in (torch.empty(1, 32), torch.empty(5, 7, 32).bfloat16(), torch.empty(32, 6).t()):
        outputs = module(rows.to("meta"))
        assert outputs.shape == (*rows.shape[:-1], 48)
        assert outputs.dtype == rows.dtype
    with FakeTensorMode():
        layer = int4_linear(256, 48, 64)
        gpu._to_tinygemm(layer)
        round_numbers(layer, kept=())
        assert layer(torch.empty(3, 256, 7).transpose(1, 2).bfloat16()).shape == (3, 7, 48)


def test_int8_graphs_and_missing_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExecutionError, match="kernels of CPUs"):
        for_gpu(fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExecutionError, match="sees no GPU"):
        for_gpu(vit())


@pytest.mark.gpu
@needs_fp8
@torch.no_grad()
def test_fp8_layers_answer_as_on_the_cpu() -> None:
    for shape in ((1, 64), (5, 64), (3, 7, 64), (129, 64)):
        for bias in (True, False):
            torch.manual_seed(0)
            module = nn.Sequential(nn.Linear(64, 48, bias=bias))
            fp8.convert(module, ["0"])
            for rows in (normal(*shape), normal(*shape).bfloat16()):
                wanted = module(rows)
                found = module.to("cuda")(rows.cuda())
                assert found.dtype == wanted.dtype
                assert distance(found.cpu().float(), wanted.float()) < 2e-2, (shape, bias, rows.dtype)
                module.to("cpu")


@pytest.mark.gpu
@needs_gpu
@torch.no_grad()
def test_int4_layers_answer_as_their_unpacked_weights_do() -> None:
    for group in gpu._GROUPS:
        for bias in (True, False):
            layer = int4_linear(512, 48, group, bias)
            rows = normal(3, 11, 512).bfloat16()
            wanted = functional.linear(rows.float(), layer.weight, None if layer.bias is None else layer.bias)
            layer.to("cuda")
            gpu._to_tinygemm(layer)
            round_numbers(layer, kept=())
            for count in (1, 3):
                found = layer(rows[:count].cuda())
                assert distance(found.cpu().float(), wanted[:count]) < 1e-2, (group, bias, count)


@pytest.mark.gpu
@needs_fp8
@torch.no_grad()
def test_an_fp8_transformer_answers_as_on_the_cpu() -> None:
    module, left = for_gpu(fp8_vit())
    assert left == ()
    assert distance(module(images().cuda()).cpu(), for_gpu(fp8_vit(), "cpu")[0](images())) < CLOSE


@pytest.mark.gpu
@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("group", [32, 128])
def test_an_int4_transformer_answers_as_its_unpacked_weights_do(group: int) -> None:
    module, left = for_gpu(int4_vit(group))
    assert set(left) == {"body.patches", "body.head"}
    assert sum(isinstance(part, Int4Linear) for part in module.modules()) == LINEARS
    wanted = for_gpu(int4_vit(group), "cpu")[0](images())
    assert distance(module(images().cuda()).cpu(), wanted) < CLOSE


@pytest.mark.gpu
@needs_gpu
@torch.no_grad()
def test_a_bfloat16_transformer_answers_as_on_the_cpu() -> None:
    module, left = for_gpu(to_bf16(vit()))
    assert left == ()
    assert distance(module(images().cuda()).cpu(), to_bf16(vit())(images())) < CLOSE


@pytest.mark.gpu
@needs_fp8
@torch.no_grad()
@pytest.mark.parametrize("made", [fp8_vit, int4_vit])
def test_compilers_trace_the_network_whole(made: Callable[[], nn.Module]) -> None:
    module, _ = for_gpu(made())
    traced = torch.compile(module, backend="eager", fullgraph=True)
    assert distance(traced(images().cuda()), module(images().cuda())) < 1e-3
