"""The three networks as a server loads them: modules as they are, or compiled ahead of time.

The folder holds `facts.json` (`store`, `digests`) and, compiled by our own compiler, `together.pt2`: all
networks as one graph, logits [members, B, classes]. The compiled form of each alone is in the store.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._inductor import aoti_load_package

from orchestrator.runtime import execute
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
        return _of(_package(folder / "together.pt2"))
    return _of(Together(_modules(folder)))


class Together(nn.Module):
    """Several networks on the same images."""

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [members, B, classes]."""
        return torch.stack([member(images) for member in self.members])


def _modules(folder: Path) -> list[nn.Module]:
    store, digests = _facts(folder)
    return [rebuild(store, digest).module.eval() for digest in digests]


def _facts(folder: Path) -> tuple[Store, list[str]]:
    facts = json.loads((folder / "facts.json").read_text())
    return Store(facts["store"], create=False), facts["digests"]


def _package(path: Path) -> Callable[[Tensor], Tensor]:
    loaded: Callable[[Tensor], Tensor] = aoti_load_package(str(path))
    return loaded


def _of(forward: Callable[[Tensor], Tensor]) -> Model:
    torch.set_num_threads(1)

    def model(rows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = forward(torch.from_numpy(rows)).numpy()
        return found

    return model
