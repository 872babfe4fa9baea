"""Ensembles and the students that learn from them: order, figures beside each other, and choosing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.config.ensemble import Cascade, Member
from orchestrator.config.goal import Costs, Goal
from orchestrator.ensemble.conformal import sets_of
from orchestrator.ensemble.reject import rejected
from orchestrator.ensemble.tree import distinct, replay
from orchestrator.pipeline.assembling import Assembly
from orchestrator.pipeline.choosing import choose_for
from orchestrator.pipeline.compressing import _job, make_variant
from orchestrator.pipeline.context import Run, open_run
from orchestrator.pipeline.ensembling import fit_ensemble
from orchestrator.pipeline.evaluation import Evaluation, evaluate
from orchestrator.pipeline.gathering import gather
from orchestrator.pipeline.run import read_config
from orchestrator.pipeline.summary import print_table, summarize
from orchestrator.pipeline.training import train
from orchestrator.progress import Progress
from orchestrator.store.store import Store
from tests.deployments.toys import DIGITS, SMALL_MLP, put
from tests.pipeline.toys import write

pytestmark = pytest.mark.slow

MODELS = ("one", "two", "three")
STUDENT = {
    "kind": "distill",
    "model": {"factory": "mlp", "kwargs": {"widths": [16]}},
    "ensemble": "mix",
    "training": {"epochs": 1, "loss": {"kind": "distillation"}},
}
ENSEMBLES = {
    "average": {"kind": "parallel", "members": ["one", "pupil"]},  # needs what stands below it
    "mix": {"kind": "weighted_mix", "members": ["one", "two"], "prediction_sets": {"coverage": 0.6}},
    "cascade": {"kind": "sequential", "stages": ["pupil", "mix"], "reject": {"by": "margin", "keep": 0.9}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Untrained models, and a student that was made before: a cluster is not needed for what is finished."""
    folder = tmp_path_factory.mktemp("assembling")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_CACHE", str(folder / "cache"))
        patch.delenv("ORCHESTRATOR_STORE", raising=False)
        store = Store(folder / "store")
        for seed, name in enumerate(MODELS):
            store.set_ref(f"made/{name}", put(store, name, SMALL_MLP, DIGITS, seed).digest)
        file = write(
            folder / "toy.yaml",
            models={name: {"ref": f"made/{name}"} for name in MODELS},
            variants={"pupil": {"parent": "three", "plan": [STUDENT]}},
            ensembles=ENSEMBLES,
        )

        def refused() -> None:
            raise AssertionError("nothing is left to do on a cluster")

        found = open_run(read_config(str(file)), store=str(store.root), progress=Progress(), cluster=refused)
        digests = train(found)
        known = {name: Member(name=name, digest=digest) for name, digest in digests.items()}
        _, mix = fit_ensemble(found, "mix", known)
        make_variant(_job(found, "pupil", found.config.variants["pupil"], digests | {"mix": mix}))
        yield found


@pytest.fixture(scope="module")
def assembly(run: Run) -> Assembly:
    return Assembly(run, train(run), {}, None)


@pytest.fixture(scope="module")
def evaluation(run: Run, assembly: Assembly) -> Evaluation:
    members, specs = assembly.all()
    return evaluate(run, members, None, specs)


def test_each_is_made_after_what_it_needs(run: Run, assembly: Assembly) -> None:
    members, specs = assembly.all()
    assert list(members) == [*MODELS, "pupil"]
    assert list(specs) == list(ENSEMBLES)
    pupil = members["pupil"].digest
    assert run.store.manifest(pupil).parents == (members["three"].digest, run.store.ref("toy/mix"))
    assert run.store.ref("toy/pupil") == pupil
    tree = specs["cascade"].tree
    assert isinstance(tree, Cascade)
    assert next(leaf.digest for leaf in distinct(tree)) == pupil


def test_choosing_fits_no_ensemble_that_students_do_not_need(run: Run) -> None:
    few = Assembly(run, train(run), {}, None)
    assert list(few.students()) == [*MODELS, "pupil"]
    assert list(few._specs) == ["mix"]


def test_a_student_stands_beside_the_ensemble_that_it_learned_from(
    run: Run, evaluation: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {name: figures["students"] for name, figures in evaluation.ensembles.items()}
    assert list(found["mix"]) == ["pupil"]
    assert (found["average"], found["cascade"]) == ({}, {})
    figures = found["mix"]["pupil"]
    drop = evaluation.ensembles["mix"]["accuracy"] - evaluation.models["pupil"]["accuracy"]
    assert figures["drop"]["value"] == pytest.approx(drop)
    assert figures["drop"]["ci"][0] <= drop <= figures["drop"]["ci"][1]
    assert 0 <= figures["agreement"] <= 1
    print_table(summarize(run, None, evaluation, {}), run.folder)
    lines = capsys.readouterr().out.splitlines()
    place = next(at for at, line in enumerate(lines) if line.startswith("ensemble") and " mix " in line)
    assert lines[place + 1].startswith("as one: mix")
    assert sum("pupil " in line and "as one" not in line and "model" in line for line in lines) == 0


def test_promised_sets_are_held_against_test_rows(
    run: Run, assembly: Assembly, evaluation: Evaluation
) -> None:
    spec = assembly.all()[1]["mix"]
    found: dict[str, Any] = evaluation.ensembles["mix"]["prediction_sets"]
    outputs = {leaf: run.outputs(leaf, "test") for leaf in distinct(spec.tree)}
    probs = replay(spec.tree, outputs, "classification").probs
    assert probs is not None
    sets = sets_of(spec.tree, probs)
    assert sets is not None
    targets = run.dataset.part("test").targets
    assert found["covered"] == pytest.approx(sets[range(len(targets)), targets].mean())
    assert found["mean_size"] == pytest.approx(sets.sum(axis=1).mean())
    assert found["covered_ci"][0] <= found["covered"] <= found["covered_ci"][1]
    assert "prediction_sets" not in evaluation.ensembles["average"]
    # Inside of the cascade the mix promises nothing.
    assert sets_of(assembly.all()[1]["cascade"].tree, probs) is None


def test_a_fitted_reject_is_held_against_test_rows(
    run: Run, assembly: Assembly, evaluation: Evaluation
) -> None:
    tree = assembly.all()[1]["cascade"].tree
    found: dict[str, Any] = evaluation.ensembles["cascade"]["reject"]
    outputs = {leaf: run.outputs(leaf, "test") for leaf in distinct(tree)}
    dropped = rejected(tree, replay(tree, outputs, "classification"))
    assert dropped is not None
    assert found["rejected"] == pytest.approx(dropped.mean())
    assert found["by"] == "margin"
    validation = {leaf: run.outputs(leaf, "validation") for leaf in distinct(tree)}
    kept = rejected(tree, replay(tree, validation, "classification"))
    assert kept is not None
    assert 0 < kept.mean() <= 0.1
    assert "reject" not in evaluation.ensembles["mix"]


def test_rows_from_elsewhere_are_shown_to_single_models_too(evaluation: Evaluation) -> None:
    for figures in evaluation.models.values():
        assert figures["elsewhere"]["uniform_noise"]["epistemic"] is None
    for figures in evaluation.ensembles.values():
        assert 0 <= figures["uncertainty"]["elsewhere"]["uniform_noise"]["epistemic"] <= 1


def test_choosing_shows_the_student_beside_its_teachers(run: Run, assembly: Assembly) -> None:
    models = train(run)
    members = assembly.students()
    costs = Costs(batches=(8,), placements=("fused",))
    gathered = gather(run, models, {"pupil": members["pupil"]}, None, costs)
    teachers = frozenset(members[name].digest for name in ("one", "two"))
    assert gathered.students == {members["pupil"].digest: teachers}
    found = choose_for(run, gathered, Goal(), costs, "choice")
    labels = {point["name"]: point["baseline"] for point in found["points"]}
    assert "merged student" in labels["pupil (eager)"]
    assert any(note.startswith("one bigger model: none in this run") for note in found["notes"])
