"""VBench's own environment, checkpoints with random weights, and a run whose prompts are VBench's: for `make test-vbench`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.paths import RunPaths
from orchestrator.suite_files import load_suite
from tests.vbench.rig import official, vbench_run

MOVING = "subject_consistency"
"""Whose prompts are those of motion smoothness and dynamic degree too."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get("DVG_VBENCH_PYTHON"):
        return
    skip = pytest.mark.skip(reason="needs VBench's environment: `make vbench-env`, then `make test-vbench`")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """VBENCH_CACHE_DIR with the real networks at random weights."""
    folder = tmp_path_factory.mktemp("cache")
    official(folder, "weights", str(folder))
    return folder


@pytest.fixture(scope="session")
def moving(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    """Seven videos of four of the suite's prompts: of motion smoothness, dynamic degree, and temporal flickering."""
    suite = load_suite("vbench")
    prompts = [entry.prompt for entry in suite.entries if MOVING in entry.dimensions][:2]
    prompts += [entry.prompt for entry in suite.entries if "temporal_flickering" in entry.dimensions][:2]
    return vbench_run(tmp_path_factory.mktemp("run"), prompts, 7)
