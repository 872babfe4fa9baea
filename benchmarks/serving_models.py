"""What the serving benchmark serves: fresh, untrained networks, since speed does not depend on weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.compression.plan import Context, apply_plan
from orchestrator.config.ensemble import Member, Parallel, Spec
from orchestrator.config.measure import Execution
from orchestrator.config.model import Cnn, CnnKwargs, Mlp, MlpKwargs, ModelSettings
from orchestrator.config.signature import Signature
from orchestrator.config.steps import Bf16
from orchestrator.ensemble.tree import distinct, predict
from orchestrator.models.build import build
from orchestrator.runtime import execute, joint
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store

IMAGES = Signature(
    task="classification",
    input_shape=(3, 32, 32),
    input_dtype="uint8",
    outputs=10,
    classes=tuple("0123456789"),
    mean=(125.0, 123.0, 114.0),
    std=(63.0, 62.0, 67.0),
)
WIDTH, BULK_ROWS = 2048, 1024
"""float32 rows of 8 KiB, 8 MiB a request."""
FEATURES = Signature(
    task="regression",
    input_shape=(WIDTH,),
    input_dtype="float32",
    outputs=1,
    mean=(0.0,) * WIDTH,
    std=(1.0,) * WIDTH,
    target_mean=(0.0,),
    target_std=(1.0,),
)
NETWORK = Cnn()
"""545,834 parameters."""
TINY = Cnn(kwargs=CnnKwargs(channels=(4, 8), hidden=16))
IMAGE_MODELS = ("trio", "trio-bf16", "tiny-2", "tiny-8")
BATCH = 32
CHECKED = 16
"""Images whose answers are compared."""


@dataclass(frozen=True)
class Models:
    """The store with all specs, and the folder of the baselines."""

    store: Store
    specs: dict[str, Spec]
    folder: Path
    images: np.ndarray
    """[CHECKED, 3, 32, 32]"""

    def expected(self, name: str) -> np.ndarray:
        """Probabilities [CHECKED, 10] of a spec in this process, its members run eagerly."""
        tree = self.specs[name].tree
        members = {member: execute.load(self.store, member.digest, "eager") for member in distinct(tree)}
        answers = [predict(tree, members, image[None], "classification") for image in self.images]
        return np.concatenate([found.probs for found in answers if found.probs is not None])


def make(folder: Path, execution: Execution) -> Models:
    """Build and store everything; a folder that was made before is used again.

    Args:
        folder: for the store and the baselines' files.
        execution: of all images' members; where it is `aoti`, all is compiled here, and no server compiles
            when it starts.
    """
    store = Store(folder / "store")
    plain = [_put(store, NETWORK, IMAGES, seed) for seed in range(3)]
    low = [_bf16(store, digest) for digest in plain]
    tiny = [_put(store, TINY, IMAGES, seed) for seed in range(8)]
    bulk = _put(store, Mlp(kwargs=MlpKwargs(widths=(4,))), FEATURES, 0)
    specs = {
        "trio": _spec("trio", plain, execution),
        "trio-bf16": _spec("trio-bf16", low, execution),
        "tiny-2": _spec("tiny-2", tiny[:2], execution),
        "tiny-8": _spec("tiny-8", tiny, execution),
        "bulk": Spec(name="bulk", tree=Member(name="bulk", digest=bulk), signature=FEATURES),
    }
    for name, spec in specs.items():
        store.set_ref(f"serving/{name}", store.put_spec(spec))
    if execution == "aoti":
        for digest in plain:
            execute.load(store, digest, "aoti", batch=BATCH)
        for name in IMAGE_MODELS:
            joint.load(store, distinct(specs[name].tree), batch=BATCH)
    (folder / "facts.json").write_text(json.dumps({"store": store.location, "digests": plain}))
    images = np.random.default_rng(0).integers(0, 256, (CHECKED, 3, 32, 32), dtype=np.uint8)
    return Models(store, specs, folder, images)


def _put(store: Store, model: ModelSettings, signature: Signature, seed: int) -> str:
    module = build(model, signature, seed=seed)
    return store.put_artifact(
        Draft(model=model, signature=signature, data="none", seed=seed), tensors_of(module)
    )


def _bf16(store: Store, digest: str) -> str:
    return apply_plan(store, digest, (Bf16(),), Context(seed=0))


def _spec(name: str, digests: list[str], execution: Execution) -> Spec:
    members = tuple(
        Member(name=f"{name}-{number}", digest=digest, execution=execution, temperature=1.0)
        for number, digest in enumerate(digests)
    )
    return Spec(name=name, tree=Parallel(members=members), signature=IMAGES, batch=BATCH)
