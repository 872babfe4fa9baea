"""The least bytes of a search's variants, against the variants themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.compression.plan import apply_plan
from orchestrator.config.run import ModelEntry
from orchestrator.config.search import SearchSettings
from orchestrator.config.space import grid
from orchestrator.config.steps import EXECUTIONS
from orchestrator.config.tuning import TrainingSearch
from orchestrator.models.build import build
from orchestrator.search.smallest import _BITS, least_bytes, least_trained_bytes
from orchestrator.search.space import plan_of
from orchestrator.store.store import Store
from tests.compression import toys

SHAPE = (1, 8, 8)
TYPES = ["bf16", "int8_weight_only", "int4_weight_only"]


def least(*plan: object, **more: Any) -> int | None:
    settings = SearchSettings.model_validate({"space": {"plan": list(plan)}, "arms": False, **more})
    module, signature, _ = toys.toy("cnn")
    return least_bytes(settings, module, signature, ())


def prune(amount: object = 0.5, **more: object) -> dict[str, object]:
    return {"kind": "prune_channels", "amount": amount, **more}


def types(*names: str) -> dict[str, object]:
    return {"choice": [{"kind": name} for name in names]}


def weights(model: str = "cnn") -> int:
    module, _, _ = toys.toy(model)
    return sum(weight.numel() for name, weight in module.named_parameters() if weight.ndim > 1)


def weights_file(store: Store, digest: str) -> int:
    """Bytes of it, with zeros left out where that makes it smaller."""
    (file,) = (store.root / "artifacts" / digest).glob("*.safetensors")
    return file.stat().st_size


def test_no_variant_is_smaller_and_the_smallest_is_near(tmp_path: Path) -> None:
    module, signature, model = toys.toy("cnn")
    store = Store(tmp_path)
    parent = toys.put(store, module, signature, model)
    plan = [
        prune({"choice": [0.25, 0.5]}, criterion={"choice": ["l1", "bn_scale"]}, round_to=2),
        types(*TYPES),
    ]
    for names in (["bf16"], ["int8_weight_only"], TYPES):
        settings = SearchSettings.model_validate({"space": {"plan": [plan[0], types(*names)]}, "arms": False})
        found = least_bytes(settings, module, signature, ())
        assert found is not None
        digests = [
            apply_plan(store, parent, plan_of(config, settings), toys.context(SHAPE))
            for config in grid(settings.space) or []
        ]
        assert found <= min(weights_file(store, digest) for digest in digests), names
        unpacked = [sum(tensor.nbytes for tensor in store.tensors(digest).values()) for digest in digests]
        assert found <= min(unpacked) < 2.5 * found, names


def test_nothing_is_known_where_a_file_may_leave_zeros_out(tmp_path: Path) -> None:
    module, signature, model = toys.toy("cnn")
    store = Store(tmp_path)
    magnitude = {"kind": "prune_magnitude", "amount": 0.9}
    settings = SearchSettings.model_validate({"space": {"plan": [magnitude]}, "arms": False})
    plan = plan_of({}, settings)
    digest = apply_plan(store, toys.put(store, module, signature, model), plan, toys.context(SHAPE))
    assert weights_file(store, digest) < 2 * weights(), "half of what they take in memory"
    sparsify = {"amount": 0.5}
    taught: dict[str, object] = {"loss": {"kind": "distillation"}}
    student = {"kind": "distill", "model": model.plain(), "training": taught}
    for step in (
        magnitude,
        {"kind": "recover", "training": {"sparsify": sparsify}},
        {**student, "training": {**taught, "sparsify": sparsify}},
        prune(rounds=2, recovery={"sparsify": sparsify}),
    ):
        assert least({"choice": [None, step]}, types("bf16")) is None
    assert least(student) is not None
    assert least(prune(rounds=2)) is not None


def test_what_changes_no_shape_and_what_cannot_be_told() -> None:
    whole = weights()
    clip = {"kind": "clip", "percentile": {"range": [99.0, 99.9]}}
    assert least(clip) == 4 * whole
    assert least({"kind": "recover", "training": {"lr": {"range": [0.01, 0.1]}}}, types("bf16")) == 2 * whole
    assert least(clip, types("int8_static", "bf16")) == whole
    # The arm in bfloat16 is a candidate like any variant.
    assert least(clip, arms=True) == 2 * whole
    half, most = least(prune()), least(prune({"range": [0.1, 0.5]}))
    assert half is not None
    assert 4 * whole / 5 < half < 4 * whole / 2
    assert most == half, "the range's end counts"
    for unknown in (
        prune(scope="global"),
        {"kind": "prune_channels", "macs": 0.5},
        {"kind": "factorize", "rank": 0.5},
    ):
        assert least(unknown) is None
        assert least({"choice": [None, unknown]}) is None


def test_a_student_has_its_own_weights() -> None:
    kwargs = {"depth": 8, "width": {"range": [4, 8]}}
    student = {
        "kind": "distill",
        "model": {"factory": "resnet", "kwargs": kwargs},
        "training": {"loss": {"kind": "distillation"}},
    }
    settings = SearchSettings.model_validate({"space": {"plan": [student]}, "arms": False})
    module, signature, _ = toys.toy("resnet")
    narrow = {**student, "model": {"factory": "resnet", "kwargs": {**kwargs, "width": 4}}}
    same = SearchSettings.model_validate(
        {"space": {"plan": [narrow, {"choice": [None, {"kind": "clip"}]}]}, "arms": False}
    )
    found = least_bytes(settings, module, signature, ())
    assert found == least_bytes(same, module, signature, ())
    assert found is not None
    assert 0 < found < 4 * weights("resnet") / 3


def test_a_search_over_trainings_takes_its_narrowest_model() -> None:
    signature = toys.signature((12,))
    entry = ModelEntry.model_validate({"model": {"factory": "mlp", "kwargs": {"widths": [32]}}})

    def found(space: dict[str, Any]) -> int | None:
        return least_trained_bytes(TrainingSearch.model_validate({"space": space}), entry, signature, ())

    assert found({"training": {"lr": {"range": [0.01, 0.1]}}}) == 4 * 32 * (12 + toys.CLASSES)
    assert found({"model": {"kwargs": {"widths": {"choice": [[16], [8]]}}}}) == 4 * 8 * (12 + toys.CLASSES)
    assert found({"training": {"sparsify": {"choice": [None, {"amount": 0.5}]}}}) is None


def test_every_number_type_has_a_least_width() -> None:
    assert set(_BITS) == set(EXECUTIONS)


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_weights_do_not_matter(kind: str) -> None:
    """What pruning the same share of each layer leaves is known of an untrained model."""
    _, signature, model = toys.toy(kind)
    settings = SearchSettings.model_validate(
        {"space": {"plan": [prune({"choice": [0.3, 0.6]})]}, "arms": False}
    )
    sizes = {least_bytes(settings, build(model, signature, seed=seed), signature, ()) for seed in range(3)}
    assert len(sizes) == 1
    assert None not in sizes
