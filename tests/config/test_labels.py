"""What several labels a row may have, and what they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.config.toys import model, pair, refused, run

LABELS = {"kind": "custom", "task": "multilabel", "dataset": "mine:data"}


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        (pair("big", "small") | {"rule": "vote"}, "rule vote is not for task multilabel: use mean, logits,"),
        (pair("big", "small") | {"rule": "weighted_vote"}, "rule weighted_vote is not for task multilabel"),
        (
            pair("big", "small", kind="weighted_mix") | {"method": "gate"},
            "method gate is not for task multilabel: use likelihood, squared_error, greedy",
        ),
        (
            pair("big", "small", kind="weighted_mix") | {"method": "per_class"},
            "method per_class is not for task multilabel",
        ),
        (
            {"kind": "sequential", "policy": "stacking", "members": ["big", "small"]},
            "policy stacking is not for task multilabel: use parallel, weighted_mix or a cascade",
        ),
        (
            {
                "kind": "sequential",
                "policy": "chain",
                "members": ["big"],
                "later": [{"model": {"factory": "mlp"}}],
            },
            "policy chain is not for task multilabel",
        ),
        (
            {"kind": "sequential", "policy": "boosting", "base": "big"},
            "policy boosting is not for task multilabel",
        ),
        (
            pair("big", "small", kind="sequential") | {"guarantee": {}},
            "a guarantee is not for task multilabel: use tolerance or max_cost",
        ),
        (
            pair("big", "small") | {"prediction_sets": {}},
            "prediction_sets are not for task multilabel: leave them out",
        ),
        (pair("big", "small") | {"intervals": {}}, "intervals are not for task multilabel: leave them out"),
        (pair("big", "small") | {"reject": {"threshold": 0.5}}, "reject needs a classifier"),
    ],
)
def test_several_labels_are_refused_what_they_cannot_have(tree: dict[str, Any], said: str) -> None:
    assert f"ensembles.x: {said}" in refused(data=LABELS, ensembles={"x": tree})


def test_several_labels_have_losses_and_metrics_of_their_own() -> None:
    assert run(data=LABELS).metric.name == "macro_f1"
    assert run("metric.name=mean_average_precision", data=LABELS)
    assert "use macro_f1, micro_f1, mean_average_precision" in refused("metric.name=accuracy", data=LABELS)
    entry = model(training={"loss": {"kind": "binary_cross_entropy", "class_weights": "balanced"}})
    assert run(data=LABELS, models={"big": entry})
    assert "models.big.training.loss: binary_cross_entropy is not for task classification" in refused(
        models={"big": entry}
    )
    for kind in ("cross_entropy", "mse"):
        text = refused(data=LABELS, models={"big": model(training={"loss": {"kind": kind}})})
        assert f"{kind} is not for task multilabel: use binary_cross_entropy, distillation, custom" in text
    together = {
        "together": [{"factory": "mlp"}, {"factory": "mlp"}],
        "training": {"loss": {"kind": "mutual"}},
    }
    assert "mutual is not for task multilabel" in refused(data=LABELS, models={"big": together}, search=None)
    assert "elsewhere: not for task multilabel" in refused(data=LABELS, elsewhere={"kind": "embedded"})
    assert "one class" in refused(data={"kind": "folder", "task": "multilabel", "root": "x"})
    for tree in (
        pair("big", "small") | {"rule": "maximum", "quorum": 1, "fallback": "best"},
        pair("big", "small", kind="weighted_mix") | {"calibration": "auto", "prior": 1},
        pair("big", "small", kind="sequential")
        | {"criterion": "entropy", "max_cost": 0.5, "combine": "mean"},
    ):
        assert run(data=LABELS, ensembles={"x": tree})
