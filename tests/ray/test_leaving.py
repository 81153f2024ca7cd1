"""Leaving a cluster: a reference that any thread frees while Ray shuts down would end the process."""

from __future__ import annotations

import gc
import weakref

import pytest
import ray

from orchestrator.cluster import Cluster


class Cycle:
    """Garbage that only the collector frees, as a shell with its callbacks is."""

    def __init__(self) -> None:
        self.me = self


def test_garbage_is_freed_before_ray_shuts_down_and_none_while_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    garbage, seen = weakref.ref(Cycle()), []
    monkeypatch.setattr(ray, "shutdown", lambda: seen.append((garbage(), gc.isenabled())))
    Cluster("local", owned=True, num_cpus=1, num_gpus=0, uses_roles=False).leave()
    assert seen == [(None, False)]
    assert gc.isenabled()
