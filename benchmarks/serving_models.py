"""What the serving benchmark serves: fresh, untrained networks, since speed does not depend on weights."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.serving_arms import TRIO
from orchestrator.config.ensemble import Member, Parallel, Spec
from orchestrator.config.measure import Execution
from orchestrator.config.model import Cnn, CnnKwargs, Mlp, MlpKwargs, ModelSettings
from orchestrator.config.signature import Signature
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
WIDTH = 2048
"""float32 rows of 8 KiB; 1024 of them are 8 MiB a request."""
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
UNTRAINED = (TRIO, "tiny-2", "tiny-8", "bulk")
MEMBERS, TINY_MEMBERS = 3, 8
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

    def expected(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """Probabilities [B, 10] of a spec in this process, its members in their own execution, but those that
        torch compiles run eagerly; for `images` when no rows are given."""
        spec = self.specs[name]
        members = {member: _offline(self.store, member) for member in distinct(spec.tree)}
        parts = np.array_split(self.images if rows is None else rows, len(self.images))
        answers = [predict(spec.tree, members, part, "classification") for part in parts]
        return np.concatenate([found.probs for found in answers if found.probs is not None])


def _offline(store: Store, member: Member) -> execute.Executable:
    return execute.load(store, member.digest, "eager" if member.execution == "aoti" else member.execution)


def make(folder: Path, execution: Execution, names: Collection[str] = UNTRAINED) -> Models:
    """Build and store these; a folder that was made before is used again.

    Args:
        folder: for the store and the baselines' files.
        execution: of all images' members; where it is `aoti`, all is compiled here, and no server compiles
            when it starts.
        names: of `UNTRAINED`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    store = Store(folder / "store")
    plain = [put(store, NETWORK, IMAGES, seed) for seed in range(MEMBERS)]
    tiny = [put(store, TINY, IMAGES, seed) for seed in range(TINY_MEMBERS)]
    bulk = put(store, Mlp(kwargs=MlpKwargs(widths=(4,))), FEATURES, 0)
    specs = {
        TRIO: spec_of(TRIO, plain, execution, IMAGES),
        "tiny-2": spec_of("tiny-2", tiny[:2], execution, IMAGES),
        "tiny-8": spec_of("tiny-8", tiny, execution, IMAGES),
        "bulk": Spec(name="bulk", tree=Member(name="bulk", digest=bulk), signature=FEATURES),
    }
    images = np.random.default_rng(0).integers(0, 256, (CHECKED, 3, 32, 32), dtype=np.uint8)
    models = Models(store, {name: specs[name] for name in names}, folder, images)
    prepare(models, plain)
    return models


def prepare(models: Models, plain: Sequence[str]) -> None:
    """Name all specs, compile what their servers would compile, and tell the baselines of their networks.

    Args:
        models: what is served.
        plain: digests of the baselines' networks.
    """
    store = models.store
    for name, spec in models.specs.items():
        store.set_ref(f"serving/{name}", store.put_spec(spec))
        members = distinct(spec.tree)
        if any(member.execution == "aoti" for member in members):
            joint.load(store, members, batch=BATCH)
    if any(member.execution == "aoti" for spec in models.specs.values() for member in distinct(spec.tree)):
        for digest in plain:
            execute.load(store, digest, "aoti", batch=BATCH)
    facts = {"store": store.location, "digests": list(plain)}
    (models.folder / "facts.json").write_text(json.dumps(facts))


def put(store: Store, model: ModelSettings, signature: Signature, seed: int) -> str:
    """An untrained network."""
    module = build(model, signature, seed=seed)
    return store.put_artifact(
        Draft(model=model, signature=signature, data="none", seed=seed), tensors_of(module)
    )


def spec_of(name: str, digests: Sequence[str], execution: Execution, signature: Signature) -> Spec:
    """The mean of these networks."""
    members = tuple(
        Member(name=f"{name}-{number}", digest=digest, execution=execution, temperature=1.0)
        for number, digest in enumerate(digests)
    )
    return Spec(name=name, tree=Parallel(members=members), signature=signature, batch=BATCH)
