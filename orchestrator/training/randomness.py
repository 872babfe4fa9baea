"""torch's generators of every rank, as tensors that a state within an epoch keeps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from orchestrator.training import sharding


def random_states(device: torch.device, world: int) -> dict[str, Tensor]:
    """By name and rank: the CPU's generator (`random<rank>`), and that of a GPU (`cuda<rank>`). Each rank
    must call."""
    states = {"random": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    found: dict[str, Tensor] = {}
    for name, state in states.items():
        # NCCL knows tensors on GPUs only.
        ranks = sharding.gather_rows(state if world == 1 else state.to(device), world)
        found |= {f"{name}{rank}": each.cpu() for rank, each in enumerate(ranks)}
    return found


def restore(states: Mapping[str, Tensor], device: torch.device, rank: int) -> None:
    """Let the rank's random numbers go on after those of `random_states`, where it has them."""
    mine, on_gpu = states.get(f"random{rank}"), states.get(f"cuda{rank}")
    if mine is not None:
        torch.set_rng_state(mine)
    if on_gpu is not None and device.type == "cuda":
        torch.cuda.set_rng_state(on_gpu, device)
