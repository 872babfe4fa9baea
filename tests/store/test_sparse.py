"""Tensors of many zeros, and equal ones: smaller in the file, bit-equal when read, bounded by its bytes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from orchestrator.config.base import canonical
from orchestrator.errors import CorruptArtifactError
from orchestrator.store import sparse
from orchestrator.store.artifacts import MANIFEST, PACKED, WEIGHTS, pack_tensors, unpack_tensors
from orchestrator.store.store import Store
from tests.store.toys import draft

TYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
]


def _sparse(zeros: float, dtype: torch.dtype = torch.float32, size: int = 5000) -> Tensor:
    drawn = torch.Generator().manual_seed(0)
    values = torch.randint(1, 100, (size,), generator=drawn).to(dtype)
    return torch.where(torch.rand(size, generator=drawn) < zeros, torch.zeros((), dtype=dtype), values)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("shape", [(5000,), (50, 4, 5, 5), (1, 5000, 1)])
def test_every_type_and_shape_comes_back_bit_equal(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = _sparse(0.9, dtype).reshape(shape)
    stored, how = sparse.pack({"x": sent})
    assert set(how) == {"x"}
    assert stored["x"].numel() < sent.numel() * sent.element_size() / 2
    found = sparse.unpack(stored, how)["x"]
    assert found.dtype == dtype
    assert found.shape == sent.shape
    assert torch.equal(found.view(torch.uint8), sent.view(torch.uint8))


@given(
    data=st.lists(st.sampled_from([0.0, -0.0, 1.5, float("nan"), float("inf"), 1e-45]), min_size=1),
    times=st.integers(1, 2000),
)
@settings(max_examples=60, deadline=None)
def test_every_bit_of_odd_numbers_comes_back(data: list[float], times: int) -> None:
    sent = torch.tensor(data).repeat(times)
    found = sparse.unpack(*sparse.pack({"x": sent}))["x"]
    assert torch.equal(found.view(torch.int32), sent.view(torch.int32))


def test_what_gains_nothing_stays_as_it_is() -> None:
    tensors = {
        "dense": _sparse(0.0),
        "few zeros": _sparse(0.2),
        "small": torch.zeros(60),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(0),
        "complex": torch.zeros(900, dtype=torch.complex64),
    }
    stored, how = sparse.pack(tensors)
    assert how == {}
    assert all(stored[name] is tensor for name, tensor in tensors.items())


def test_no_tensor_is_packed_tighter_than_a_reader_bears() -> None:
    vast = torch.zeros(1_000_000)
    assert sparse.pack({"x": vast})[1] == {}
    vast[::40] = torch.rand(25_000)
    stored, how = sparse.pack({"x": vast})
    assert torch.equal(sparse.unpack(stored, how)["x"], vast)


def test_zeros_are_left_out_of_the_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sent = {"weight": _sparse(0.8, torch.int8, 200_000).view(20, -1), "bias": torch.rand(20)}
    digest = store.put_artifact(draft(), sent)
    assert store.artifact_bytes(digest) < 0.4 * 200_000
    assert all(torch.equal(found, sent[name]) for name, found in store.tensors(digest).items())
    assert store.put_artifact(draft(), dict(reversed(sent.items()))) == digest
    store.verify(digest)


def test_equal_tensors_are_kept_once_whether_they_share_memory_or_not() -> None:
    tied = torch.rand(40, 50)
    once = len(pack_tensors({"a": tied, "b": torch.rand(40, 50)})) / 2
    for other in (tied, tied.clone(), tied.t().clone().t()):
        assert len(pack_tensors({"b": other, "a": tied})) < once + 200
        assert pack_tensors({"b": other, "a": tied}) == pack_tensors({"a": tied.clone(), "b": tied})
    sent = {"b": tied, "a": tied, "c": tied.view(torch.int32), "d": _sparse(0.9), "e": _sparse(0.9)}
    found = unpack_tensors(pack_tensors(sent))
    assert found.keys() == sent.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in sent.items())
    assert set(sparse.pack(sent)[0]) == {"a", "c", "d"}


def test_what_is_equal_by_chance_is_kept_as_ever() -> None:
    """A norm's start, and little things: files of models without ties have the bytes they always had."""
    sent = {"a": torch.ones(500), "b": torch.ones(500), "c": torch.arange(60.0), "d": torch.arange(60.0)}
    assert pack_tensors(sent) == save(sent)


def _file_of(stored: dict[str, Tensor], metadata: str) -> bytes:
    return save(stored, {PACKED: metadata})


GOOD = sparse.pack({"x": _sparse(0.9)})
HOW = GOOD[1]["x"]
assert isinstance(HOW, list)
BORDER = HOW[2]


@pytest.mark.parametrize(
    "how",
    [
        {"x": ["float32", [5001], BORDER]},
        {"x": ["float32", [4000], BORDER]},
        {"x": ["float32", [5000], BORDER - 1]},
        {"x": ["float32", [5000], BORDER + 1]},
        {"x": ["float32", [5000], -1]},
        {"x": ["int64", [5000], BORDER]},
        {"x": ["float32", [2**40], BORDER]},
        {"x": ["float32", [-5000], BORDER]},
        {"x": ["float32", [5000.5], BORDER]},
        {"x": ["float32", ["5000"], BORDER]},
        {"x": ["hub", [5000], BORDER]},
        {"x": ["float32", None, None]},
        {"x": []},
        {"y": ["float32", [5000], BORDER]},
        ["x"],
        {"x": 1},
        {"x": "x"},
        {"y": "z"},
        {"y": "z", "z": "y"},
    ],
    ids=str,
)
def test_metadata_that_does_not_fit_is_damage(tmp_path: Path, how: Any) -> None:
    weights = _file_of(GOOD[0], json.dumps(how))
    with pytest.raises(CorruptArtifactError, match="no readable safetensors"):
        _read(tmp_path, weights)


@pytest.mark.parametrize("metadata", ["", "{", "[" * 100_000, "null"])
def test_metadata_that_is_no_object_is_damage(tmp_path: Path, metadata: str) -> None:
    with pytest.raises(CorruptArtifactError, match="no readable safetensors"):
        _read(tmp_path, _file_of(GOOD[0], metadata))


def test_other_metadata_means_nothing(tmp_path: Path) -> None:
    sent = {"x": torch.rand(7)}
    assert torch.equal(_read(tmp_path, save(sent, {"format": "pt"}))["x"], sent["x"])
    assert pack_tensors(sent) == save(sent)


def _read(root: Path, weights: bytes) -> dict[str, Tensor]:
    store = Store(root)
    plain = {**draft().plain(), "files": {WEIGHTS: hashlib.sha256(weights).hexdigest()}}
    manifest = canonical(plain)
    digest = hashlib.sha256(manifest).hexdigest()
    folder = root / "artifacts" / digest
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_bytes(manifest)
    (folder / WEIGHTS).write_bytes(weights)
    return store.tensors(digest)
