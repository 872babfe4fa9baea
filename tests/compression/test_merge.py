"""Merging models: soups, arcs, alignment, and the check that refuses a ruined one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from orchestrator.compression import compress
from orchestrator.compression.align import aligned
from orchestrator.compression.merge import _checked, _loss_on, mean, reestimate, slerp
from orchestrator.compression.plan import State, apply_plan, run_step
from orchestrator.compression.step import Context, Other
from orchestrator.config.measure import Metric
from orchestrator.config.model import Airbench, AirbenchKwargs, FtTransformer, SideBySide
from orchestrator.config.run import ModelEntry
from orchestrator.config.steps import Bf16, ChannelPruning, Distill, Merge, Recovery, StaticInt8
from orchestrator.config.training import Training
from orchestrator.errors import CompressionError
from orchestrator.measure.metrics import score
from orchestrator.models.build import build, example_rows
from orchestrator.models.served import Served
from orchestrator.models.side_by_side import Joined
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store
from orchestrator.training.loop import train
from tests.compression import toys

ACCURACY = Metric(name="accuracy")


def trained(name: str, seed: int, start: nn.Module | None = None, epochs: int = 6) -> nn.Module:
    """A toy net trained on rows of its own seed, from a start or from scratch."""
    settings, shape = toys.MODELS[name]
    signature = toys.signature(shape)
    module = copy.deepcopy(start) if start is not None else build(settings, signature, seed=seed)
    part = toys.rows(shape, count=256, seed=3)
    training = Training(epochs=epochs, batch_size=32, lr=0.05)
    for _ in train(module, part, part, training, signature=signature, metric=ACCURACY, seed=seed):
        pass
    return module.eval()


def merged(name: str, parts: list[nn.Module], **settings: object) -> State:
    _, shape = toys.MODELS[name]
    others = {f"m{number}": part for number, part in enumerate(parts[1:])}
    part = toys.rows(shape, count=256, seed=3)
    context = toys.context(
        shape, train=part, validation=part, other=lambda key: Other(lambda: others[key], None)
    )
    step = Merge.model_validate({"others": tuple(others), **settings})
    return run_step(step, toys.state(parts[0], toys.signature(shape)), context)


def accuracy(name: str, module: nn.Module) -> float:
    part = toys.rows(toys.MODELS[name][1], count=256, seed=3)
    with torch.no_grad():
        return score(ACCURACY, module(torch.tensor(part.inputs)).numpy(), part.targets)


def test_a_soup_of_one_start_is_as_good_as_its_worst_part() -> None:
    start = trained("mlp", 0)
    parts = [trained("mlp", seed, start, epochs=2) for seed in (1, 2, 3)]
    for method in ("uniform", "greedy"):
        state = merged("mlp", parts, method=method)
        assert accuracy("mlp", state.module) >= min(accuracy("mlp", part) for part in parts) - 0.01
        assert state.decisions[0]["barrier"] <= 0.1


def shuffled(name: str, module: nn.Module) -> nn.Module:
    """The same function with its hidden channels in another order: what alignment must undo."""
    other, (_, shape) = (
        build(toys.MODELS[name][0], toys.signature(toys.MODELS[name][1]), seed=9),
        toys.MODELS[name],
    )
    return aligned(other.eval(), copy.deepcopy(module), toys.signature(shape))


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet", "resnet9"])
def test_alignment_changes_the_order_and_not_the_answers(name: str) -> None:
    module, signature, _ = toys.toy(name)
    other = shuffled(name, module)
    first, second = module.state_dict(), other.state_dict()
    assert any(not torch.equal(first[key], second[key]) for key in first)
    rows = example_rows(signature, 8)
    with torch.no_grad():
        torch.testing.assert_close(other(rows), module(rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet9"])
def test_a_shuffled_copy_is_put_back_in_order(name: str) -> None:
    module, signature, _ = toys.toy(name)
    back = aligned(module, shuffled(name, module), signature)
    for key, tensor in module.state_dict().items():
        torch.testing.assert_close(back.state_dict()[key], tensor, rtol=0, atol=0)


def test_embeddings_are_permuted_along_their_features() -> None:
    module, signature, settings = toys.imported("embedded", toys.TEXT)
    other = build(settings, signature, allowed=(toys.__name__ + ":embedded",), seed=9).eval()
    moved = aligned(other, copy.deepcopy(module), signature)
    before, after = (one.get_parameter("body.embedding.weight") for one in (module, moved))
    assert not torch.equal(before, after)
    rows = torch.from_numpy(toys.rows(toys.TEXT).inputs)
    with torch.no_grad():
        torch.testing.assert_close(moved(rows), module(rows), rtol=1e-4, atol=1e-5)


def test_independent_nets_are_refused_unless_aligned() -> None:
    """Of one function in two orders the mean is ruined, and the aligned mean is that function."""
    module = trained("cnn", 0)
    parts = [module, shuffled("cnn", module)]
    with pytest.raises(CompressionError, match=r"loss barrier \d+\.\d+, allowed 0\.05"):
        merged("cnn", parts, max_barrier=0.05)
    state = merged("cnn", parts, method="aligned", max_barrier=0.05)
    assert state.decisions[0]["barrier"] < 1e-3


def test_alignment_lowers_the_barrier_of_two_trainings() -> None:
    parts = [trained("mlp", seed, epochs=10) for seed in (1, 2)]
    naive = merged("mlp", parts, max_barrier=100.0).decisions[0]["barrier"]
    better = merged("mlp", parts, method="aligned", max_barrier=100.0).decisions[0]["barrier"]
    assert better < 0.7 * naive


def test_greedy_leaves_out_what_ruins() -> None:
    """Two models on either side of a good one, and one that was never trained."""
    good = trained("mlp", 0)
    sides = [copy.deepcopy(good), copy.deepcopy(good)]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for centre, one, two in zip(good.parameters(), *(side.parameters() for side in sides), strict=True):
            away = 0.2 * centre.std(correction=0) * torch.randn(centre.shape, generator=generator)
            one.add_(away)
            two.sub_(away)
    state = merged("mlp", [sides[0], sides[1], untrained("mlp")], method="greedy")
    assert sorted(state.decisions[0]["taken"]) == ["m0", "parent"]
    for key, tensor in good.state_dict().items():
        torch.testing.assert_close(state.module.state_dict()[key], tensor)


def test_greedy_that_takes_nothing_is_refused() -> None:
    good, bad = trained("mlp", 0, epochs=10), untrained("mlp")
    with pytest.raises(CompressionError, match="as good as the best one alone"):
        merged("mlp", [good, bad], method="greedy")


def untrained(name: str) -> nn.Module:
    settings, shape = toys.MODELS[name]
    return build(settings, toys.signature(shape), seed=8).eval()


def test_the_ends_of_an_arc_and_its_middle() -> None:
    first = {"a": torch.tensor([1.0, 0.0]), "n": torch.tensor(3)}
    second = {"a": torch.tensor([0.0, 1.0]), "n": torch.tensor(4)}
    assert slerp(first, second, 1e-9)["a"].tolist() == pytest.approx([1, 0], abs=1e-6)
    assert slerp(first, second, 1 - 1e-9)["a"].tolist() == pytest.approx([0, 1], abs=1e-6)
    middle = slerp(first, second, 0.5)
    assert middle["a"].tolist() == pytest.approx([2**-0.5, 2**-0.5])
    assert middle["n"] == 3
    parallel = slerp(first, {"a": torch.tensor([3.0, 0.0]), "n": torch.tensor(3)}, 0.5)
    assert parallel["a"].tolist() == [2.0, 0.0]
    assert mean([first, second])["a"].tolist() == [0.5, 0.5]


def test_statistics_are_those_of_the_rows() -> None:
    module = nn.Sequential(nn.BatchNorm1d(12)).eval()
    part = toys.rows((12,), count=200)
    reestimate(module, part, 128)
    wanted = torch.tensor(part.inputs[:128])
    torch.testing.assert_close(module[0].running_mean, wanted.mean(0), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(module[0].running_var, wanted.var(0), rtol=1e-4, atol=1e-3)
    assert module[0].momentum == 0.1
    assert not module[0].training


def test_other_architectures_are_refused() -> None:
    module, _, _ = toys.toy("mlp")
    other = nn.Sequential(nn.Linear(12, 5))
    with pytest.raises(CompressionError, match="different architectures"):
        merged("mlp", [module, other])


@pytest.mark.parametrize("method", ["uniform", "side_by_side"])
def test_models_of_other_scaling_or_named_twice_are_not_merged(method: str) -> None:
    """Weights that were trained on other numbers; and a mean in which one of two would be missing."""
    module, signature, settings = toys.toy("mlp")
    moved = signature.model_copy(update={"mean": (90.0,) * 12})
    with pytest.raises(CompressionError, match="scale their rows"):
        merged("mlp", [module, toys.model(settings, moved)], method=method)
    step = Merge(others=("b", "b"), method=method)
    context = toys.context((12,), other=lambda _: Other(lambda: module, settings))
    with pytest.raises(CompressionError, match="merged twice"):
        run_step(step, toys.state(module, signature), context)


def test_a_stored_merge_names_its_parents_and_rebuilds(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    module, signature, settings = toys.toy("mlp")
    near = copy.deepcopy(module)
    with torch.no_grad():
        for tensor in near.parameters():
            tensor.add_(0.01)
    first, second = (toys.put(store, part, signature, settings) for part in (module, near))
    store.set_ref("toys/near", second)
    plan = (Merge(others=("toys/near",)),)
    digest = apply_plan(store, first, plan, toys.context((12,)))
    manifest = store.manifest(digest)
    assert manifest.parents == (first, second)
    assert manifest.plan[0].others == (second,)  # type: ignore[union-attr]
    again = rebuild(store, digest).module
    rows = example_rows(signature, 4)
    middle = copy.deepcopy(module)
    middle.load_state_dict(mean([module.state_dict(), near.state_dict()]))
    with torch.no_grad():
        assert torch.equal(again(rows), middle(rows))


def test_three_lines_from_python() -> None:
    module, _, _ = toys.toy("mlp")
    part = toys.rows((12,))
    data = (part.inputs, part.targets)
    body = module.get_submodule("body")
    plan: list[dict[str, Any]] = [{"kind": "merge", "others": ["b"]}, {"kind": "bf16"}]
    variant = compress(body, plan, data, others={"b": copy.deepcopy(body)})
    assert np.isfinite(variant(part.inputs[:5])).all()
    with pytest.raises(CompressionError, match="pass others"):
        compress(body, plan, data)


def test_an_int8_model_is_not_merged(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    module, signature, settings = toys.toy("mlp")
    parent = toys.put(store, module, signature, settings)
    small = apply_plan(store, parent, (StaticInt8(rows=32),), toys.context((12,)))
    with pytest.raises(CompressionError, match="can neither teach nor be merged"):
        apply_plan(store, parent, (Merge(others=(small,)),), toys.context((12,)))


def test_a_loss_that_is_no_number_is_above_every_barrier() -> None:
    with pytest.raises(CompressionError, match="loss barrier nan"):
        _checked(Merge(others=("b",)), float("nan"), {"parent": 0.5, "b": 0.5})


def test_rows_are_needed() -> None:
    module, signature, _ = toys.toy("mlp")
    context = Context(seed=0, other=lambda name: Other(lambda: module, None))  # noqa: ARG005
    with pytest.raises(CompressionError, match="needs train and validation rows"):
        run_step(Merge(others=("b",)), toys.state(module, signature), context)


def test_side_by_side_is_no_worse_than_the_mean_of_its_parts() -> None:
    parts = [trained("mlp", seed) for seed in (0, 1, 2)]
    state = merged("mlp", parts, method="side_by_side")
    assert state.decisions[0]["barrier"] <= 0
    members = state.module.get_submodule("body.members")
    assert len(list(members.children())) == 3
    for member, part in zip(members.children(), parts, strict=True):
        for name, tensor in part.get_submodule("body").state_dict().items():
            assert torch.equal(member.state_dict()[name], tensor)


def test_what_was_put_side_by_side_is_recovered_as_a_whole() -> None:
    state = merged("mlp", [trained("mlp", seed, epochs=1) for seed in (0, 1)], method="side_by_side")
    shape = toys.MODELS["mlp"][1]
    part = toys.rows(shape, count=256, seed=3)
    context = toys.context(shape, train=part, validation=part)
    thin = run_step(ChannelPruning(amount=0.5), state, context)
    step = Recovery(training=Training(epochs=1, batch_size=32, lr=0.05))
    found = run_step(step, thin, context).module.state_dict()
    for name, before in thin.module.named_parameters():
        assert not torch.equal(found[name], before), name


def test_batch_statistics_are_of_what_a_norm_sees_in_training() -> None:
    """Training pools before the norm, and answers come with the pool behind it."""
    shape = (3, 16, 16)
    module = build(Airbench(kwargs=AirbenchKwargs(widths=(8,))), toys.signature(shape), seed=0).eval()
    part = toys.rows(shape, count=64, seed=3)
    other = copy.deepcopy(module).train()
    for norm in other.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        other(torch.tensor(part.inputs))
    reestimate(module, part, 64)
    wanted = other.state_dict()
    for name, tensor in module.state_dict().items():
        if "running" in name:
            torch.testing.assert_close(tensor, wanted[name])


@pytest.mark.parametrize("scale", [0.01, 1e4])
def test_the_barrier_of_a_regression_is_in_units_of_its_targets(scale: float) -> None:
    signature = toys.signature((12,)).model_copy(
        update={
            "task": "regression",
            "outputs": 1,
            "classes": (),
            "target_mean": (0.0,),
            "target_std": (1.0,),
        }
    )
    part = toys.rows((12,), count=64)
    targets = (scale * np.random.default_rng(0).normal(size=(64, 1))).astype(np.float32)
    loss = _loss_on(replace(part, targets=targets), signature)

    class Nothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 1), float(targets.mean()))

    assert loss(Nothing()) == pytest.approx(1.0, rel=1e-3)


def test_side_by_side_takes_other_architectures_and_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    digests = []
    for name in ("resnet", "resnet9"):
        settings, shape = toys.MODELS[name]
        digests.append(toys.put(store, trained(name, 0, epochs=1), toys.signature(shape), settings))
    step = Merge(others=(digests[1],), method="side_by_side", max_barrier=100.0)
    digest = apply_plan(store, digests[0], (step,), toys.context((3, 16, 16)))
    module = rebuild(store, digest).module
    assert module(example_rows(toys.signature((3, 16, 16)), 2)).shape == (2, toys.CLASSES)
    built = store.manifest(digest).model
    assert isinstance(built, SideBySide)
    factories = [member.factory for member in built.kwargs.members]
    assert factories == ["resnet", "resnet9"]
    smaller = apply_plan(store, digest, (ChannelPruning(amount=0.5),), toys.context((3, 16, 16)))
    assert store.artifact_bytes(smaller) < 0.5 * store.artifact_bytes(digest)


def test_networks_side_by_side_round_each_in_its_own_way() -> None:
    """A transformer of tables takes exact numbers, and an mlp beside it rounded ones."""
    signature = toys.signature((12,))
    bodies = [
        build(settings, signature, seed=0).body for settings in (toys.MODELS["mlp"][0], FtTransformer())
    ]
    joined = Served(signature, Joined(bodies, signature.outputs)).eval()
    rounded = run_step(Bf16(), toys.state(joined, signature), toys.context((12,))).module
    rows = example_rows(signature, 8)
    with torch.no_grad():
        torch.testing.assert_close(rounded(rows), joined(rows), rtol=0.05, atol=0.05)


def test_a_compressed_model_is_not_put_side_by_side() -> None:
    module, signature, settings = toys.toy("mlp")
    state = run_step(Bf16(), replace(toys.state(module, signature), model=settings), toys.context((12,)))
    context = toys.context((12,), other=lambda _: Other(lambda: module, settings))
    with pytest.raises(CompressionError, match="this one was compressed"):
        run_step(Merge(others=("b",), method="side_by_side"), state, context)


def test_networks_side_by_side_are_not_trained_from_scratch() -> None:
    model = {"factory": "side_by_side", "kwargs": {"members": [{"factory": "mlp"}, {"factory": "mlp"}]}}
    with pytest.raises(ValidationError, match="then use step 'merge'"):
        ModelEntry.model_validate({"model": model})
    with pytest.raises(ValidationError, match="merge trains no members"):
        Distill.model_validate({"model": model, "training": {"loss": {"kind": "distillation"}}})
