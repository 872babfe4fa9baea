"""Training in bfloat16 where the kernels of a library write past their memory."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from orchestrator.config.measure import Metric
from orchestrator.config.training import Training
from orchestrator.runtime.bf16 import has_bf16_kernels, without_strided_points
from orchestrator.training.loop import train
from tests.compression import toys


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1),
        nn.Conv2d(12, 24, 1, stride=2, bias=False),
        nn.Conv2d(24, 8, 1, stride=(2, 1)),
    )


def test_narrow_strided_points_give_the_same_numbers_and_come_back() -> None:
    module = layers()
    x = torch.randn(3, 3, 17, 16, requires_grad=True)
    wanted = module(x)
    (before,) = torch.autograd.grad(wanted.square().sum(), x)
    strides = [part.stride for part in module]
    with without_strided_points(module):
        assert [part.stride for part in module] == [(2, 2), (1, 1), (2, 1)]
        found = module(x)
        (after,) = torch.autograd.grad(found.square().sum(), x)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(after, before)
    assert [part.stride for part in module] == strides
    assert torch.equal(module(x), wanted)


def test_a_training_in_bfloat16_leaves_the_model_as_it_was() -> None:
    module, signature, _ = toys.toy("resnet")
    before = {name: part.stride for name, part in module.named_modules() if isinstance(part, nn.Conv2d)}
    assert (2, 2) in before.values()
    rows = toys.rows(signature.input_shape)
    settings = Training(epochs=1, batch_size=33, precision="bf16", channels_last=True)
    for _ in train(module, rows, rows, settings, signature=signature, metric=Metric(), seed=0):
        narrow = [p for p in module.modules() if isinstance(p, nn.Conv2d) and p.kernel_size == (1, 1)]
        assert narrow[0].stride == (1, 1)
    after = {name: part.stride for name, part in module.named_modules() if isinstance(part, nn.Conv2d)}
    assert after == before
    assert not any(part._forward_pre_hooks for part in module.modules())


@pytest.mark.slow
@pytest.mark.skipif(not has_bf16_kernels(), reason="this CPU has no bfloat16 kernels")
def test_an_odd_batch_in_bfloat16_ends_no_process() -> None:
    code = """
import torch
from torch import nn
from orchestrator.runtime.bf16 import without_strided_points
torch.set_num_threads(2)
layer = nn.Conv2d(12, 24, 1, stride=2, bias=False).to(memory_format=torch.channels_last)
with without_strided_points(layer):
    for _ in range(8):
        x = torch.randn(255, 12, 32, 32).to(memory_format=torch.channels_last).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        out.float().square().mean().backward()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
