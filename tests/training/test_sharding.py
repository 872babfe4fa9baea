"""What ranks do together, in a group of one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from orchestrator.training import sharding


def test_ranks_wait_for_one_that_has_hours_of_work(tmp_path: Path) -> None:
    distributed.init_process_group(
        "gloo",
        init_method=f"file://{tmp_path}/meeting",
        rank=0,
        world_size=1,
        timeout=timedelta(seconds=5),
    )
    try:
        group = distributed.group.WORLD
        assert group is not None
        sharding.wait_long(world=2)
        assert group._get_backend(torch.device("cpu")).options._timeout == sharding.WAIT
    finally:
        distributed.destroy_process_group()


def test_one_worker_has_no_group() -> None:
    sharding.wait_long(world=1)
