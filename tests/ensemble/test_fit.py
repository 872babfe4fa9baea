"""Names bound to artifacts, and trees fitted bottom-up."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import ValidationError

from orchestrator.config.ensemble import Cascade, Member, Node, Parallel, Spec, WeightedMix
from orchestrator.config.measure import Metric
from orchestrator.ensemble.calibrate import fit_temperature
from orchestrator.ensemble.combine import Floats
from orchestrator.ensemble.conformal import ends_of, sets_of
from orchestrator.ensemble.fit import bind, fit
from orchestrator.ensemble.tree import replay
from orchestrator.ensemble.weights import likelihood_weights
from orchestrator.errors import EnsembleError
from orchestrator.measure.metrics import log_softmax, score
from tests.compression.toys import signature
from tests.ensemble.toys import MEMBERS, A, B, C, D, cascade, mix, outputs, parallel, values

TABLE, TARGETS = outputs(rows=300)
SIGNATURE = signature((4,))
ACCURACY = Metric()


def calibrated(member: Member) -> Member:
    temperature = fit_temperature(TABLE[member], TARGETS)
    return member.model_copy(update={"temperature": temperature})


def tempered(member: Member) -> Floats:
    return log_softmax(TABLE[member].astype(np.float64) / fit_temperature(TABLE[member], TARGETS))


def fitted(tree: Node) -> Node:
    return fit(tree, TABLE, TARGETS, ACCURACY, "classification")


def test_names_become_artifacts_and_ensembles() -> None:
    known: dict[str, Node] = {"x": A, "pair": parallel(A, B)}
    found = bind(cascade(Member(name="x"), mix(Member(name="pair"), C)), known)
    assert found == cascade(A, mix(parallel(A, B), C))
    own = bind(parallel(Member(name="x", execution="aoti", temperature=2.0), Member(name="x")), known)
    assert own == parallel(A.model_copy(update={"execution": "aoti", "temperature": 2.0}), A)
    with pytest.raises(EnsembleError, match=r"no member of that name: y\. known here: x, pair"):
        bind(parallel(Member(name="y"), A), known)


def test_a_mix_is_fitted_on_its_members() -> None:
    found = fitted(mix(*MEMBERS))
    assert isinstance(found, WeightedMix)
    assert found.weights == likelihood_weights([tempered(member) for member in MEMBERS], TARGETS)
    assert found.members == tuple(calibrated(member) for member in MEMBERS)


def test_a_mix_with_a_prior() -> None:
    found = fitted(WeightedMix(members=MEMBERS, prior=2))
    assert isinstance(found, WeightedMix)
    assert found.weights == likelihood_weights([tempered(member) for member in MEMBERS], TARGETS, 2)


def test_a_prior_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValidationError, match="prior belongs to method likelihood, not greedy"):
        WeightedMix(members=(A, B), method="greedy", prior=1)
    table, truth = values(rows=50)
    tree = WeightedMix(members=(A, B), prior=1)
    with pytest.raises(EnsembleError, match="belongs to classification; the task is: regression"):
        fit(tree, table, truth, Metric(name="rmse"), "regression")


def test_given_values_are_kept() -> None:
    warm = [member.model_copy(update={"temperature": 2.5}) for member in (A, B, D)]
    tree = cascade(mix(*warm[:2], weights=(0.1, 0.9)), warm[2], thresholds=(0.4,))
    assert fitted(tree) == tree
    assert fitted(parallel(A, warm[1])) == parallel(calibrated(A), warm[1])


def test_a_parent_is_fitted_on_its_fitted_children() -> None:
    found = fitted(mix(cascade(A, C, tolerance=0.02), D))
    assert isinstance(found, WeightedMix)
    assert isinstance(found.members[0], Cascade)
    inner = replay(found.members[0], TABLE, "classification").scores
    assert found.weights == likelihood_weights([inner, tempered(D)], TARGETS)


def test_a_fitted_cascade_keeps_the_last_stage_s_metric_when_it_is_walked() -> None:
    found = fitted(cascade(A, B, mix(A, C, D)))
    assert isinstance(found, Cascade)
    walked = replay(found, TABLE, "classification")
    last = replay(found.stages[-1], TABLE, "classification")
    assert score(ACCURACY, walked.outputs, TARGETS) >= score(ACCURACY, last.outputs, TARGETS)
    assert (walked.stages < 2).any()


def test_outputs_are_found_by_artifact_whatever_the_leaf_is_called() -> None:
    alias = Member(name="chosen", digest=D.digest)
    assert fitted(mix(A, parallel(alias, B))).model_dump() == {
        **fitted(mix(A, parallel(D, B))).model_dump(),
        "members": (calibrated(A).model_dump(), fitted(parallel(alias, B)).model_dump()),
    }
    with pytest.raises(EnsembleError, match="no outputs to fit the ensemble on: e"):
        fitted(parallel(A, Member(name="e", digest="e" * 64)))


def test_regression_is_mixed_by_squared_error_and_not_cascaded() -> None:
    table, truth = values()
    found = fit(mix(*MEMBERS), table, truth, Metric(name="rmse"), "regression")
    assert isinstance(found, WeightedMix)
    assert found.weights is not None
    assert found.weights[3] == max(found.weights)
    mixed = score(
        Metric(name="rmse"),
        replay(found, table, "regression").outputs / truth.std(axis=0),
        truth / truth.std(axis=0),
    )
    best = min(
        score(Metric(name="rmse"), table[m] / truth.std(axis=0), truth / truth.std(axis=0)) for m in MEMBERS
    )
    assert mixed <= best
    with pytest.raises(EnsembleError, match="use parallel or weighted_mix"):
        fit(cascade(A, B), table, truth, Metric(name="rmse"), "regression")


def test_a_single_target_may_be_a_plain_column() -> None:
    table, truth = values(targets=1)
    column = fit(mix(A, B), table, truth[:, 0], Metric(name="mae"), "regression")
    assert column == fit(mix(A, B), table, truth, Metric(name="mae"), "regression")


def test_fitting_again_gives_the_same_tree() -> None:
    tree = cascade(A, mix(cascade(A, B), C, D))
    assert fitted(tree) == fitted(tree)
    assert np.isfinite(replay(fitted(tree), TABLE, "classification").outputs).all()


@pytest.mark.parametrize("method", ["lac", "aps", "raps"])
def test_prediction_sets_of_a_tree_are_fitted_on_unseen_rows_and_kept_in_its_spec(method: str) -> None:
    """They cover the truth on rows that neither the tree nor they were fitted on."""
    table, targets = outputs(rows=3000, seed=5)
    parts = [slice(0, 1000), slice(1000, 2000), slice(2000, 3000)]
    said = [{member: found[part] for member, found in table.items()} for part in parts]
    wish = {"method": method, "coverage": 0.9}
    tree = WeightedMix.model_validate({"members": (A, parallel(B, C)), "prediction_sets": wish})
    with pytest.raises(EnsembleError, match="need calibration rows"):
        fit(tree, said[0], targets[parts[0]], ACCURACY, "classification")
    found = fit(
        tree,
        said[0],
        targets[parts[0]],
        ACCURACY,
        "classification",
        calibration=(said[1], targets[parts[1]]),
    )
    spec = Spec(name="mix", tree=found, signature=SIGNATURE)
    kept = Spec.model_validate_json(spec.model_dump_json()).tree
    probs = replay(kept, said[2], "classification").probs
    assert probs is not None
    sets = sets_of(kept, probs)
    assert sets is not None
    assert sets.shape == probs.shape
    assert 0.87 < sets[np.arange(1000), targets[parts[2]]].mean() < 0.96
    assert sets_of(fitted(parallel(A, B)), probs) is None
    with pytest.raises(ValidationError, match="no fitted sets"):
        Spec(
            name="mix",
            tree=found.model_copy(update={"prediction_sets": tree.prediction_sets}),
            signature=SIGNATURE,
        )
    # Inside of another tree they mean nothing.
    inside = bind(parallel(Member(name="mix"), A), {"mix": found})
    assert isinstance(inside, Parallel)
    assert isinstance(inside.members[0], WeightedMix)
    assert inside.members[0].prediction_sets is None


def test_intervals_of_a_regressions_tree_hold_their_share() -> None:
    table, targets = values(rows=3000)
    half = slice(0, 1000), slice(1000, 2000), slice(2000, 3000)
    first, second, third = ({member: found[part] for member, found in table.items()} for part in half)
    tree = Parallel.model_validate({"members": (A, B), "intervals": {"coverage": 0.8}})
    found = fit(
        tree,
        first,
        targets[half[0]],
        Metric(name="rmse"),
        "regression",
        calibration=(second, targets[half[1]]),
    )
    outputs = replay(found, third, "regression").outputs
    ends = ends_of(found, outputs)
    assert ends is not None
    truth = targets[half[2]].reshape(outputs.shape)
    assert ((ends[0] <= truth) & (truth <= ends[1])).mean() == pytest.approx(0.8, abs=0.05)


def test_trees_without_sets_have_the_digests_that_they_had() -> None:
    assert not {"prediction_sets", "intervals"} & parallel(A, B).plain().keys()
