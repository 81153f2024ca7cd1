"""Every node of a cluster has one monitor, which takes no CPU slot and goes with the sweep."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from experiments.watching import Nodes


def test_other_hosts_get_one_monitor_each_and_this_one_none(cluster: Any) -> None:
    (host,) = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    here, elsewhere = Nodes(host), Nodes("another machine")
    free = ray.available_resources()["CPU"]
    assert here.sample() == {}
    found: dict[str, dict[str, float]] = {}
    while not found:  # the first may be late: its process is starting
        found = elsewhere.sample()
    assert found[host]["cpu_utilization_percentage"] >= 0
    assert list(elsewhere._actors) == [host]
    assert ray.available_resources()["CPU"] == free
    monitor = elsewhere._actors[host]
    elsewhere.close()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(monitor.sample.remote())
    assert elsewhere._actors == {}
