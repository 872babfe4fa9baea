"""Serves one of the Ray Serve baselines until SIGTERM, on a Ray of its own."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

import ray
from ray import serve

from benchmarks.serving_baselines import ray_composition, ray_one_replica

LIMITS = {"max_ongoing_requests": 100}
"""Ray's default of 5 starves a batcher. The composition of the documentation keeps the default."""
CPUS = 8
"""Ray's bookkeeping, so that every replica finds room; the machine decides what is really there."""


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", choices=("composition", "replica"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--form", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--batched", action="store_true", help="a batcher before each model")
    parser.add_argument("--tuned", action="store_true", help="with more requests in work than Ray's default")
    parser.add_argument("--port", type=int, required=True)
    own = parser.parse_args()
    limits = LIMITS if own.tuned else {}
    shape = ray_composition if own.shape == "composition" else ray_one_replica
    stopped = threading.Event()
    ray.init(
        address="local",
        num_cpus=CPUS,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=os.environ["RAY_TMPDIR"],
        object_store_memory=100 * 2**20,
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ["PYTHONPATH"]}},
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    try:
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": own.port},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
        )
        serve.run(shape.application(own.folder, own.form, limits, batched=own.batched))
        stopped.wait()
        serve.shutdown()
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
