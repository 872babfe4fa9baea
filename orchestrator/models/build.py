"""Settings to modules: the one place that builds a network."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from orchestrator.config.imports import resolve
from orchestrator.config.model import ImportedModel, ModelSettings
from orchestrator.config.signature import Signature
from orchestrator.errors import ModelError

# Imported for their registration with `make_body`.
from orchestrator.models import (  # noqa: F401
    airbench,
    audio_cnn,
    audio_transformer,
    cnn,
    ft_transformer,
    mlp,
    resnet,
    side_by_side,
    text_cnn,
    text_ngrams,
    text_transformer,
    vit,
    wave_cnn,
)
from orchestrator.models.base import make_body
from orchestrator.models.served import Served


def build(
    settings: ModelSettings,
    signature: Signature,
    *,
    allowed: Collection[str] = (),
    seed: int | None = None,
) -> Served:
    """A fresh model in training mode, on the CPU.

    Args:
        settings: a built-in architecture, or an import path that `allowed` must list.
        signature: input, output and scaling.
        allowed: import paths whose code may run.
        seed: of the initial weights (torch's CPU generator; the caller's own state is left as it was).
            Without it they are drawn from the caller's generator.

    Raises:
        ModelError: the architecture does not fit the input, the factory is not allowed, or it does not
            give a module of [B, outputs].
    """
    with nullcontext() if seed is None else torch.random.fork_rng(devices=()):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        if isinstance(settings, ImportedModel):
            model = Served(signature, _call_factory(settings, signature, allowed))
            _try_rows(model, settings.factory, signature)
        else:
            model = Served(signature, make_body(settings, signature))
    return model.train()


def example_rows(signature: Signature, rows: int) -> Tensor:
    """Zeros [rows, *input_shape] of the signature's type: for tracing, trial runs and counting.

    Numbers of tokens are ones: zeros are padding, which models may leave out.
    """
    value = int(signature.input_dtype == "int32")
    return torch.full((rows, *signature.input_shape), value, dtype=getattr(torch, signature.input_dtype))


_RANGES = {"uint8": (0, 256), "int16": (-3000, 3000), "int32": (1, 1000)}
"""Of random pixels, sound and tokens; models cut tokens to those that they know."""


def example_inputs(signature: Signature, rows: int, seed: int = 0) -> NDArray[Any]:
    """Random rows of the right shape and scale: pixels, features, sound, or numbers of tokens without
    padding."""
    rng = np.random.default_rng(seed)
    if signature.input_dtype != "float32":
        low, high = _RANGES[signature.input_dtype]
        kind = np.dtype(signature.input_dtype)
        return rng.integers(low, high, size=(rows, *signature.input_shape), dtype=kind)
    noise = rng.standard_normal((rows, *signature.input_shape))
    if len(signature.input_shape) == 1 and signature.mean:
        noise = noise * np.asarray(signature.std) + np.asarray(signature.mean)
    return noise.astype(np.float32)


def _call_factory(settings: ImportedModel, signature: Signature, allowed: Collection[str]) -> nn.Module:
    factory = resolve(settings.factory, allowed)
    try:
        body = factory(signature, **settings.kwargs)
    except Exception as error:
        raise ModelError(
            f"the model factory failed ({type(error).__name__}: {error})",
            settings.factory,
            "it is called as fn(signature, **kwargs)",
        ) from error
    if not isinstance(body, nn.Module):
        raise ModelError(
            f"the model factory must return a torch.nn.Module; it returned {type(body).__name__}",
            settings.factory,
        )
    return body


def _try_rows(model: Served, factory: str, signature: Signature) -> None:
    """Two rows through the model, so that a wrong output is found here and not in a worker."""
    try:
        with torch.no_grad():
            out = model.eval()(example_rows(signature, 2))
    except Exception as error:
        raise ModelError(
            f"the model fails on two rows of shape {list(signature.input_shape)} "
            f"({type(error).__name__}: {error})",
            factory,
            "it gets scaled float32 rows [B, *signature.input_shape]; raw ones where signature.mean is empty",
        ) from error
    wanted = (2, signature.outputs)
    if not isinstance(out, Tensor) or out.shape != wanted or not out.is_floating_point():
        got = f"{out.dtype} {list(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
        raise ModelError(
            f"for two rows the model must return floating point {list(wanted)}; it returned {got}",
            factory,
            "return logits (classification) or scaled targets (regression) as one tensor",
        )
