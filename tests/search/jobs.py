"""A search over the real store, data and steps, on a model that nobody trained."""

from __future__ import annotations

from pathlib import Path

from orchestrator.config.data import EmbeddedData
from orchestrator.config.measure import Metric
from orchestrator.config.model import Mlp, MlpKwargs
from orchestrator.config.search import SearchSettings
from orchestrator.data.load import load
from orchestrator.models.build import build
from orchestrator.runtime.rebuild import tensors_of
from orchestrator.search.trial import TrialJob
from orchestrator.store.artifacts import Draft
from orchestrator.store.store import Store


def job_over_a_tiny_model(folder: Path, settings: SearchSettings) -> TrialJob:
    """What all its trials share; the store is `folder/store`."""
    dataset = load(EmbeddedData(limit=300), seed=0, cache=folder / "cache")
    model = Mlp(kwargs=MlpKwargs(widths=(32, 32)))
    module = build(model, dataset.signature, seed=0)
    draft = Draft(
        model=model,
        signature=dataset.signature,
        plan=(),
        decisions=(),
        parents=(),
        data=dataset.digest,
        seed=0,
    )
    parent = Store(folder / "store").put_artifact(draft, tensors_of(module))
    return TrialJob(
        search=settings,
        parent=parent,
        store=str(folder / "store"),
        data_folder=str(dataset.folder),
        data_digest=dataset.digest,
        metric=Metric(),
        seed=0,
    )
