"""Weights that the user has: read without running code, loaded by name, refused clearly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.errors import ModelError
from orchestrator.models.build import build
from orchestrator.models.served import Served
from orchestrator.models.weights import load_into, read_weights
from orchestrator.store.artifacts import pack_tensors
from tests.models.toys import DIGITS, SMALL, rows, signature


def model(seed: int, name: str = "resnet") -> Served:
    return build(SMALL[name], signature(DIGITS), seed=seed).eval()


@pytest.mark.parametrize("prefix", ["", "body.", "module.", "module.body."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth"])
def test_a_round_trip_gives_equal_answers(prefix: str, suffix: str, tmp_path: Path) -> None:
    source, target, path = model(1), model(2), tmp_path / f"weights{suffix}"
    tensors = {prefix + name.removeprefix("body."): tensor for name, tensor in source.state_dict().items()}
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    load_into(target, read_weights(path))
    assert torch.equal(source(rows(DIGITS, 3)), target(rows(DIGITS, 3)))


def test_a_file_that_leaves_zeros_out_is_read(tmp_path: Path) -> None:
    sent = {"weight": torch.rand(40, 50) * (torch.rand(40, 50) > 0.9), "bias": torch.rand(40)}
    path = tmp_path / "weights.safetensors"
    path.write_bytes(pack_tensors(sent))
    assert path.stat().st_size < 3000
    found = read_weights(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in sent.items())


def test_what_others_say_of_their_files_means_nothing_here(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"bias": torch.ones(3)}, path, {"packed": "true", "format": "pt"})
    assert torch.equal(read_weights(path)["bias"], torch.ones(3))


def test_a_bare_module_takes_names_with_and_without_prefix() -> None:
    source, target = model(1, "mlp"), model(2, "mlp")
    load_into(target.body, source.state_dict())
    assert torch.equal(source(rows(DIGITS, 2)), target(rows(DIGITS, 2)))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_the_weights_of_a_checkpoint_are_found(key: str, tmp_path: Path) -> None:
    wanted = model(1, "mlp").state_dict()
    torch.save({"epoch": 3, key: wanted, "optimizer": {"state": {}}}, tmp_path / "c.pt")
    found = read_weights(tmp_path / "c.pt")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


class Wrapped(nn.Module):
    """A user's network with a part that is itself called `body`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x.flatten(1))
        return out


@pytest.mark.parametrize("prefix", ["", "body.", "module."])
def test_a_network_with_a_part_called_body_is_not_confused(prefix: str) -> None:
    source, target = Wrapped(), Served(signature(DIGITS), Wrapped())
    load_into(target, {prefix + name: tensor for name, tensor in source.state_dict().items()})
    assert torch.equal(target.get_parameter("body.body.weight"), source.body.weight)


def test_half_precision_weights_are_cast() -> None:
    target = model(2, "mlp")
    load_into(target, {name: tensor.half() for name, tensor in model(1, "mlp").state_dict().items()})
    assert {parameter.dtype for parameter in target.parameters()} == {torch.float32}


class Hostile:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_file_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    torch.save({"weight": torch.zeros(1), "payload": Hostile(marker)}, tmp_path / "bad.pt")
    with pytest.raises(ModelError, match=r"cannot read the weights.*bad\.pt\. save only the weights"):
        read_weights(tmp_path / "bad.pt")
    assert not marker.exists()


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(model(1, "mlp"), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match="save only the weights"):
        read_weights(tmp_path / "whole.pt")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\xff" * 64])
def test_a_broken_file_is_refused(suffix: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=f"cannot read the weights.*broken{suffix}"):
        read_weights(path)


@pytest.mark.parametrize("name", ["absent.pt", "weights.onnx"])
def test_a_missing_file_or_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "weights.onnx").write_bytes(b"x")
    with pytest.raises(ModelError, match=name):
        read_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([torch.zeros(1)], "holds a list, not tensors by name"),
        ({}, "not tensors by name"),
        ({"weight": torch.zeros(1), "epoch": 3}, "more than tensors: epoch is a int"),
    ],
)
def test_something_other_than_tensors_by_name_is_refused(value: object, message: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "odd.pt")
    with pytest.raises(ModelError, match=message):
        read_weights(tmp_path / "odd.pt")


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    tensors: dict[str, Tensor | None] = {**model(1, "mlp").state_dict(), **changes}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def test_names_that_do_not_fit_are_told_with_the_nearest() -> None:
    target = model(2, "mlp")
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    tensors = changed(**{"body.1.weight": None, "body.1.weights": torch.zeros(16, 64)})
    with pytest.raises(ModelError) as caught:
        load_into(target, tensors)
    assert "missing 1.weight (nearest: 1.weights); unknown 1.weights (nearest: 1.weight)" in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_many_wrong_names_are_counted_not_listed() -> None:
    with pytest.raises(ModelError, match=r"and \d+ more") as caught:
        load_into(model(1), model(1, "vit").state_dict())
    assert len(str(caught.value)) < 400


def test_shapes_that_differ_are_told() -> None:
    target = model(2, "mlp")
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(ModelError, match=r"1\.bias is \[5\], the model has \[16\]"):
        load_into(target, changed(**{"body.1.bias": torch.zeros(5)}))
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())
