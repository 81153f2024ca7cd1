"""``dvg plan SPEC --address``: a running cluster is looked at, joined and left, and nothing is started on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import yaml

GPUS = {"gpus_per_sketch": 1, "gpus_per_rank": 1, "gpus_per_decode": 1, "heavy_ranks": 8}


def planned(tmp_path, address, cluster):
    spec = tmp_path / "spec.yaml"
    settings = {"model": "wan-mini", "device_name": "NVIDIA H200", "prompts": ["a circle"], "cluster": cluster}
    spec.write_text(yaml.safe_dump(settings))
    command = [sys.executable, "-m", "orchestrator", "plan", str(spec), "--address", address, "--json"]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RAY_AUTH_MODE": "disabled"}, timeout=120)


def test_a_running_cluster_is_looked_at_and_left_as_it_was(cluster, tmp_path):
    before = {job["JobID"] for job in _jobs()}
    done = planned(tmp_path, cluster.address, GPUS)
    assert done.returncode == 2
    assert "a pod is whole on one node, 8 x 1 GPU, and no node has that much left" in done.stderr
    assert "1 x plain node (4 CPUs)" in done.stderr
    found = json.loads(done.stdout)["feasibility"]
    assert found["fits"] is False
    assert cluster.address in found["cluster"]
    from ray._private.state import actors

    planner = {job["JobID"] for job in _jobs()} - before
    assert len(planner) == 1
    assert [actor for actor in actors().values() if actor["JobID"] in planner] == []


def _jobs():
    from ray._private.state import jobs

    return jobs()
