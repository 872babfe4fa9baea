"""Refs: an append-only history without gaps, whoever races."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.errors import CorruptArtifactError, InputError, NotFoundError, RefConflictError
from orchestrator.store.store import Store
from tests.store.toys import D1, D2, D3, in_processes


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_history(store: Store) -> None:
    assert store.ref_history("digits/teacher") == []
    assert [store.set_ref("digits/teacher", digest) for digest in (D1, D2, D2, D1)] == [1, 2, 2, 3]
    assert store.ref("digits/teacher") == D1
    history = store.ref_history("digits/teacher")
    assert [(entry.sequence, entry.value) for entry in history] == [(1, D1), (2, D2), (3, D1)]
    assert history[0].created_at <= history[-1].created_at
    assert (store.root / "refs/digits/teacher/00000000000000000003.json").is_file()


def test_names_may_nest(store: Store) -> None:
    for name in ("digits/b", "digits/a", "digits/a/deep", "digits2/a", "top"):
        store.set_ref(name, D1)
    assert store.refs() == ["digits/a", "digits/a/deep", "digits/b", "digits2/a", "top"]
    assert store.refs("digits/") == ["digits/a", "digits/a/deep", "digits/b"]
    assert len(store.ref_history("digits/a")) == 1


def test_compare_and_set(store: Store) -> None:
    assert store.set_ref("a", D1, expect=0) == 1
    assert store.set_ref("a", D2, expect=1) == 2
    with pytest.raises(RefConflictError, match=r"expected entry 1, found 2.*a\. look"):
        store.set_ref("a", D3, expect=1)
    with pytest.raises(RefConflictError, match="expected entry 0, found 2"):
        store.set_ref("a", D2, expect=0)
    assert store.ref("a") == D2


def test_resolve(store: Store) -> None:
    store.set_ref("digits/teacher", D1)
    store.set_ref("odd", "no digest")
    assert store.resolve("digits/teacher") == store.resolve(D1) == D1
    assert store.resolve(D2) == D2
    with pytest.raises(NotFoundError, match="did you mean 'digits/teacher'"):
        store.resolve("digits/techer")
    with pytest.raises(NotFoundError, match="not a digest"):
        store.resolve("odd")


@pytest.mark.parametrize(
    "name", ["", "/a", "a/", "../a", "a//b", "a b", ".hidden", "a/00000000000000000001.json", "é", "x" * 129]
)
def test_bad_names(store: Store, name: str) -> None:
    with pytest.raises(InputError, match="not a name"):
        store.set_ref(name, D1)
    with pytest.raises(InputError, match="not a name"):
        store.ref(name)


@pytest.mark.parametrize("value", ["", "x" * 1001])
def test_bad_values(store: Store, value: str) -> None:
    with pytest.raises(InputError, match="1 to 1000 characters"):
        store.set_ref("a", value)


def test_a_damaged_entry_is_named(store: Store) -> None:
    store.set_ref("a", D1)
    path = store.root / "refs/a/00000000000000000001.json"
    good = path.read_text()
    for bad in ("", "{}", "[]", good.replace('"sequence":1', '"sequence":2')):
        path.write_text(bad)
        with pytest.raises(CorruptArtifactError, match=r"refs/a/0+1\.json"):
            store.ref("a")


def test_four_processes_leave_no_gap(store: Store) -> None:
    def work(number: int) -> None:
        for turn in range(10):
            store.set_ref("race", f"{number}-{turn}")

    assert in_processes(4, work) == [0, 0, 0, 0]
    history = store.ref_history("race")
    assert [entry.sequence for entry in history] == list(range(1, 41))
    values = [entry.value for entry in history]
    assert sorted(values) == sorted(f"{number}-{turn}" for number in range(4) for turn in range(10))
    for number in range(4):
        own = [value for value in values if value.startswith(f"{number}-")]
        assert own == [f"{number}-{turn}" for turn in range(10)], "each writer's order is kept"


def test_of_four_processes_with_the_same_expectation_one_wins(store: Store) -> None:
    def work(number: int) -> None:
        try:
            store.set_ref("race", f"by {number}", expect=0)
        except RefConflictError:
            raise SystemExit(7) from None

    assert sorted(in_processes(4, work)) == [0, 7, 7, 7]
    assert len(store.ref_history("race")) == 1
