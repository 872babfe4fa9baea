"""The commands for releases: through the store alone, and through a running server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from deployments.http.access import Access
from deployments.http.app import HttpApp
from deployments.http.server import server_app
from deployments.observe.meter import Meter
from deployments.page.site import Site
from orchestrator import keys
from orchestrator.config.access import AccessSettings
from orchestrator.config.ensemble import Spec, WeightedMix, leaves
from orchestrator.config.release import Reweight
from orchestrator.ensemble.epochs import reweighted
from orchestrator.errors import RefConflictError
from orchestrator.pipeline import releasing
from orchestrator.store import releases, signing
from orchestrator.store.store import Store
from tests.deployments.released import Running
from tests.deployments.served import running as listening
from tests.deployments.toys import DIGITS, SMALL_MLP, put
from tests.pipeline.command import command

NAME = "toys/mix"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "store")
    members = tuple(put(opened, f"mlp{seed}", SMALL_MLP, DIGITS, seed) for seed in (0, 1))
    spec = Spec(name="mix", tree=WeightedMix(members=members, weights=(0.5, 0.5)), signature=DIGITS)
    opened.set_ref(NAME, opened.put_spec(spec))
    return opened


def live(store: Store) -> str:
    return releases.live(store, NAME).value


def test_the_store_alone(store: Store) -> None:
    at = ("--store", str(store.root))
    command("release", "list", NAME, *at).sentence(2)
    made = command("release", "promote", NAME, *at, "--json").document
    assert made == {"release": live(store), "weight_epoch": 0}
    changed = command("weights", "set", NAME, "0.7", "0.3", *at, "--json").document
    assert changed == {"release": live(store), "weight_epoch": 1}
    rows = command("release", "list", NAME, *at, "--json").document
    assert [(row["weight_epoch"], row["live"]) for row in rows] == [(0, False), (1, True)]
    assert "live" in command("release", "list", NAME, *at).out.splitlines()[-1]
    found = command("release", "diff", NAME, made["release"][:12], *at, "--json").document
    assert found["changed"] == {
        "spec.tree.weights.0": [0.5, 0.7],
        "spec.tree.weights.1": [0.5, 0.3],
        "spec.weight_epoch": [0, 1],
    }
    assert command("weights", "rollback", NAME, *at, "--json").document == made
    assert command("release", "rollback", NAME, changed["release"][:12], *at, "--json").document == changed
    assert "sum to 1" in command("weights", "set", NAME, "0.7", "0.7", *at).sentence(2)
    # What `models` lists stays sound with the refs of releases and canaries.
    assert command("canary", NAME, made["release"], "--share", "0.5", *at).code == 0
    (row,) = [one for one in command("models", *at, "--json").document if one["ref"] == f"{NAME}/live"]
    assert (row["kind"], row["state"]) == ("release, weight epoch 1", "ok")
    assert command("canary", NAME, "--stop", *at).code == 0
    assert "no canary is running" in command("canary", NAME, "--stop", *at).sentence(2)


def test_members_are_signed_and_a_damaged_ref_hides_no_other(store: Store, tmp_path: Path) -> None:
    at = ("--store", str(store.root))
    spec = store.spec(NAME)
    members = {member.digest for member in leaves(spec.tree)}
    assert command("release", "promote", NAME, *at).code == 0
    one = spec.model_copy(update={"tree": spec.tree.members[0], "weight_epoch": 1})  # type: ignore[union-attr]
    tried = releases.put(store, NAME, one)
    assert command("canary", NAME, tried, "--share", "0.5", *at).code == 0
    store.set_ref("toys/broken", "0" * 64)
    (entry,) = (store.root / "refs/toys/broken").iterdir()
    entry.write_bytes(b"{")
    signing.make_key(tmp_path / "key.pem")
    wanted = {f"{NAME}/live": members, f"{NAME}/canary": {one.tree.digest}, "toys/": members}  # type: ignore[union-attr]
    for prefix, digests in wanted.items():
        found = command("models", "sign", prefix, "--key", tmp_path / "key.pem", *at, "--json").document
        assert set(found["signed"]) == digests
    assert found["damaged"] == ["toys/broken"]
    listed = command("models", *at, "--json")
    assert "toys/broken (damaged)" in listed.sentence(1)
    assert {row["ref"]: row["state"] for row in listed.document}[f"{NAME}/live"] == "ok"


def test_what_was_promoted_meanwhile_is_not_overtaken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = releases.first(store, NAME)
    first, other = live(store), releases.put(store, NAME, reweighted(spec, weights=(0.9, 0.1)))
    for digest in (other, first):
        releases.promote(store, NAME, digest)
    before = releases.put

    def slow(*given: Any) -> str:
        found = before(*given)
        releases.promote(store, NAME, other)
        return found

    monkeypatch.setattr(releases, "put", slow)
    with pytest.raises(RefConflictError):
        releasing.reweigh(NAME, Reweight(weights=(0.2, 0.8)), store=str(store.root), url=None)
    assert releases.live(store, NAME).value == other


def test_what_goes_together(store: Store) -> None:
    at = ("--store", str(store.root))
    for wrong in (
        ("release", "diff", NAME),
        ("release", "list", NAME, "a", "b"),
        ("release", "rollback", NAME, "--spec", NAME),
        ("weights", "set", NAME),
        ("weights", "rollback", NAME, "0.5"),
        ("canary", NAME),
        ("canary", NAME, "a", "--stop"),
    ):
        assert command(*wrong, *at).code == 2
    assert releases.history(store, NAME) == []


@contextmanager
def server(store: Store, file: Path) -> Iterator[str]:
    """The name behind the whole application, with keys."""
    serving = Running(store)

    async def nobody() -> tuple[()]:
        return ()

    meter = Meter("test")
    served = [entry.served for entry in serving.front.entries.values()]
    site = Site([serving.follower.spec], served, meter, nobody)
    app = HttpApp(serving.front, (), {**serving.routes, **site.routes()})
    access = Access(AccessSettings(keys=str(file)))
    with listening(server_app(app, ["mix"], access, serving.front.serving, meter)) as url:
        yield url


def test_through_a_server(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    tokens = {scope: keys.add(file, scope, scope) for scope in ("data", "admin")}
    with server(store, file) as url:
        through = ("--url", url, "--json")
        monkeypatch.setenv("ORCHESTRATOR_KEY", tokens["data"])
        assert "scope admin" in command("weights", "set", NAME, "0.7", "0.3", *through[:2]).sentence(2)
        monkeypatch.setenv("ORCHESTRATOR_KEY", tokens["admin"])
        first = live(store)
        changed = command("weights", "set", NAME, "0.7", "0.3", *through).document
        assert changed == {"release": live(store), "weight_epoch": 1}
        (model,) = command("status", url, "--json").document["models"]
        assert (model["name"], model["ready"]) == ("mix", True)
        assert model["releases"]["replicas"][0]["live"] == changed["release"]
        assert "mix" in command("status", url).out
        at = ("--store", str(store.root))
        assert command("canary", NAME, first, "--shadow", *at, *through).document["shadow"]
        assert command("canary", NAME, "--stop", *through).document == {"stopped": True}
        assert command("release", "rollback", NAME, *through).document["release"] == first
        assert "no release was live before" in command("release", "rollback", NAME, *through[:2]).sentence(2)
        again = command("release", "promote", NAME, changed["release"], *through).document
        assert again == changed
