"""SIGTERM to a sweep that has measured its videos beside Ray, and has left Ray for its report."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.metrics.quality import load_quality
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from tests import tiny
from tests.ray.test_sweep import ROOT, SPEC

TOLD = "interrupted; the same command goes on from here"
CHANGES = {"metrics": {"names": ["psnr", "flicker"]}, "tracking": {"enabled": False}, "cluster": {"heavy_ranks": 1}}
WRITES_FOR_LONG = """
import experiments.report, time
def write_report(*arguments):
    print("the report is written", flush=True)
    time.sleep(300)
experiments.report.write_report = write_report
"""


def sweep(tmp_path: Path, first: str) -> subprocess.Popen[str]:
    """``dvg sweep`` after some lines of Python."""
    spec = tmp_path / "spec.yaml"
    one = {**SPEC, "prompts": SPEC["prompts"][:1], **CHANGES}
    spec.write_text(yaml.safe_dump({**one, "weights": str(tiny.checkpoint())}))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    command = [sys.executable, "-c", f"{first}\nfrom orchestrator.cli import main\nmain()"]
    return subprocess.Popen(
        [*command, "sweep", str(spec), "--out", str(tmp_path / "run")],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended_at(process: subprocess.Popen[str], words: str) -> str:
    """What the process told, SIGTERM being sent to it with these words."""
    told = ""
    assert process.stdout
    for line in process.stdout:
        told += line
        if words in line:
            process.send_signal(signal.SIGTERM)
    process.wait()
    return told


@pytest.mark.slow
def test_sigterm_while_the_report_is_written_ends_a_sweep_as_ctrl_c_does(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    reporting = sweep(tmp_path, WRITES_FOR_LONG)
    told = ended_at(reporting, "the report is written")
    assert (reporting.returncode, told.count(TOLD)) == (130, 1), told
    assert "Traceback" not in told
    assert len(load_quality(paths)) == len(Ledger(paths).records()) == 2
    assert not paths.report.exists()

    again = sweep(tmp_path, "")
    told, _ = again.communicate()
    assert again.returncode == 0, told
    assert paths.report.exists()
    assert [row["flicker"] != "" for row in csv.DictReader(paths.summary.open())] == [True] * 2
