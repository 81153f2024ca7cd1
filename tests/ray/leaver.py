"""A driver that holds things in the name of sweeps and waits to be killed: ``python -m tests.ray.leaver GCS SWEEP LIFETIME``."""

from __future__ import annotations

import sys
import time

import ray
from ray.util import placement_group

from orchestrator.naming import Holding


class Idle:
    def ready(self) -> None:
        return


def main(gcs: str, sweep: str, lifetime: str | None) -> None:
    ray.init(address=gcs, namespace="leaver", log_to_driver=False, logging_level="ERROR")
    pod, sketch = Holding(sweep, "pod", 0).name, Holding(sweep, "sketch", 0).name
    group = placement_group([{"CPU": 0.1, "GPU": 1}], strategy="STRICT_PACK", name=pod, lifetime=lifetime)
    group.wait(60)
    actor = ray.remote(Idle).options(name=sketch, lifetime=lifetime, num_cpus=0).remote()
    ray.get(actor.ready.remote())
    print("held", flush=True)
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
