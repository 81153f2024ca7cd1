"""Every exchange that runs here, over NCCL, against one GPU: through the benchmark, on tiny models of all families."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.bench.parallel_tables import of

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")]

ROOT = Path(__file__).parents[2]
CLOSE = 2e-2
"""Relative distance of bf16 velocities: other numbers of heads and rows take other kernels."""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("rows") / "rows.json"
    command = [sys.executable, "-m", "experiments.bench.parallel", "--tiny", "--out", str(out), "--minutes", "4"]
    command += ["--sections", "equality", "switch", "decode", "--timeout", "60"]
    found = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-2000:]
    read: list[dict[str, Any]] = json.loads(out.read_text())["rows"]
    return read


def test_every_exchange_equals_one_gpu_and_local_attention_does_not(rows: list[dict[str, Any]]) -> None:
    compared = [row for row in of(rows, "equality") if "distance" in row]
    assert {row["model"] for row in compared} == {"wan2.2-a14b", "hunyuanvideo", "hunyuanvideo-1.5"}
    for row in compared:
        assert row["ranks_agree"], row
        assert (row["distance"] > CLOSE) == (row["backend"] == "local"), row


def test_decoding_on_several_gpus_equals_one(rows: list[dict[str, Any]]) -> None:
    compared = [row for row in of(rows, "decode") if "distance" in row]
    assert compared
    assert all(row["distance"] < 5 * CLOSE for row in compared)


def test_no_width_compiles_anew_and_every_change_is_measured(rows: list[dict[str, Any]]) -> None:
    (switch,) = of(rows, "switch")
    assert switch["graphs"] == 0
    assert all(before["to"] == after["from"] for before, after in itertools.pairwise(switch["changes"]))
