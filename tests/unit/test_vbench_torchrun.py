"""VBench's own torchrun mode: of the very videos that are to be measured, and on this machine alone. VBench itself is played."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.vbench import integrity
from experiments.vbench.campaign import Options
from experiments.vbench.outcome import ArmOutcome
from experiments.vbench.probe import VARIABLE
from experiments.vbench.process import Runtime
from experiments.vbench.surroundings import shut_in
from experiments.vbench.torchrun import LOOPBACK, run_torchrun
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.paths import RunPaths
from orchestrator.suite_files import load_suite
from tests.fakerun import make_record, make_spec
from tests.fakevbench import finished, loads, record_of, text_record, text_run, write_environment, write_weights

FLICKERING = "temporal_flickering"
NUM_FRAMES = make_record().num_frames
FILTERED = "vbench-temporal_flickering-filtered"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, write_environment(tmp_path / "env").python)
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(integrity, "count_frames", lambda path, num_bytes=0, deep=False: NUM_FRAMES)
    return tmp_path / "env"


def silent(line: str) -> None:
    """Nobody listens."""


def test_torchrun_without_a_gpu_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NCCL"):
        run_torchrun(text_run(tmp_path / "run", ["0.25"]), Options(dims=FLICKERING), silent)


def test_torchrun_gives_vbenchs_own_results_and_runs_each_set_of_videos_once(
    tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPUS", "2")
    paths = text_run(tmp_path / "run", ["0.25", "0.5"])
    for _ in range(2):
        found = run_torchrun(paths, Options(dims="quality"), silent)["full"]
        assert found.dimensions[FLICKERING].score == 0.375
        assert found.dimensions["dynamic_degree"].unavailable
        assert found.about["reduce"] == "official_torchrun"
        assert set(json.loads(paths.vbench_results("custom", "full").read_text())) == {FLICKERING}
    assert loads(environment) == [FLICKERING]


def test_a_torchrun_that_fails_tells_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GPUS", "2")
    with pytest.raises(RunError, match="moov atom not found"):
        run_torchrun(text_run(tmp_path / "run", ["0.25", "bad"]), Options(dims=FLICKERING), silent)


def test_torchruns_rendezvous_stays_on_this_machine(tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_GPUS", "2")
    told: list[str] = []
    run_torchrun(text_run(tmp_path / "run", ["0.25"]), Options(dims=FLICKERING), told.append)
    line = next(line for line in told if "torch.distributed.run" in line)
    assert "--nproc_per_node=2" in line
    assert "--rdzv_endpoint=127.0.0.1:0" in line
    assert (environment / "log").read_text().split()[-1] == "lo"  # NCCL's interface


def again(paths: RunPaths, *records: object) -> None:
    """These were made again."""
    keys = {record.item_key for record in records}  # type: ignore[attr-defined]
    ledger = Ledger(paths)
    ledger.forget([record for record in ledger.records() if record.item_key in keys])
    for record in records:
        ledger.append(record)  # type: ignore[arg-type]


def test_a_video_that_was_made_again_is_measured_again(
    tmp_path: Path, environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPUS", "2")
    paths = text_run(tmp_path / "run", ["0.25", "0.5"])
    assert run_torchrun(paths, Options(dims=FLICKERING), silent)["full"].dimensions[FLICKERING].score == 0.375
    again(paths, text_record(paths.root, "full", 1, "0.75"))
    assert run_torchrun(paths, Options(dims=FLICKERING), silent)["full"].dimensions[FLICKERING].score == 0.5
    assert loads(environment) == [FLICKERING] * 2


PROMPT = load_suite("vbench-temporal_flickering").entries[0].prompt


def candidate(root: Path, seed: int, text: str) -> object:
    return record_of(root, make_record("full", "p0", seed, prompt=PROMPT), text)


def filtered_run(root: Path) -> RunPaths:
    """Twenty-five candidates of one prompt of temporal flickering; every third moves."""
    records = [candidate(root, seed, f"{seed / 100} {'moving' if seed % 3 == 0 else ''}") for seed in range(25)]
    spec = make_spec(records) | {"prompts": [{"id": "p0", "prompt": PROMPT, "seed": seed} for seed in range(25)]}  # type: ignore[arg-type]
    return finished(root, records, spec | {"suite": {"name": FILTERED}})  # type: ignore[arg-type]


def filtered(paths: RunPaths) -> ArmOutcome:
    return run_torchrun(paths, Options(dims=FLICKERING, local=True), silent)["full"]


def numbers(found: ArmOutcome) -> list[str]:
    return [Path(record["video_path"]).stem.rpartition("-")[2] for record in found.results[FLICKERING][1]]


def test_torchrun_measures_flickering_on_the_videos_that_the_filter_finds_static(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPUS", "2")
    write_weights(tmp_path / "cache", "dynamic_degree")
    paths = filtered_run(tmp_path / "run")
    found = filtered(paths)
    assert numbers(found) == ["1", "10", "11", "13", "14"]
    assert found.dimensions[FLICKERING].score == pytest.approx((0.01 + 0.10 + 0.11 + 0.13 + 0.14) / 5)
    assert found.dimensions[FLICKERING].num_videos == 5
    assert "74 of 75 prompts have fewer than five static videos" in found.dimensions[FLICKERING].note
    (folder,) = (paths.vbench_arm(FILTERED, "full") / "torchrun").iterdir()
    assert sorted(path.name for path in (folder / "videos").iterdir()) == [f"{PROMPT}-{index}.mp4" for index in range(5)]


def test_a_static_video_that_was_made_again_and_moves_now_is_judged_again_and_makes_room_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPUS", "2")
    write_weights(tmp_path / "cache", "dynamic_degree")
    paths = filtered_run(tmp_path / "run")
    assert numbers(filtered(paths))[:2] == ["1", "10"]
    again(paths, candidate(paths.root, 1, "0.9 moving"), candidate(paths.root, 10, "0.8"))
    found = filtered(paths)
    assert numbers(found) == ["10", "11", "13", "14", "16"]
    assert found.results[FLICKERING][1][0]["video_results"] == 0.8


def test_a_video_that_is_not_whole_is_named_and_does_not_end_its_dimension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_GPUS", "2")
    paths = text_run(tmp_path / "run", ["0.25", "bad"])

    def count(path: Path, num_bytes: int = 0, deep: bool = False) -> int:
        if path.read_text() == "bad":
            raise ValueError("cut short")
        return NUM_FRAMES

    monkeypatch.setattr(integrity, "count_frames", count)
    found = run_torchrun(paths, Options(dims=FLICKERING), silent)["full"].dimensions[FLICKERING]
    assert found.score == 0.25
    assert (found.num_measured, found.num_videos, found.num_left_out) == (1, 2, 0)
    assert ["cut short" in why for why in found.failed.values()] == [True]


def test_vbenchs_own_command_talks_over_the_loopback_and_what_it_would_fetch_goes_nowhere() -> None:
    found = shut_in(Runtime("python", "vbench", "cuda"), FLICKERING, {"https_proxy": "http://proxy:3128", "NO_PROXY": "*"})
    assert {found[f"{name}_SOCKET_IFNAME"] for name in ("NCCL", "GLOO", "TP")} == {"lo"}
    assert {found[name] for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "ALL_PROXY")} == {"http://127.0.0.1:9"}
    assert "NO_PROXY" not in found


LISTENING = """
import json, os, pathlib, sys
import psutil, torch
import torch.distributed as dist
dist.init_process_group("gloo", init_method="env://")
total = torch.ones(1)
dist.all_reduce(total)
here = [c for pid in (os.getpid(), os.getppid()) for c in psutil.Process(pid).net_connections("inet") if c.status == "LISTEN"]
pathlib.Path(f"{sys.argv[1]}.{dist.get_rank()}").write_text(json.dumps([total.item(), [c.laddr.ip for c in here]]))
dist.barrier()
"""


def test_torchs_own_rendezvous_listens_on_the_loopback_alone(tmp_path: Path) -> None:
    script = tmp_path / "listening.py"
    script.write_text(LISTENING)
    launch = [str(LOOPBACK), "torch.distributed.run", "--nnodes=1", "--nproc_per_node=2"]
    meeting = ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "--local_addr=127.0.0.1"]
    argv = [sys.executable, "-P", *launch, *meeting, str(LOOPBACK), str(script), str(tmp_path / "told")]
    surroundings = shut_in(Runtime(sys.executable, "", "cpu"), FLICKERING, os.environ)
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=surroundings)
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in range(2):
        total, listening = json.loads((tmp_path / f"told.{rank}").read_text())
        assert total == 2.0
        assert set(listening) == {"127.0.0.1"}
