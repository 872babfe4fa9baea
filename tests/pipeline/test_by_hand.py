"""`orchestrator compress`: a plan on a model of the store, from the command line."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from orchestrator.config.data import EmbeddedData
from orchestrator.config.ensemble import Member, Parallel, Spec
from orchestrator.config.load import load_run
from orchestrator.config.model import Cnn, CnnKwargs
from orchestrator.data.load import load
from orchestrator.errors import InputError
from orchestrator.models.build import build
from orchestrator.pipeline.by_hand import compress_ref
from orchestrator.pipeline.imported import data_of
from orchestrator.runtime.execute import load as load_executable
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store
from tests.pipeline.command import Answer, command

pytestmark = pytest.mark.slow


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """With an untrained net for digits under the name `digits/net`."""
    monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "cache"))
    signature = load(EmbeddedData(), seed=0, cache=tmp_path / "cache").signature
    model = Cnn(kwargs=CnnKwargs(channels=(8, 16), hidden=32))
    store = Store(tmp_path / "store")
    draft = Draft(model=model, signature=signature, data="", seed=0, what={"imported": True})
    digest = store.put_artifact(draft, build(model, signature, seed=0).state_dict())
    store.set_ref("digits/net", digest)
    return store


def compressed(store: Store, plan: str | Path, *more: str | Path, source: str = "digits/net") -> Answer:
    return command(
        "compress", source, "--plan", plan, "--data", "digits", "--name", "digits/small", "--store",
        store.root, "--batch", "8", *more,
    )  # fmt: skip


def test_a_plan_from_a_file(store: Store, tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("- {kind: prune_channels, amount: 0.5}\n- kind: int8_static\n  rows: 32\n")
    answer = compressed(store, plan, "--json")
    assert answer.code == 0, answer.err
    found = answer.document
    assert found["digest"] == store.ref("digits/small")
    assert found["facts"]["macs"] < found["baseline"]["macs"]
    assert found["facts"]["int8"]["share"] > 0.5
    assert set(found["latency_ms"]) == {"8"}
    load_executable(store, found["digest"], "lowered")
    assert found["promise"]["status"] in ("holds", "fails", "cannot be told")
    assert found["promise"]["max_drop"] == 0.01
    assert [step["kind"] for step in found["facts"]["decided"]] == ["prune_channels", "int8_static"]


def test_a_name_that_is_none_is_refused_before_the_work(store: Store) -> None:
    with pytest.raises(InputError, match="Bad Name"):
        compress_ref(
            "digits/none", plan="[{kind: bf16}]", data="digits", name="Bad Name", store=str(store.root)
        )


def test_the_audit_is_printed(store: Store) -> None:
    pytest.importorskip("openvino")
    answer = compressed(store, "[{kind: int8_weight_only}]", "--execution", "openvino")
    assert answer.code == 0, answer.err
    assert "(openvino)" in answer.out
    assert "bytes" in answer.out
    assert "gate" in answer.out
    assert "promise" in answer.out


def test_each_layer_pruned_alone(store: Store, tmp_path: Path) -> None:
    plot = tmp_path / "sensitivity.html"
    asked = ("sensitivity", "digits/net", "--data", "digits", "--amount", "0.5", "--store", store.root)
    found = command(*asked, "--out", plot, "--json").document
    assert found["digest"] == store.ref("digits/net")
    assert {reading["amount"] for reading in found["readings"]} == {0.5}
    assert found["written"] == str(plot)
    assert plot.stat().st_size > 0
    answer = command(*asked)
    assert f"{found['readings'][0]['metric']:.4f} without 50%" in answer.out
    assert "the folder of the plot" in command(*asked, "--out", tmp_path / "no" / "x.html").sentence(2)


def test_the_data_of_a_run_file_is_cut_as_its_run_cuts_it(tmp_path: Path) -> None:
    """Or rows that a model was trained on would be those that its variant is judged by."""
    run = load_run(files("orchestrator.pipeline") / "digits.yaml")  # type: ignore[arg-type]
    wanted = load(run.data, seed=run.seed, cache=tmp_path / "cache").digest
    found = data_of("digits")
    assert (found.settings, found.metric, found.seed) == (run.data, run.metric, run.seed)
    assert load(found.settings, seed=found.seed, cache=tmp_path / "cache").digest == wanted
    assert data_of("digits") == data_of("orchestrator/pipeline/digits.yaml")


def test_rows_that_a_model_was_not_made_from_are_told(store: Store) -> None:
    known = store.ref("digits/net")
    draft = Draft(
        model=store.manifest(known).model, signature=store.manifest(known).signature, data="0" * 64, seed=0
    )
    store.set_ref("digits/other", store.put_artifact(draft, store.tensors(known)))
    assert "was made from other rows" in compressed(store, "[{kind: bf16}]", source="digits/other").err
    assert "was made from other rows" not in compressed(store, "[{kind: bf16}]").err


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("[{kind: int9}]", "int9"),
        ("[{kind: prune_channels}]", "amount"),
        ("[{kind: prune_channels, amount: 3}]", "less than 1 (got 3)"),
        ("missing.yaml", "the plan cannot be read"),
        ("just words", "the plan cannot be read"),
        ("[1, 2]", "a plan is a list of one step or more"),
        ("[]", "a plan is a list of one step or more"),
        ("{plan: []}", "a plan is a list of one step or more"),
        ("[{kind: bf16}, {kind: bf16}]", "cannot follow"),
    ],
)
def test_a_bad_plan_is_one_sentence(store: Store, plan: str, said: str) -> None:
    assert said in compressed(store, plan).sentence(2)


def test_an_unknown_model_is_one_sentence(store: Store) -> None:
    assert "digits/none" in compressed(store, "[{kind: bf16}]", source="digits/none").sentence(2)


def test_an_ensemble_is_not_one_model(store: Store) -> None:
    digest = store.ref("digits/net")
    tree = Parallel(members=(Member(name="net", digest=digest), Member(name="twin", digest=digest)))
    spec = Spec(name="mix", tree=tree, signature=store.manifest(digest).signature)
    store.set_ref("digits/mix", store.put_spec(spec))
    said = compressed(store, "[{kind: bf16}]", source="digits/mix").sentence(2)
    assert "an ensemble is not one model: digits/mix. name a member: net, twin" in said
