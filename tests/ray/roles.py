"""A sweep on four nodes that carry roles: ``python -m tests.ray.roles FOLDER`` prints where the workers of each kind ran.

In a process of its own, because a process has one Ray connection.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import ray
from ray.cluster_utils import Cluster

from orchestrator.cluster_config import ClusterConfig
from orchestrator.driver import run_on_ray
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler
from tests.ray.fakes import ARM, FakeWorkshop, items, sweep


class WhereaboutsWorkshop(FakeWorkshop):
    """Leaves word of the node each worker is on."""

    def make(self, parts: frozenset[str], device: str, num_threads: int, groups: object = None) -> object:
        node = ray.get_runtime_context().get_node_id()
        (self.folder / f"node.{'-'.join(sorted(parts))}.{node}").touch()
        return super().make(parts, device, num_threads)


def main(folder: Path) -> None:
    cluster = Cluster()
    store = {"include_dashboard": False, "object_store_memory": 80 * 2**20}
    cluster.add_node(num_cpus=0, labels={"role": "head"}, **store)
    for role, num_cpus in {"sketch": 4, "other": 2, "heavy": 4}.items():  # a pod would fit "other" best
        cluster.add_node(num_cpus=num_cpus, labels={"role": role}, object_store_memory=80 * 2**20)
    os.environ["RAY_ADDRESS"] = cluster.address
    made = items(key0="", key1="")
    try:
        ledger = Ledger(RunPaths(folder / "run"))
        ray.init(address=cluster.address)
        roles = {node["NodeID"]: node["Labels"]["role"] for node in ray.nodes()}
        ray.shutdown()
        workshop = WhereaboutsWorkshop(folder, os.getpid())
        run_on_ray(
            sweep(made, ClusterConfig(sketch_workers=3)), made, Scheduler(), Runbook(ledger, {"dvg": ARM}), workshop=workshop
        )
        seen = sorted({(path.name.split(".")[1], roles[path.name.split(".")[2]]) for path in folder.glob("node.*")})
        print(json.dumps({"records": len(ledger.records()), "roles": seen}))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
