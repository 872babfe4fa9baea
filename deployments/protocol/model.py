"""What clients see of a spec: a model with one input and some outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.config.base import fingerprint
from orchestrator.config.ensemble import Spec

DATATYPE: Mapping[str, str] = {"uint8": "UINT8", "float32": "FP32"}


@dataclass(frozen=True)
class Tensor:
    """Name, datatype and shape of an input or output; -1 stands for the number of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def plain(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class Model:
    """What clients see of a spec.

    The version is the first 12 hex digits of the spec's digest, so that every answer names exactly the
    tree, weights and members that made it. Each name has one version at a time.
    """

    name: str
    version: str
    input: Tensor
    outputs: tuple[Tensor, ...]

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": "orchestrator_ensemble",
            "inputs": [self.input.plain()],
            "outputs": [output.plain() for output in self.outputs],
        }


def describe(spec: Spec) -> Model:
    """The model that a spec is for clients."""
    signature = spec.signature
    outputs: tuple[Tensor, ...]
    if signature.task == "classification":
        outputs = (
            Tensor("probabilities", "FP32", (-1, signature.outputs)),
            Tensor("label", "INT64", (-1,)),
        )
    else:
        outputs = (Tensor("values", "FP32", (-1, signature.outputs)),)
    return Model(
        name=spec.name,
        version=fingerprint(spec.plain())[:12],
        input=Tensor("input", DATATYPE[signature.input_dtype], (-1, *signature.input_shape)),
        outputs=outputs,
    )
