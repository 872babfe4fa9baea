"""Other forms of an artifact, made once and kept beside it: their cache, and what they must answer."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from orchestrator.config.signature import Signature
from orchestrator.errors import CorruptArtifactError
from orchestrator.runtime import fp8
from orchestrator.store.store import Store

FLOAT_TOLERANCE = 1e-4
BF16_TOLERANCE = 0.1
INT8_TOLERANCE = 0.05
"""Relative errors of another engine's outputs; numbers between two integers may be rounded either way, and
sums of bfloat16 are rounded in another order."""

log = logging.getLogger(__name__)


def cached(
    store: Store, digest: str, target: str, facts: Mapping[str, Any], make: Callable[[Path], None]
) -> Path:
    """Folder of a form in the store; `make` writes its files when the store does not have it whole.

    Args:
        store: where the artifact is.
        digest: of the artifact.
        target: name of the form's folder.
        facts: what the form depends on besides the artifact.
        make: writes the form into an empty folder; what it raises passes on, and nothing is kept.
    """
    try:
        folder = store.compiled(digest, target)
    except CorruptArtifactError as error:
        # A cache: what is damaged is made again, and `publish_folder` replaces it.
        log.warning("making it again: %s", error)
        folder = None
    if folder is None:
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch))
            folder = store.publish_folder(digest, target, Path(scratch), facts)
    return folder


def mixed(facts: Mapping[str, Any]) -> str:
    """A short digest of facts, for the name of a form's folder."""
    return hashlib.sha256(repr(sorted(facts.items())).encode()).hexdigest()[:12]


def apart(found: Tensor, wanted: Tensor, signature: Signature | None) -> tuple[Tensor, Tensor]:
    """How far outputs are from what is wanted, and what that is a share of.

    A regression's values count in deviations from the mean of its targets, and as one at least: beside a mean
    far from zero every error looks small. What float32 rounds away of such values is no error.
    """
    off = (found - wanted).abs()
    if signature is None or not any(signature.target_mean):
        return off, wanted
    mean, std = torch.tensor(signature.target_mean), torch.tensor(signature.target_std)
    rounded = 4 * torch.finfo(torch.float32).eps * wanted.abs()
    return (off - rounded).clamp_min(0) / std, ((wanted - mean) / std).abs().clamp_min(1)


def distance(found: Tensor, wanted: Tensor, signature: Signature | None = None) -> float:
    """Relative error: the norm of the difference over the norm of what is wanted (`apart`)."""
    off, size = apart(found, wanted, signature)
    return float(off.norm() / size.norm().clamp_min(1e-12))


def tolerance(module: nn.Module) -> float:
    """Largest relative error of another engine's outputs for this module."""
    if isinstance(module, fx.GraphModule):
        return INT8_TOLERANCE
    # An fp8 layer has bfloat16 biases, or none.
    low = any(weight.dtype in (torch.bfloat16, fp8.TYPE) for weight in module.parameters())
    return BF16_TOLERANCE if low else FLOAT_TOLERANCE
