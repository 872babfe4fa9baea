"""The `ray up` files are valid by Ray's own schema, and safe by our rules."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.architecture.modules import ROOT

FILES = ("cluster.yaml", "cluster-onprem.yaml")


def read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))
    return values


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_file(name: str) -> None:
    """As `ray up` does it: fill in the defaults, then hold the result against the schema."""
    validate_config(prepare_config(read(name)))


def test_head_does_no_work() -> None:
    assert prepare_config(read("cluster.yaml"))["available_node_types"]["head"]["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in " ".join(read("cluster-onprem.yaml")["head_start_ray_commands"])


@pytest.mark.parametrize("name", FILES)
def test_dashboard_stays_on_loopback_and_asks_for_a_token(name: str) -> None:
    values = read(name)
    start = " ".join(values["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start
    assert "RAY_AUTH_MODE=token" in start
    assert all(
        "RAY_AUTH_MODE=token" in line or line == "ray stop" for line in values["worker_start_ray_commands"]
    )


def test_ray_refuses_a_broken_file() -> None:
    """The check above can fail."""
    with pytest.raises(Exception, match="max_wrkers"):
        validate_config(prepare_config(read("cluster.yaml") | {"max_wrkers": 1}))
