"""What VBench's leaderboard takes: a zip of an arm's result files."""

from __future__ import annotations

import zipfile
from pathlib import Path

from experiments.vbench.results import ENDING
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths, file_name

ENDINGS = (ENDING, "_full_info.json")
"""VBench's own files; what else lies beside them is this project's."""
FIXED_DATE = (1980, 1, 1, 0, 0, 0)
"""So that the same results make the same bytes."""


def export_results(run_root: Path, suite: str, arm: str, folder: Path) -> Path:
    """Write ``<suite>-<arm>.zip`` of the arm's scores and work list. Raises ConfigError without results."""
    paths = RunPaths(run_root)
    if not paths.vbench_results(suite, arm).is_file():
        raise ConfigError([f"arm {arm!r} has no results of {suite}; `dvg evaluate` writes {paths.vbench_results(suite, arm)}"])
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{file_name(suite)}-{file_name(arm)}.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(p for p in paths.vbench_arm(suite, arm).iterdir() if p.name.endswith(ENDINGS)):
            archive.writestr(zipfile.ZipInfo(path.name, FIXED_DATE), path.read_bytes(), zipfile.ZIP_DEFLATED)
    return target
