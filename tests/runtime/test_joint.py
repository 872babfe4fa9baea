"""The check of a compiled graph against the rows that are kept with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.config.ensemble import Member
from orchestrator.config.signature import Signature
from orchestrator.errors import ExecutionError
from orchestrator.runtime.execute import LARGEST_BATCH
from orchestrator.runtime.forms import FLOAT_TOLERANCE, distance
from orchestrator.runtime.joint import SAMPLE, Joint, _check

ROWS = np.arange(6, dtype=np.float32).reshape(2, 3)
_ROWS = {"input_shape": (3,), "input_dtype": "float32", "mean": (0.0,), "std": (1.0,)}
LOGITS = Signature.model_validate({"task": "classification", "outputs": 3, **_ROWS})
VALUES = Signature.model_validate(
    {"task": "regression", "outputs": 1, "target_mean": (0.0,), "target_std": (1.0,), **_ROWS}
)


def kept(path: Path) -> None:
    np.savez(path, rows=ROWS, outputs=2 * ROWS)


def cut(path: Path) -> None:
    kept(path)
    path.write_bytes(path.read_bytes()[:100])


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def without_outputs(path: Path) -> None:
    np.savez(path, rows=ROWS)


def of_another_shape(path: Path) -> None:
    np.savez(path, rows=ROWS, outputs=2 * ROWS[:, :1])


def pickled(path: Path) -> None:
    np.savez(path, rows=np.array([{"a": 1}], dtype=object), outputs=ROWS)


def test_a_graph_that_says_what_was_kept_is_used(tmp_path: Path) -> None:
    kept(tmp_path / SAMPLE)
    _check(lambda rows: 2 * rows, tmp_path / SAMPLE, [1e-5] * 3, LOGITS)
    _check(lambda rows: (2 * rows).bfloat16(), tmp_path / SAMPLE, [1e-5] * 3, LOGITS)
    with pytest.raises(ExecutionError, match="answers otherwise"):
        _check(lambda rows: 2.1 * rows, tmp_path / SAMPLE, [1e-5] * 3, LOGITS)


def test_each_member_is_held_to_its_own_tolerance_and_size(tmp_path: Path) -> None:
    """A float32 member beside a bfloat16 one, and a regression's values in a large unit."""
    kept(tmp_path / SAMPLE)
    off = torch.tensor([1.0, 1.01, 1.0])
    _check(lambda rows: 2 * rows * off, tmp_path / SAMPLE, [1e-5, 0.02, 1e-5], LOGITS)
    with pytest.raises(ExecutionError, match="answers otherwise"):
        _check(lambda rows: 2 * rows * off, tmp_path / SAMPLE, [0.02, 1e-5, 1e-5], LOGITS)
    np.savez(tmp_path / SAMPLE, rows=ROWS, outputs=1e-7 * ROWS)
    _check(lambda rows: 2e-7 * rows, tmp_path / SAMPLE, [1e-5] * 3, LOGITS)
    with pytest.raises(ExecutionError, match="answers otherwise"):
        _check(lambda rows: 2e-7 * rows, tmp_path / SAMPLE, [1e-5] * 3, VALUES)


def test_values_far_from_zero_are_checked_against_their_spread(tmp_path: Path) -> None:
    """A form that answers the targets' mean whatever it is asked is wrong by a whole deviation."""
    kelvin = VALUES.model_copy(update={"target_mean": (1e5,), "target_std": (5.0,)})
    rows = np.arange(-3, 3, dtype=np.float32).reshape(6, 1)
    outputs = torch.from_numpy(1e5 + 5 * rows)
    np.savez(tmp_path / SAMPLE, rows=rows, outputs=outputs[:, None].numpy())
    constant = torch.full_like(outputs, 1e5)
    with pytest.raises(ExecutionError, match="answers otherwise"):
        _check(lambda _: constant[:, None], tmp_path / SAMPLE, [0.02], kelvin)
    _check(lambda rows: (1e5 + 5 * rows)[:, None] + 0.0078125, tmp_path / SAMPLE, [1e-5], kelvin)
    assert distance(constant, outputs) < FLOAT_TOLERANCE
    assert distance(constant, outputs, kelvin) > 0.5
    assert distance(outputs + 0.0078125, outputs, kelvin) == 0, "as float32 rounds"


@pytest.mark.parametrize("damage", [cut, nothing, without_outputs, of_another_shape, pickled, None])
def test_a_damaged_sample_is_a_reason_to_run_eagerly(
    damage: Callable[[Path], None] | None, tmp_path: Path
) -> None:
    if damage is not None:
        damage(tmp_path / SAMPLE)
    with pytest.raises(ExecutionError, match=r"cannot be checked.*they run eagerly"):
        _check(lambda rows: 2 * rows, tmp_path / SAMPLE, [1e-5] * 3, LOGITS)


def test_members_that_are_left_alone_or_come_too_late_are_not_computed() -> None:
    a, b, c = (Member(name=name, digest=digit * 64) for name, digit in (("a", "1"), ("b", "2"), ("c", "3")))
    begun: list[str] = []

    def begin(members: object) -> bool:
        assert isinstance(members, tuple)
        begun.extend(member.name for member in members)
        return "b" not in begun

    joint = Joint((a, b, c), None, (), dict.fromkeys((a, b, c), lambda rows: rows), None)  # type: ignore[arg-type]
    assert list(joint(ROWS, begin)) == [a]
    assert begun == ["a", "b"]
    assert list(joint(ROWS, without=[b])) == [a, c]


def test_many_rows_are_computed_in_pieces_as_long_as_somebody_waits() -> None:
    rows = np.arange(2 * LARGEST_BATCH + 1, dtype=np.float32)[:, None]
    a, sizes = Member(name="a", digest="1" * 64), list[int]()

    def double(part: np.ndarray) -> np.ndarray:
        sizes.append(len(part))
        return 2 * part

    joint = Joint((a,), None, (), {a: double}, None)  # type: ignore[dict-item]
    np.testing.assert_array_equal(joint(rows)[a], 2 * rows)
    assert sizes == [LARGEST_BATCH, LARGEST_BATCH, 1]
    assert joint(rows, lambda _members: len(sizes) < 5) == {}
    assert len(sizes) == 5
