"""Releases in the store: what is written, what is refused, and which one is live."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestrator.config.calibration import Reject
from orchestrator.config.encoding import Number, TableEncoding
from orchestrator.config.ensemble import Cascade, Member, Parallel, Spec, WeightedMix
from orchestrator.config.release import Canary, Release
from orchestrator.ensemble.epochs import reweighted
from orchestrator.errors import ConfigError, CorruptArtifactError, InputError, NotFoundError, RefConflictError
from orchestrator.store import releases
from orchestrator.store.store import Store
from tests.deployments.raws import signature
from tests.deployments.toys import DIGITS, SMALL_MLP, put

NAME = "toys/mix"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "store")
    members = tuple(put(opened, f"mlp{seed}", SMALL_MLP, DIGITS, seed) for seed in (0, 1))
    spec = Spec(name="mix", tree=WeightedMix(members=members, weights=(0.5, 0.5)), signature=DIGITS)
    opened.set_ref(NAME, opened.put_spec(spec))
    return opened


def next_epoch(store: Store, *weights: float) -> str:
    digest = releases.put(store, NAME, reweighted(releases.first(store, NAME), weights=weights))
    releases.promote(store, NAME, digest)
    return digest


def test_the_first_start_makes_a_release_and_later_ones_take_it(store: Store) -> None:
    spec = releases.first(store, NAME)
    assert spec == store.spec(NAME)
    (entry,) = releases.history(store, NAME)
    assert releases.read(store, entry.value).spec == spec
    assert set(releases.read(store, entry.value).libraries) >= {"torch", "numpy"}
    store.set_ref(NAME, store.put_spec(reweighted(spec, weights=(0.9, 0.1))))
    assert releases.first(store, NAME) == spec
    assert len(releases.history(store, NAME)) == 1


def test_no_two_releases_have_one_weight_epoch_also_after_a_rollback(store: Store) -> None:
    first = releases.first(store, NAME)
    second = next_epoch(store, 0.6, 0.4)
    releases.promote(store, NAME, releases.before(store, NAME))
    third = next_epoch(store, 0.7, 0.3)
    epochs = [releases.read(store, digest).spec.weight_epoch for digest in (second, third)]
    assert (first.weight_epoch, *epochs) == (0, 1, 2)
    # The same weights again are the same release; one that only raced for the number is refused.
    assert releases.put(store, NAME, reweighted(first, weights=(0.6, 0.4))) == second
    raced = [releases.put(store, NAME, reweighted(first, weights=pair)) for pair in ((1, 0), (0, 1))]
    releases.promote(store, NAME, raced[0])
    with pytest.raises(RefConflictError, match="took the weight epoch"):
        releases.promote(store, NAME, raced[1])


def test_rolling_back_goes_on_backwards(store: Store) -> None:
    releases.first(store, NAME)
    next_epoch(store, 0.6, 0.4)
    next_epoch(store, 0.7, 0.3)
    values = [entry.value for entry in releases.history(store, NAME)]
    for expected in (values[1], values[0]):
        assert releases.before(store, NAME) == expected
        releases.promote(store, NAME, expected)
    with pytest.raises(NotFoundError, match="no release was live before"):
        releases.before(store, NAME)


def test_a_damaged_release_is_refused_and_a_start_takes_the_one_before(store: Store) -> None:
    first = releases.first(store, NAME)
    digest = next_epoch(store, 0.6, 0.4)
    path = store.blobs.path(f"releases/{digest}.json")
    path.write_bytes(path.read_bytes().replace(b"0.6", b"0.5"))
    with pytest.raises(CorruptArtifactError, match="a release is damaged"):
        releases.read(store, digest)
    with pytest.raises(CorruptArtifactError):
        releases.promote(store, NAME, digest)
    assert releases.first(store, NAME) == first
    assert next_epoch(store, 0.7, 0.3) != digest


def test_releases_that_were_seen_are_not_read_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    releases.first(store, NAME)
    digests = [next_epoch(store, share, 1 - share) for share in (0.25, 0.625, 0.75)]
    read, asked = releases.read, list[str]()

    def counted(store: Store, digest: str) -> Release:
        asked.append(digest)
        return read(store, digest)

    monkeypatch.setattr(releases, "read", counted)
    new = releases.put(store, NAME, reweighted(store.spec(NAME), weights=(0.125, 0.875)))
    assert set(asked) <= {digests[-1]}
    asked.clear()
    releases.promote(store, NAME, new)
    assert set(asked) == {new}
    # One that is there already is verified before it is named.
    store.blobs.path(f"releases/{digests[0]}.json").write_bytes(b"{}")
    assert releases.put(store, NAME, reweighted(store.spec(NAME), weights=(0.25, 0.75))) != digests[0]


def test_a_release_needs_its_members_and_keeps_what_clients_see(store: Store) -> None:
    spec = releases.first(store, NAME)
    gone = spec.model_copy(update={"tree": Member(name="gone", digest="0" * 64)})
    with pytest.raises(NotFoundError):
        releases.put(store, NAME, gone)
    fewer = spec.model_copy(update={"signature": DIGITS.model_copy(update={"classes": ()})})
    with pytest.raises(ConfigError, match="must keep its classes"):
        releases.put(store, NAME, fewer)
    elsewhere = releases.put(store, "toys/elsewhere", fewer.model_copy(update={"weight_epoch": 9}))
    with pytest.raises(ConfigError, match="must keep its classes"):
        releases.promote(store, NAME, elsewhere)
    with pytest.raises(ConfigError, match="must keep its classes"):
        releases.set_canary(store, NAME, Canary(release=elsewhere))


def test_a_release_keeps_the_columns_and_the_outputs_that_clients_know(store: Store) -> None:
    spec = releases.first(store, NAME)
    mix = spec.tree
    assert isinstance(mix, WeightedMix)
    fixed = Reject(threshold=0.5)
    rejecting = spec.model_copy(update={"tree": mix.model_copy(update={"reject": fixed})})
    with pytest.raises(ConfigError, match="must keep its optional outputs"):
        releases.put(store, NAME, rejecting)
    tables = []
    for column in ("age", "years"):
        encoding = TableEncoding(columns=(Number(name=column, fill=0.0),))
        seen = signature(encoding)
        member = put(store, column, SMALL_MLP, seen, 1)
        tables.append(Spec(name="table", tree=member, signature=seen))
    releases.promote(store, "toys/table", releases.put(store, "toys/table", tables[0]))
    with pytest.raises(ConfigError, match=r"must keep its inputs: \('years \(number\)',\)"):
        releases.put(store, "toys/table", tables[1])


def test_what_answered_before_may_do_so_again_whatever_came_between(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = releases.first(store, NAME)
    mix, before = spec.tree, releases.live(store, NAME).value
    assert isinstance(mix, WeightedMix)
    rejecting = spec.model_copy(update={"tree": mix.model_copy(update={"reject": Reject(threshold=0.5)})})
    with monkeypatch.context() as patch:  # as it was once
        patch.setattr(releases, "_check_same", lambda *_: None)
        after = releases.put(store, NAME, rejecting)
        releases.promote(store, NAME, after)
    releases.promote(store, NAME, before)
    with pytest.raises(ConfigError, match="must keep its optional outputs"):
        releases.put(store, NAME, reweighted(rejecting, weights=(0.25, 0.75)))
    releases.promote(store, NAME, after)
    releases.put(store, NAME, reweighted(rejecting, weights=(0.25, 0.75)))


def test_a_long_history_is_read_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    releases.first(store, NAME)
    digests = [next_epoch(store, share, 1 - share) for share in (0.25, 0.625, 0.75, 0.875)]
    read, asked = store.blobs.get, list[str]()

    def counted(key: str) -> bytes:
        asked.append(key)
        return read(key)

    monkeypatch.setattr(store.blobs, "get", counted)
    digest = releases.put(store, NAME, reweighted(store.spec(NAME), weights=(0.125, 0.875)))
    releases.promote(store, NAME, digest)
    assert len([key for key in asked if key.startswith(f"refs/{NAME}/live/")]) <= 3
    listed = list[str]()
    monkeypatch.setattr(store.blobs, "list", lambda folder, **_: listed.append(folder))
    assert releases.live(store, NAME).value == digest
    assert listed == []
    # What another process promoted is seen, and what was removed is not.
    monkeypatch.undo()
    releases.promote(Store(store.root), NAME, digests[0])
    assert releases.live(store, NAME).value == digests[0]
    store.blobs.delete(f"refs/{NAME}/live/{releases.live(store, NAME).sequence:020}.json")
    assert releases.live(store, NAME).value == digest


def test_a_release_is_found_by_its_beginning(store: Store) -> None:
    releases.first(store, NAME)
    digest = next_epoch(store, 0.6, 0.4)
    assert releases.find(store, NAME, digest[:8]) == digest
    for text in ("", digest[:3], "x" * 64, "0" * 64, "../../specs"):
        with pytest.raises(NotFoundError):
            releases.find(store, NAME, text)
    # Two that begin alike cannot be made to order: their files are.
    twin = digest[:8] + "0" * 56
    store.blobs.put(f"releases/{twin}.json", b"{}")
    assert releases.find(store, NAME, digest[:8]) == digest  # the other one is not of this name
    store.set_ref(f"{NAME}/{releases.LIVE}", twin)
    with pytest.raises(InputError, match="2 releases begin so"):
        releases.find(store, NAME, digest[:8])


def test_a_canary_is_over_when_it_is_promoted(store: Store) -> None:
    first = releases.first(store, NAME)
    digest = releases.put(store, NAME, reweighted(first, weights=(0.6, 0.4)))
    assert releases.canary(store, NAME)[1] is None
    with pytest.raises(NotFoundError):
        releases.set_canary(store, NAME, Canary(release="0" * 64))
    releases.set_canary(store, NAME, Canary(release=digest, share=0.5))
    # Its weight epoch is taken, though it never was live.
    assert releases.read(store, next_epoch(store, 0.8, 0.2)).spec.weight_epoch == 2
    releases.promote(store, NAME, digest)
    found = releases.canary(store, NAME)[1]
    assert found is not None
    assert (found.release, found.stopped) == (digest, "promoted")


def test_numbers_that_do_not_fit_and_promises_that_do_not_hold(store: Store) -> None:
    spec = releases.first(store, NAME)
    mix = spec.tree
    assert isinstance(mix, WeightedMix)
    for wrong, said in (
        ((0.5,), "2 members need"),
        ((0.6, 0.6), "got (0.6, 0.6)"),
        ((-0.5, 1.5), "got (-0.5"),
    ):
        with pytest.raises(ConfigError, match=rf"^mix: (?!Value error).*{re.escape(said)}"):
            reweighted(spec, weights=wrong)
    with pytest.raises(ConfigError, match="no thresholds"):
        reweighted(spec, thresholds=(0.5,))
    pooled = spec.model_copy(update={"tree": Parallel(members=mix.members)})
    with pytest.raises(ConfigError, match="no weights"):
        reweighted(pooled, weights=(0.5, 0.5))
    cascade = spec.model_copy(update={"tree": Cascade(stages=mix.members, thresholds=(0.5,))})
    changed = reweighted(cascade, thresholds=(0.75,)).tree
    assert isinstance(changed, Cascade)
    assert changed.thresholds == (0.75,)
