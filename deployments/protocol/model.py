"""What clients see of a spec: a model with one input and some outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from deployments.protocol.datatypes import WIRE
from orchestrator.config.base import fingerprint
from orchestrator.config.ensemble import Cascade, Combined, Spec
from orchestrator.ensemble.tree import distinct

PLATFORM = "orchestrator_ensemble"

DATATYPE: Mapping[str, str] = {"uint8": "UINT8", "float32": "FP32"}


@dataclass(frozen=True)
class Tensor:
    """Name, datatype and shape of an input or output; -1 stands for the number of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def plain(self) -> dict[str, Any]:
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this datatype and some shape."""
        return math.prod(shape) * WIRE[self.datatype].itemsize

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.bytes_of(self.shape[1:])


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
    """Those of every answer."""
    extras: tuple[Tensor, ...] = ()
    """Outputs that an answer has only when the request names them."""
    classes: tuple[str, ...] = ()
    """Class names in label order, if they are known."""
    members: tuple[str, ...] = ()
    """Names of the distinct members in the order of the tree: the second axis of `member_probs`."""

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All outputs by name."""
        return {output.name: output for output in (*self.outputs, *self.extras)}

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": PLATFORM,
            "inputs": [self.input.plain()],
            "outputs": [output.plain() for output in self.outputs]
            + [output.plain() | {"parameters": {"on_request": True}} for output in self.extras],
        }

    def config(self, max_body_bytes: int) -> dict[str, Any]:
        """The model's configuration in Triton's form, as its load generators want it."""

        def tensor(one: Tensor) -> dict[str, Any]:
            # Without the rows' axis, which `max_batch_size` stands for.
            kind = "TYPE_" + one.datatype
            return {"name": one.name, "data_type": kind, "dims": list(one.shape[1:]) or [1]}

        return {
            "name": self.name,
            "platform": PLATFORM,
            "backend": PLATFORM,
            "max_batch_size": max(1, max_body_bytes // self.input.row_bytes),
            "input": [tensor(self.input)],
            "output": [tensor(output) for output in self.outputs],
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
        extras=_extras(spec),
        classes=signature.classes,
        members=tuple(member.name for member in distinct(spec.tree)),
    )


def _extras(spec: Spec) -> tuple[Tensor, ...]:
    """What an answer can say about how it was made: per member, per stage, and how sure it is."""
    members, outputs = len(distinct(spec.tree)), spec.signature.outputs
    found = []
    if members > 1:
        found += [
            Tensor("member_probs", "FP32", (-1, members, outputs)),
            Tensor("member_weights", "FP32", (-1, members)),
            Tensor("disagreement", "FP32", (-1,)),
        ]
    if isinstance(spec.tree, Cascade):
        found.append(Tensor("exit_stage", "INT64", (-1,)))
    if isinstance(spec.tree, Combined) and spec.tree.prediction_sets is not None:
        found.append(Tensor("prediction_set", "BOOL", (-1, outputs)))
    return tuple(found)
