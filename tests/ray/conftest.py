"""One small Ray cluster for all tests here that a process runs, on 127.0.0.1."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"

from orchestrator.cluster import Cluster, start_or_join


@pytest.fixture(scope="package")
def cluster() -> Iterator[Cluster]:
    """Ended before the process goes on to other tests."""
    os.environ.pop("RAY_ADDRESS", None)
    started = start_or_join(num_cpus=4)
    yield started
    started.leave()
