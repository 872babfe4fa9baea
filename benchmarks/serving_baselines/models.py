"""The three networks as a server loads them: modules as they are, or compiled ahead of time by our compiler.

The folder holds `facts.json`: `store`, and `digests` of the networks there. Compiled forms are in the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.config.ensemble import Member
from orchestrator.runtime import execute, joint
from orchestrator.runtime.rebuild import rebuild
from orchestrator.store.store import Store

Form = Literal["eager", "compiled"]
Model = Callable[[np.ndarray], np.ndarray]


def one(folder: Path, number: int, form: Form) -> Model:
    """One network: images [B, ...] to logits [B, classes]."""
    if form == "compiled":
        store, digests = _facts(folder)
        return execute.load(store, digests[number], "aoti")
    return _of(_modules(folder)[number])


def together(folder: Path, form: Form) -> Model:
    """All networks: images [B, ...] to logits [members, B, classes]."""
    if form == "compiled":
        store, digests = _facts(folder)
        members = [Member(name=digest, digest=digest, execution="aoti") for digest in digests]
        graph = joint.load(store, members)

        def model(rows: np.ndarray) -> np.ndarray:
            found = graph(rows)
            return np.stack([np.asarray(found[member]) for member in members])

        return model
    modules = _modules(folder)
    return _of(lambda rows: torch.stack([module(rows) for module in modules]))


def _modules(folder: Path) -> list[nn.Module]:
    store, digests = _facts(folder)
    return [rebuild(store, digest).module.eval() for digest in digests]


def _facts(folder: Path) -> tuple[Store, list[str]]:
    facts = json.loads((folder / "facts.json").read_text())
    return Store(facts["store"], create=False), facts["digests"]


def _of(forward: Callable[[Tensor], Tensor]) -> Model:
    torch.set_num_threads(1)

    def model(rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = forward(torch.from_numpy(rows)).numpy()
        return found

    return model
