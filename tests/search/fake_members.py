"""What the report shows of ensembles' members, made up."""

from __future__ import annotations

import base64
import io
from typing import Any

from PIL import Image

from orchestrator.search.report import Details
from tests.search import fake

NAMES = ("teacher", "small-a", "weighted_mix(small-a, small-b)")


def explained() -> tuple[dict[str, Any], Details]:
    """Summary and details of a run whose ensembles `panel` and `cascade` are explained."""
    summary, details = fake.summary(), fake.details()
    summary["ensembles"]["panel"] |= figures()
    summary["ensembles"]["cascade"] |= figures()
    for member in summary["ensembles"]["cascade"]["contributions"]["members"]:
        member["weight"] = None
    details["examples"] = {"panel": [example()], "cascade": [example() | {"stage": 1, "image": None}]}
    return summary, details


def members() -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "weight": 1 / 3,
            "metric": 0.98 - 0.01 * place,
            "accuracy": {
                "alone": 0.88,
                "leave_one_out": 0.0123 - 0.02 * place,
                "shapley": 0.3 - 0.01 * place,
            },
            "nll": {"alone": 2.2, "leave_one_out": 0.0456, "shapley": None},
        }
        for place, name in enumerate(NAMES)
    ]


def figures() -> dict[str, Any]:
    """The keys that an ensemble has in the summary for this."""
    return {
        "contributions": {"rows": 360, "members": members()},
        "diversity": {
            "members": list(NAMES),
            "loss": {"name": "nll", "members": 0.111, "ensemble": 0.088, "ambiguity": 0.023},
            "disagreement": [[0.0, 0.04, 0.02], [0.04, 0.0, 0.01], [0.02, 0.01, 0.0]],
            "kappa": [[1.0, 0.955, 0.977], [0.955, 1.0, 0.988], [0.977, 0.988, 1.0]],
            "double_fault": [[0.02, 0.005, 0.007], [0.005, 0.03, 0.009], [0.007, 0.009, 0.04]],
            "error_correlation": [[1.0, -0.25, None], [-0.25, 1.0, 0.5], [None, 0.5, None]],
        },
        "uncertainty": {
            "total": 0.171,
            "aleatoric": 0.128,
            "epistemic": 0.043,
            "dissent": 0.0312,
            "brier": 0.0345,
            "error_auroc": 0.912,
            "elsewhere": {
                "uniform_noise": {"rows": 360, "confidence": 0.971, "total": 0.982, "epistemic": 0.993},
            },
        },
    }


def example() -> dict[str, Any]:
    """One explained row with a picture."""
    said = [("small-a", "3", 0.71, True), ("teacher", "8", 0.55, True), ("small-b", "8", 0.5, False)]
    file = io.BytesIO()
    Image.new("L", (8, 8), 90).save(file, format="PNG")
    return {
        "row": 41,
        "id": 1203,
        "truth": "8",
        "answer": "3",
        "probability": 0.613,
        "stage": None,
        "said": {
            "members": [
                {"name": name, "answer": answer, "probability": chance, "asked": asked}
                for name, answer, chance, asked in said
            ]
        },
        "flips": [{"without": ["small-a"], "answer": "8"}],
        "image": f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}",
        "occlusion": {
            "height": 8,
            "width": 8,
            "patch": 4,
            "stride": 2,
            "probability": 0.613,
            "drop": [[0.0, 0.4, 0.1], [0.0, 0.2, -0.1], [0.0, 0.0, 0.0]],
        },
    }
