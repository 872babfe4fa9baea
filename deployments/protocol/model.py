"""What clients see of a spec: a model with one input and some outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, singledispatch
from typing import Any

from deployments.protocol.datatypes import BYTES, WIRE
from orchestrator.config.base import fingerprint
from orchestrator.config.encoding import AudioEncoding, Encoding, Number, TableEncoding, TextEncoding
from orchestrator.config.ensemble import Cascade, Combined, Spec
from orchestrator.ensemble.tree import distinct

PLATFORM = "orchestrator_ensemble"

DATATYPE: Mapping[str, str] = {"uint8": "UINT8", "float32": "FP32", "int32": "INT32", "int16": "INT16"}

INPUT = "input"
"""Name of the only input; a table has one for each column instead."""


@dataclass(frozen=True)
class Tensor:
    """Name, datatype and shape of an input or output; -1 stands for the number of rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    facts: tuple[tuple[str, str | int], ...] = ()
    """What else metadata says of it: its `parameters`."""

    def plain(self) -> dict[str, Any]:
        found = {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}
        return {**found, "parameters": dict(self.facts)} if self.facts else found

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
    """Rows as the ensemble takes them."""
    outputs: tuple[Tensor, ...]
    """Those of every answer."""
    extras: tuple[Tensor, ...] = ()
    """Outputs that an answer has only when the request names them."""
    classes: tuple[str, ...] = ()
    """Names of classes, or of labels, in their order, if they are known."""
    members: tuple[str, ...] = ()
    """Names of the distinct members in the order of the tree: the second axis of `member_probs`."""
    encoding: Encoding | None = None
    """How rows are made of what clients send; without it they send rows."""

    @cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        """What clients send."""
        return (self.input,) if self.encoding is None else raw_inputs(self.encoding)

    @cached_property
    def encoded_by(self) -> str:
        """Names the encoding; empty without one."""
        return "" if self.encoding is None else fingerprint(self.encoding.plain())[:12]

    @cached_property
    def tensors(self) -> Mapping[str, Tensor]:
        """All outputs by name."""
        return {output.name: output for output in (*self.outputs, *self.extras)}

    def metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "versions": [self.version],
            "platform": PLATFORM,
            "inputs": [tensor.plain() for tensor in self.inputs],
            "outputs": [output.plain() for output in self.outputs]
            + [output.plain() | {"parameters": {"on_request": True}} for output in self.extras],
        }

    def config(self, max_body_bytes: int) -> dict[str, Any]:
        """The model's configuration in Triton's form, as its load generators want it."""

        def tensor(one: Tensor) -> dict[str, Any]:
            # Without the rows' axis, which `max_batch_size` stands for.
            kind = "TYPE_STRING" if one.datatype == BYTES else "TYPE_" + one.datatype
            return {"name": one.name, "data_type": kind, "dims": list(one.shape[1:]) or [1]}

        return {
            "name": self.name,
            "platform": PLATFORM,
            "backend": PLATFORM,
            "max_batch_size": self.most_rows(max_body_bytes),
            "input": [tensor(one) for one in self.inputs],
            "output": [tensor(output) for output in self.outputs],
        }

    def most_rows(self, max_body_bytes: int) -> int:
        """Rows of a request: as many as a body has room for, once they are encoded."""
        return max(1, max_body_bytes // self.input.row_bytes)


@singledispatch
def raw_inputs(encoding: Any) -> tuple[Tensor, ...]:
    """The inputs that clients fill. An axis of 1 may be left out: [rows] is [rows, 1]."""
    raise TypeError(type(encoding).__name__)


@raw_inputs.register
def _of_text(_: TextEncoding) -> tuple[Tensor, ...]:
    return (Tensor(INPUT, BYTES, (-1, 1), (("content_type", "text/plain"),)),)


@raw_inputs.register
def _of_audio(encoding: AudioEncoding) -> tuple[Tensor, ...]:
    return (Tensor(INPUT, BYTES, (-1, 1), (("content_type", "audio/wav"), ("rate_hz", encoding.rate))),)


@raw_inputs.register
def _of_table(encoding: TableEncoding) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(column.name, "FP32" if isinstance(column, Number) else BYTES, (-1, 1))
        for column in encoding.columns
    )


def describe(spec: Spec) -> Model:
    """The model that a spec is for clients."""
    signature = spec.signature
    wide = (-1, signature.outputs)
    outputs = {
        "classification": (Tensor("probabilities", "FP32", wide), Tensor("label", "INT64", (-1,))),
        "multilabel": (Tensor("probabilities", "FP32", wide), Tensor("labels", "BOOL", wide)),
        "regression": (Tensor("values", "FP32", wide),),
    }[signature.task]
    if isinstance(spec.tree, Combined) and spec.tree.reject is not None:
        outputs += (Tensor("rejected", "BOOL", (-1,)),)
    return Model(
        name=spec.name,
        version=fingerprint(spec.plain())[:12],
        input=Tensor(INPUT, DATATYPE[signature.input_dtype], (-1, *signature.input_shape)),
        outputs=outputs,
        extras=_extras(spec),
        classes=signature.classes,
        members=tuple(member.name for member in distinct(spec.tree)),
        encoding=signature.encoding,
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
