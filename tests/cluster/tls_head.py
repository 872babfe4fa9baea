"""A Ray of its own under TLS, run as a process: tells its address and waits until it is to end."""

from __future__ import annotations

import logging
import sys
from typing import Any

import ray


class Doubler:
    """An actor: a process that calls and objects reach by gRPC."""

    def double(self, value: Any) -> Any:
        return value * 2


def main() -> None:
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        object_store_memory=80 * 2**20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    remote: Any = ray.remote(Doubler)
    actor = remote.options(num_cpus=0).remote()
    answer = ray.get(actor.double.remote(ray.put(b"x" * 2**21)))
    print(len(answer), ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()


if __name__ == "__main__":
    main()
