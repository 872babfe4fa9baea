"""Small specs that the tests of this folder share."""

from __future__ import annotations

from orchestrator.config.ensemble import Cascade, Member, Node, Parallel, Spec, WeightedMix
from orchestrator.config.signature import Signature

IMAGES = Signature(
    task="classification",
    input_shape=(1, 2, 3),
    input_dtype="uint8",
    outputs=2,
    classes=("no", "yes"),
    mean=(0.0,),
    std=(1.0,),
)
FEATURES = Signature(
    task="regression",
    input_shape=(3,),
    input_dtype="float32",
    outputs=2,
    mean=(0.0,) * 3,
    std=(1.0,) * 3,
    target_mean=(0.0, 0.0),
    target_std=(1.0, 1.0),
)
A, B = (Member(name=name, digest=name * 64) for name in "ab")
PARALLEL = Parallel(members=(A, B))
CASCADE = Cascade(stages=(A, B), thresholds=(0.8,))
MIX = WeightedMix(members=(A, B), weights=(0.25, 0.75))


def spec(tree: Node = PARALLEL, signature: Signature = IMAGES, name: str = "small") -> Spec:
    return Spec(name=name, tree=tree, signature=signature, weight_epoch=3)
