"""What ``dvg sweep``, ``dvg report`` and ``dvg track`` do around the shell, with a worker that has no model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import cli_sweep
from orchestrator.checkpoints import Checkpoints
from orchestrator.cli_generate import run_generate
from orchestrator.cli_sweep import SweepOptions, run_report, run_sweep, run_track, scheduler_config
from orchestrator.config import build_sweep, load_sweep
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.ownership import RunLock
from orchestrator.paths import RunPaths
from orchestrator.types import Decision, Item
from tests.unit.test_keeper import Whole
from tests.unit.test_local import FakeWorker

LOCAL = SweepOptions(local=True)


class Worker(FakeWorker):
    """Fails every item at first, then none."""

    broken = True

    def sketch(self, item: Item) -> tuple[Decision, dict[str, float], Any]:
        if self.broken:
            raise ArithmeticError("asked to fail")
        return super().sketch(item)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    made = Worker()
    monkeypatch.setattr("stages.worker.ClipWorker", lambda arms, **options: made)
    monkeypatch.setattr(cli_sweep, "conclude", lambda *arguments: ())
    return made


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"prompts": ["a red circle", "a blue square"], "tracking": {"enabled": False}}))
    return path


def test_a_failure_counts_until_its_item_is_made_or_no_longer_asked_for(tmp_path: Path, spec: Path, worker: Worker) -> None:
    out = tmp_path / "run"
    assert run_sweep(spec, [], out, LOCAL) == cli_sweep.PARTLY_FAILED
    worker.broken = False
    assert run_sweep(spec, [], out, SweepOptions(local=True, limit=1)) == 0
    assert run_sweep(spec, ["steps=40", "arms.other.steps=40"], out, SweepOptions(local=True, limit=1)) == 0
    assert len(Ledger(RunPaths(out)).failures()) == 1


def test_checkpoints_are_swept_but_for_those_of_items_that_the_spec_still_asks_for(
    tmp_path: Path, spec: Path, worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.broken = False
    out = tmp_path / "run"
    kept = Checkpoints(RunPaths(out).checkpoints)
    kept.open([])
    _, second = (item.item_key for item in load_sweep(spec, []).items)
    for key in (second, "of an older spec"):
        kept.save(key, Whole().pack())
    assert run_sweep(spec, ["cluster.checkpoints=false"], out, SweepOptions(local=True, limit=1)) == 0
    assert len(list(kept.root.iterdir())) == 2, "switched off, they are neither used nor touched"
    shutil.rmtree(RunPaths(out).videos)
    RunPaths(out).records.unlink()
    assert run_sweep(spec, [], out, SweepOptions(local=True, limit=1)) == 0
    assert [found.item_key for found in kept.open([second]).values()] == [second]
    assert len(list(kept.root.iterdir())) == 1
    assert "go on from" not in capsys.readouterr().out


def test_checkpoints_that_a_start_left_behind_go_though_nothing_is_left_to_make(
    tmp_path: Path, spec: Path, worker: Worker
) -> None:
    """As of a driver that died between its last record and its end, or of items that the spec asks for no more."""
    worker.broken = False
    out = tmp_path / "run"
    assert run_sweep(spec, [], out, LOCAL) == 0
    first, second = (item.item_key for item in load_sweep(spec, []).items)
    kept = Checkpoints(RunPaths(out).checkpoints)
    kept.open([])
    for key in (first, second, "of an older spec"):
        kept.save(key, Whole().pack())
    assert run_sweep(spec, ["cluster.checkpoints=false"], out, LOCAL) == 0
    assert len(list(kept.root.iterdir())) == 3, "switched off, they are not touched"
    assert run_sweep(spec, [], out, LOCAL) == 0
    assert not kept.root.exists()


def test_the_manifest_holds_every_start_with_its_whole_command(tmp_path: Path, spec: Path, worker: Worker) -> None:
    worker.broken = False
    out = tmp_path / "run"
    for options in (SweepOptions(local=True, limit=1), LOCAL):
        run_sweep(spec, ["max_attempts=2"], out, options)
    told = [start["command"] for start in json.loads(RunPaths(out).manifest.read_text())["starts"]]
    same = ["dvg", "sweep", str(spec), "max_attempts=2", "--out", str(out)]
    assert told == [[*same, "--limit", "1", "--local"], [*same, "--local"]]


def test_other_settings_under_the_name_of_a_finished_arm_are_refused(tmp_path: Path, spec: Path, worker: Worker) -> None:
    worker.broken = False
    run_sweep(spec, [], tmp_path / "run", LOCAL)
    with pytest.raises(ConfigError, match="arm dvg made with other settings"):
        run_sweep(spec, ["steps=40"], tmp_path / "run", LOCAL)


def test_a_recorded_video_that_is_gone_is_named(tmp_path: Path, spec: Path, worker: Worker) -> None:
    worker.broken = False
    out = tmp_path / "run"
    run_sweep(spec, [], out, LOCAL)
    record = Ledger(RunPaths(out)).records()[0]
    (out / record.video).unlink()
    for again in (lambda: run_sweep(spec, [], out, LOCAL), lambda: run_report(out)):
        with pytest.raises(ConfigError, match=f"1 of the run's recorded videos are gone, '{record.video}'"):
            again()


@pytest.mark.parametrize("text", ["", "- a", "a: ["])
def test_a_broken_config_of_a_run_is_told_in_one_line(tmp_path: Path, text: str) -> None:
    paths = RunPaths(tmp_path)
    paths.config.write_text(text)
    with pytest.raises(ConfigError, match=paths.config.name) as caught:
        run_report(tmp_path)
    assert len(caught.value.mistakes) == 1
    with pytest.raises(ConfigError, match=paths.config.name):
        run_track(tmp_path, None)


def test_a_run_in_use_is_neither_reported_nor_mirrored(tmp_path: Path, spec: Path, worker: Worker) -> None:
    out = tmp_path / "run"
    run_sweep(spec, [], out, LOCAL)
    with RunLock(RunPaths(out)):
        for command in (lambda: run_report(out), lambda: run_track(out, None)):
            with pytest.raises(ConfigError, match="in use by process"):
                command()


def test_a_tracking_server_that_cannot_be_written_is_one_line(tmp_path: Path, spec: Path, worker: Worker) -> None:
    run_sweep(spec, [], tmp_path / "run", LOCAL)
    with pytest.raises(RunError, match=r"^MLflow could not be written: .*$") as told:
        run_track(tmp_path / "run", "nonsense://me:secret@nowhere")
    assert "secret" not in str(told.value)


def test_every_sketch_worker_may_be_busy_at_once() -> None:
    many = build_sweep({"prompts": ["x"], "cluster": {"sketch_workers": 12, "heavy_ranks": 8, "decode_workers": 6}}, Path())
    assert scheduler_config(many).max_ahead >= 12
    assert scheduler_config(many).max_undecoded >= 6


@pytest.mark.parametrize(
    ("prompt", "seed", "says"), [("x", -4, "seed"), ("x", 2**64, "seed"), ("\udcff", 0, "prompt"), (" ", 0, "must not be empty")]
)
def test_a_prompt_or_seed_no_model_can_take_is_refused_in_one_line(tmp_path: Path, prompt: str, seed: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as told:
        run_generate(prompt, seed, {}, tmp_path / "v.mp4", as_json=True)
    assert len(told.value.mistakes) == 1


def test_a_video_is_not_written_over_a_folder(tmp_path: Path) -> None:
    (tmp_path / "v.mp4").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        run_generate("a red circle", 0, {}, tmp_path / "v.mp4", False)


def test_a_sweep_for_gpus_that_are_not_here_says_so_before_its_first_item(
    tmp_path: Path, spec: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match="device 'cuda' is not here"):
        run_sweep(spec, ["cluster.gpus_per_rank=1"], tmp_path / "run", LOCAL)
    assert Ledger(RunPaths(tmp_path / "run")).failures() == []
