"""Looking after a store: gc takes only what nothing reaches, repair says what it did, schemas migrate."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from orchestrator.config.base import fingerprint
from orchestrator.config.ensemble import Member, Parallel, Spec
from orchestrator.errors import ForeignStoreError, InputError, NotFoundError, StoreLockedError
from orchestrator.store import keeping, releases, schema, signing
from orchestrator.store.artifacts import MANIFEST, WEIGHTS, Draft
from orchestrator.store.blobs import Blobs
from orchestrator.store.leases import Lease
from orchestrator.store.store import Store
from tests.store.toys import SIGNATURE, draft, in_processes, tensors

HOUR = 3600.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs/store")


def _aged(store: Store, hours: float = 48.0) -> None:
    then = time.time() - hours * HOUR
    for path in store.root.rglob("*"):
        os.utime(path, (then, then))


def _with_parents(seed: int, *parents: str) -> Draft:
    return draft(seed).model_copy(update={"parents": parents})


def _collect(store: Store, **more: object) -> keeping.Collected:
    return keeping.collect(store, grace_s=24 * HOUR, dry_run=bool(more.pop("dry_run", False)), **more)  # type: ignore[arg-type]


def test_gc_takes_only_what_nothing_reaches(store: Store, tmp_path: Path) -> None:
    parent = store.put_artifact(_with_parents(0), tensors())
    named = store.put_artifact(_with_parents(1, parent), tensors())
    former = store.put_artifact(_with_parents(2), tensors())
    member = store.put_artifact(_with_parents(3), tensors())
    shown = store.put_artifact(_with_parents(4), tensors())
    tried = store.put_artifact(_with_parents(5), tensors())
    lost = store.put_artifact(_with_parents(6), tensors())
    store.set_ref("digits/a", former)
    store.set_ref("digits/a", named)
    members = (Member(name="a", digest=member), Member(name="b", digest=named))
    store.put_spec(Spec(name="both", tree=Parallel(members=members), signature=SIGNATURE))
    summary = tmp_path / "runs/first/summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text(json.dumps({"models": {"a": {"digest": shown}}}))
    store.blobs.put("studies/s/trials/1.json", json.dumps({"digest": tried}).encode())
    store.stage("made", lambda: lost)
    store.add_record(lost, {"x": 1})
    store.add_record(named, {"x": 1})
    (tmp_path / "form").mkdir()
    (tmp_path / "form/f").write_bytes(b"x" * 1000)
    store.publish_folder(lost, "t", tmp_path / "form")
    _aged(store)
    before = {str(path) for path in store.root.rglob("*") if path.parts[-2] != "leases"}
    planned = _collect(store, dry_run=True, results=[summary])
    assert {str(path) for path in store.root.rglob("*")} >= before
    done = _collect(store, results=[summary])
    assert set(planned.removed) == set(done.removed)
    assert set(store.digests()) == {parent, named, former, member, shown, tried}
    assert (done.kept, done.young) == (6, 0)
    assert done.bytes > 1000
    assert store.stage_result("made") is None
    assert store.records(lost) == []
    assert store.compiled(lost, "t") is None
    assert len(store.records(named)) == 1
    _aged(store)
    assert _collect(store, results=[summary], studies=True).removed[:1] == ["studies/s"]
    assert tried not in store.digests()
    assert keeping.damages(store) == []


def test_gc_keeps_a_graph_of_several_members_as_long_as_all_of_them(store: Store, tmp_path: Path) -> None:
    kept, lost = (store.put_artifact(_with_parents(seed), tensors()) for seed in (0, 1))
    store.set_ref("digits/a", kept)
    (tmp_path / "form").mkdir()
    (tmp_path / "form/f").write_bytes(b"machine code")
    store.publish_folder("a" * 64, "t", tmp_path / "form", {"members": [kept]})
    store.publish_folder("b" * 64, "t", tmp_path / "form", {"members": [kept, lost]})
    _aged(store)
    assert f"compiled/{'b' * 64}" in _collect(store).removed
    assert store.compiled("a" * 64, "t") is not None
    assert store.compiled("b" * 64, "t") is None


def test_gc_keeps_signatures_of_a_graph_of_several_members(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, lost = (store.put_artifact(_with_parents(seed), tensors()) for seed in (0, 1))
    store.set_ref("digits/a", kept)
    (tmp_path / "form").mkdir()
    (tmp_path / "form/f").write_bytes(b"machine code")
    monkeypatch.setenv(signing.KEY_VARIABLE, str(tmp_path / "key.pem"))
    monkeypatch.setenv("ORCHESTRATOR_COPIES", str(tmp_path / "copies"))
    trusted = Store(f"{store.root}#signed-by={signing.make_key(tmp_path / 'key.pem')}")
    trusted.publish_folder("a" * 64, "t", tmp_path / "form", {"members": [kept]})
    trusted.publish_folder("b" * 64, "t", tmp_path / "form", {"members": [kept, lost]})
    _aged(store)
    gone = {f"{top}/{'b' * 64}" for top in ("compiled", "signatures")} | {f"artifacts/{lost}"}
    gone |= {f"signatures/{lost}"} if store.blobs.list(f"signatures/{lost}") else set()
    assert set(_collect(store, dry_run=True).removed) == gone
    assert set(_collect(store).removed) - {".tmp"} == gone
    assert trusted.compiled("a" * 64, "t") is not None


def test_gc_keeps_what_is_recorded_of_a_spec_that_only_a_release_holds(store: Store) -> None:
    digest = store.put_artifact(_with_parents(0), tensors())
    served = Spec(name="one", tree=Member(name="a", digest=digest), signature=SIGNATURE, weight_epoch=3)
    releases.put(store, "one", served)
    store.add_record(fingerprint(served.plain()), {"kind": "placement"})
    _aged(store)
    _collect(store)
    assert len(store.records(fingerprint(served.plain()))) == 1


def test_gc_takes_states_that_nobody_went_on_with_for_a_month(store: Store) -> None:
    for key in ("failed", "running", "stopped", "younger"):
        for name in ("000004-state.json", "000004-state.safetensors"):
            store.blobs.put(f"checkpoints/{key}/{name}", b"x" * 10)
    store.blobs.put("checkpoints/failed/round/000001-state.json", b"x" * 10)
    store.blobs.put("checkpoints/younger/000005-state.json", b"x" * 10)
    _aged(store, hours=31 * 24)
    (path,) = store.root.glob("checkpoints/younger/000005-state.json")
    os.utime(path, (time.time() - 29 * 24 * HOUR,) * 2)
    for path in store.root.glob("checkpoints/stopped/*"):
        os.utime(path, (time.time() - 29 * 24 * HOUR,) * 2)

    def running() -> str:
        assert _collect(store, dry_run=True).bytes == 30
        assert _collect(store).removed[0] == "checkpoints/failed"
        return "done"

    store.stage("running", running)
    left = {path.name for path in store.root.glob("checkpoints/*")}
    assert left == {"running", "stopped", "younger"}
    assert not store.blobs.list("leases/stages/failed")


def test_gc_leaves_states_of_a_training_that_began_anew_meanwhile(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.blobs.put("checkpoints/work/000001-state.json", b"x")
    _aged(store, hours=31 * 24)

    def ended(_: Lease) -> None:
        store.blobs.put("checkpoints/work/000001-state.json", b"y")

    monkeypatch.setattr(Lease, "settled_holder", ended)
    assert "checkpoints/work" not in _collect(store).removed
    assert store.blobs.get("checkpoints/work/000001-state.json") == b"y"


def test_to_verify_a_compiled_form_is_not_to_use_it(store: Store, tmp_path: Path) -> None:
    digest = store.put_artifact(draft(0), tensors())
    (tmp_path / "form").mkdir()
    (tmp_path / "form/f").write_bytes(b"machine code")
    place = store.publish_folder(digest, "t", tmp_path / "form")
    _aged(store)
    entry = place / "entry.json"
    before = entry.stat().st_mtime
    assert keeping.damages(store) == []
    assert entry.stat().st_mtime == before
    (place / "f").write_bytes(b"other code")
    (damage,) = keeping.damages(store)
    assert (damage.kind, damage.key) == ("compiled", f"compiled/{digest}/t")
    (place / "f").write_bytes(b"machine code")
    assert store.compiled(digest, "t") == place
    assert entry.stat().st_mtime > before


@pytest.mark.parametrize("folder", ["", "{digest}/", "{digest}/deeper/", "notes/"])
@pytest.mark.parametrize("name", ["README", ".DS_Store", ".nfs0001", "two words"])
@pytest.mark.parametrize("top", ["artifacts", "compiled", "predictions", "studies", "leases/folders"])
def test_files_of_others_are_in_nobodys_way(store: Store, top: str, folder: str, name: str) -> None:
    digest = store.put_artifact(_with_parents(0), tensors())
    store.set_ref("digits/a", digest)
    store.add_record(digest, {"x": 1})
    path = store.root / top / folder.format(digest=digest) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"theirs")
    inside = top == "artifacts" and "digest" in folder and name == "README"
    found = [damage.kind for damage in keeping.damages(store)]
    assert found == ["artifact"] if inside else found in ([], ["unfinished"])
    _aged(store)
    _collect(store)
    assert store.digests() == [digest]
    keeping.repair(store)
    assert store.digests() == ([] if inside else [digest])


def test_a_death_within_gc_leaves_no_result_that_misleads(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = store.put_artifact(_with_parents(0), tensors())
    store.stage_value("chosen", lambda: {"digest": lost})
    _aged(store)

    def die(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(store.blobs, "delete_folder", die)
    with pytest.raises(KeyboardInterrupt):
        _collect(store)
    monkeypatch.undo()
    assert store.stage_result("chosen") is None
    assert lost in _collect(store).removed[0]


def test_gc_spares_what_is_young_or_was_looked_up(store: Store) -> None:
    old, again, found = (store.put_artifact(_with_parents(seed), tensors()) for seed in range(3))
    store.stage("made", lambda: found)
    _aged(store)
    new = store.put_artifact(_with_parents(9), tensors())
    store.put_artifact(_with_parents(1), tensors())
    assert store.stage("made", lambda: "never") == found
    done = _collect(store)
    assert set(store.digests()) == {new, again, found}
    assert (done.kept, done.young) == (0, 3)
    assert not store.has(old)


def test_gc_spares_what_young_artifacts_were_made_of(store: Store) -> None:
    teacher, other = (store.put_artifact(_with_parents(seed), tensors()) for seed in range(2))
    _aged(store)
    student = store.put_artifact(_with_parents(2, teacher), tensors())
    assert _collect(store).young == 2
    assert set(store.digests()) == {teacher, student}
    assert not store.has(other)


def test_gc_spares_what_a_looked_up_result_names(store: Store) -> None:
    found = store.put_artifact(_with_parents(0), tensors())
    store.stage("trial", lambda: json.dumps({"digest": found, "metric": 0.5}))
    _aged(store)
    assert store.stage_result("trial") is not None
    assert _collect(store).young == 1
    _aged(store)
    assert _collect(store).young == 0
    assert not store.has(found)


def test_gc_beside_writers_loses_nothing_that_they_name(store: Store) -> None:
    idle = [store.put_artifact(_with_parents(seed), tensors()) for seed in range(6)]
    _aged(store)

    def work(number: int) -> None:
        for turn in range(15):
            if number == 0:
                keeping.collect(store, grace_s=24 * HOUR, dry_run=False)
                continue
            digest = store.put_artifact(_with_parents(10 + (number + turn) % 6), tensors())
            store.set_ref(f"toys/{number}-{turn}", digest)
            store.verify(digest)

    assert in_processes(3, work) == [0, 0, 0]
    assert keeping.damages(store) == []
    names = store.refs("toys/")
    assert len(names) == 30
    for name in names:
        store.verify(store.ref(name))
    assert not set(idle) & set(store.digests())


def test_one_collection_at_a_time_and_none_that_is_too_eager(store: Store) -> None:
    with store.lock("gc"):
        pid = os.fork()
        if pid == 0:
            try:
                _collect(store)
            except StoreLockedError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    with pytest.raises(InputError, match="grace period is too short"):
        keeping.collect(store, grace_s=1.0, dry_run=False)


def test_verify_names_all_damage_and_repair_mends_it(store: Store, tmp_path: Path) -> None:
    good, bad, gone = (store.put_artifact(_with_parents(seed), tensors()) for seed in range(3))
    other = Store(tmp_path / "other")
    for digest in (good, bad):
        store.copy_artifact(digest, other)
    for digest in (good, bad, gone):
        store.set_ref(f"r/{digest[:4]}", digest)
    store.put_spec(Spec(name="one", tree=Member(name="a", digest=good), signature=SIGNATURE))
    store.add_record(good, {"x": 1})
    assert keeping.damages(store) == []
    (store.root / f"artifacts/{bad}/{WEIGHTS}").write_bytes(b"flipped")
    (store.root / f"artifacts/{gone}/{WEIGHTS}").write_bytes(b"flipped")
    (store.root / f"artifacts/{'0' * 64}").mkdir()
    half = store.root / f"artifacts/{'0' * 64}/{WEIGHTS}"
    half.write_bytes(b"half")
    store.put_predictions(good, "test", np.arange(3), np.ones((3, 2), np.float32))
    for folder in ("specs", f"records/{good}", f"predictions/{good}"):
        path = next((store.root / folder).iterdir())
        path.write_bytes(path.read_bytes()[:-3])
    kinds = sorted(damage.kind for damage in keeping.damages(store))
    assert kinds == ["artifact", "artifact", "outputs", "record", "spec", "unfinished"]
    assert len(keeping.repair(store, source=other, dry_run=True)) == 6
    assert len(keeping.damages(store)) == 6
    os.utime(half, (time.time() - 2 * HOUR,) * 2)
    done = {damage.key: how for damage, how in keeping.repair(store, source=other)}
    assert done[f"artifacts/{bad}"] == f"fetched again from {other.root}"
    assert done[f"artifacts/{gone}"] == f"moved to quarantine/artifacts/{gone}"
    assert (store.root / f"quarantine/artifacts/{gone}/{WEIGHTS}").read_bytes() == b"flipped"
    store.verify(bad)
    assert [(damage.kind, damage.key) for damage in keeping.damages(store)] == [("ref", f"refs/r/{gone[:4]}")]
    with pytest.raises(NotFoundError):
        store.verify(gone)


def test_repair_leaves_what_a_run_has_made_whole_meanwhile(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.put_artifact(_with_parents(0), tensors())
    good = Store(tmp_path / "other")
    store.copy_artifact(digest, good)
    weights = store.root / f"artifacts/{digest}/{WEIGHTS}"
    weights.write_bytes(b"flipped")
    half = store.root / f"artifacts/{'0' * 64}/{WEIGHTS}"
    half.parent.mkdir()
    half.write_bytes(b"half")
    look = keeping.damages

    def slow(looked: Store) -> list[keeping.Damage]:
        found = look(looked)
        store.put_artifact(_with_parents(0), tensors())  # a run, while the rest was looked at
        return found

    monkeypatch.setattr(keeping, "damages", slow)
    done = {damage.key: how for damage, how in keeping.repair(store)}
    assert done == {
        f"artifacts/{digest}": "left: it is whole now",
        f"artifacts/{'0' * 64}": "left: it may be being written",
    }
    store.verify(digest)


def test_an_older_schema_is_migrated_and_a_newer_one_refused(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.put_artifact(draft(), tensors())
    steps = []

    def step(blobs: Blobs) -> None:
        steps.append(blobs.location)
        blobs.put("new/layout.json", b"{}")

    monkeypatch.setattr(schema, "SCHEMA", 2)
    with pytest.raises(ForeignStoreError, match="knows no way"):
        schema.migrate(store.blobs)
    monkeypatch.setattr(schema, "STEPS", {1: step})
    with pytest.raises(ForeignStoreError, match=r"schema 1, this version reads 2.*models migrate"):
        Store(store.root)
    assert schema.migrate(store.blobs, dry_run=True) == (1, 2)
    assert steps == []
    assert schema.migrate(store.blobs) == (1, 2)
    assert schema.migrate(store.blobs) == (2, 2)
    assert len(steps) == 1
    Store(store.root).verify(digest)
    monkeypatch.setattr(schema, "SCHEMA", 1)
    for call in (lambda: Store(store.root), lambda: schema.migrate(store.blobs)):
        with pytest.raises(ForeignStoreError, match="schema 2, this version reads 1"):
            call()
    assert MANIFEST in os.listdir(store.root / "artifacts" / digest)
