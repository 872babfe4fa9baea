"""What the libraries below do wrong without saying so; the page `docs/compression.md` lists all of it.

Here stand the traps that have no better place.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._inductor import config as inductor

from orchestrator.compression.plan import State, apply_plan, run_step
from orchestrator.config.steps import Bf16, ChannelPruning, DynamicInt8, Recovery, StaticInt8, Step
from orchestrator.config.training import DistillationLoss, Training
from orchestrator.errors import CompressionError
from orchestrator.runtime.execute import executions, load, of_module
from orchestrator.store.store import Store
from tests.compression import toys

ROOT = Path(__file__).resolve().parents[2]


def after(step: Step, state: State) -> State:
    return run_step(step, state, toys.context(state.signature.input_shape))


@pytest.mark.parametrize(
    ("name", "shape", "layer"), [("chunked", (12,), "both"), ("fused_heads", (3, 16, 16), "qkv")]
)
def test_split_layers_are_refused_with_the_way_out(name: str, shape: tuple[int, ...], layer: str) -> None:
    """torch-pruning takes the parts of a chunked layer, or fused queries, keys and values, for one, and
    empties the layer."""
    module, signature, _ = toys.imported(name, shape)
    reason = f"parts that hang together: body.{layer}.*fixed_width_layers"
    with pytest.raises(CompressionError, match=reason):
        after(ChannelPruning(amount=0.5), toys.state(module, signature))


def test_recovery_trains_the_tensors_that_are_left() -> None:
    """An optimizer made before pruning would train those that were cut away, and nothing would change."""
    module, signature, _ = toys.toy("cnn")
    pruned = after(ChannelPruning(amount=0.5), toys.state(module, signature))
    training = Training(epochs=1, batch_size=16, lr=0.05, loss=DistillationLoss())
    recovered = after(Recovery(training=training), pruned)
    before = dict(pruned.module.named_parameters())
    for name, tensor in recovered.module.named_parameters():
        assert tensor.shape == before[name].shape
        assert not torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("step", [StaticInt8(rows=16), DynamicInt8(), Bf16()])
def test_inductors_switches_stay_as_they_are(step: Step) -> None:
    """torchao's `quantize_` and lowering set them for the whole process unless told not to."""
    before = inductor.shallow_copy_dict()
    module, signature, _ = toys.toy("mlp")
    state = after(step, toys.state(module, signature))
    if isinstance(state.module, fx.GraphModule):
        of_module(state.module, signature, "lowered")(toys.rows(signature.input_shape).inputs)
    assert inductor.shallow_copy_dict() == before


@pytest.mark.slow
def test_inductors_switches_stay_as_they_are_after_compiling(tmp_path: Path) -> None:
    """Compiling int8 freezes, and brings two passes of its own."""
    module, signature, settings = toys.toy("mlp")
    store, context = Store(tmp_path), toys.context(signature.input_shape)
    digest = apply_plan(store, toys.put(store, module, signature, settings), (StaticInt8(rows=16),), context)
    before = inductor.shallow_copy_dict()
    load(store, digest, "aoti", batch=8)
    assert inductor.shallow_copy_dict() == before


@pytest.mark.parametrize("step", [StaticInt8(rows=16), DynamicInt8()])
def test_a_quantize_dequantize_graph_never_runs_as_it_is(tmp_path: Path, step: Step) -> None:
    """It simulates int8 in float, slower than before it was quantized."""
    module, signature, settings = toys.toy("mlp")
    state = after(step, toys.state(module, signature))
    executable = of_module(state.module, signature, "eager")
    assert _int8_kernels(getattr(executable._forward, "inner", executable._forward)) > 0
    store = Store(tmp_path)
    parent = toys.put(store, module, signature, settings)
    manifest = store.manifest(parent)
    assert "eager" not in executions(
        manifest.model_copy(update={"plan": (step,), "decisions": state.decisions})
    )
    assert executions(manifest)[0] == "eager"
    assert load(store, parent, "eager")(toys.rows(signature.input_shape).inputs).shape[1] == toys.CLASSES


def _int8_kernels(forward: Any) -> int:
    assert isinstance(forward, nn.Module)
    assert isinstance(forward, fx.GraphModule)
    return sum(str(node.target).startswith("onednn.q") for node in forward.graph.nodes)


def test_every_trap_of_the_page_has_its_tests() -> None:
    page = (ROOT / "docs" / "compression.md").read_text(encoding="utf-8")
    section = page.partition("## Traps")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and "`test_" in line]
    assert len(rows) >= 16
    sources = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    for row in rows:
        for name in re.findall(r"`(test_\w+)`", row):
            assert f"def {name}(" in sources, name
