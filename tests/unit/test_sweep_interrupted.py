"""SIGTERM and Ctrl-C at any time of a sweep, and metrics that fail at its end: nothing is spoilt, the same command goes on."""

from __future__ import annotations

import csv
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from rich.console import Console

from experiments.metrics import completing
from experiments.metrics.completing import Lost
from experiments.metrics.measure import Job, measure
from experiments.metrics.quality import Row
from orchestrator import cli_sweep
from orchestrator.cli_metrics import MetricsOptions, drained, measured, run_metrics
from orchestrator.cli_sweep import SweepOptions, conclude, run_sweep
from orchestrator.ledger import Ledger
from orchestrator.mistakes import DiskFull, RunError
from orchestrator.paths import RunPaths
from orchestrator.types import Clip, Item
from tests.fakerun import make_records, make_run, make_spec
from tests.fakesweep import VideoWorker
from tests.unit.test_local import ARM

SIGNALS = [signal.SIGTERM, signal.SIGINT]
LOCAL = SweepOptions(local=True)
SIZE = 32
TOLD = "interrupted; the same command goes on from here"


@pytest.fixture(autouse=True)
def handled() -> Iterator[None]:
    """Ctrl-C is Python's own, whoever runs the tests; afterwards SIGTERM is handled by whom it was before."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    sigterm = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGTERM) is sigterm


class Worker(VideoWorker):
    """Sends this process the signal once, while it makes the second video."""

    number: signal.Signals | None = None

    def decode(self, item: Item, boundary: Any, path: Path) -> Clip:
        if self.number and item.seed == 1:
            number, self.number = self.number, None
            os.kill(os.getpid(), number)
        return super().decode(item, boundary, path)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    made = Worker(size=SIZE)
    monkeypatch.setattr("stages.worker.ClipWorker", lambda arms, **options: made)
    return made


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    shape = {"planner": "full", "frames": ARM.num_frames, "height": SIZE, "width": SIZE, "seeds": [0, 1]}
    arms = {"arms": {"full": {}, "other": {"steps": 20}}, "tracking": {"enabled": False}}
    path.write_text(yaml.safe_dump({"prompts": ["a red circle"], **shape, **arms}))
    return path


def once(number: signal.Signals, do: Callable[..., Any]) -> Callable[..., Any]:
    """``do``, after the signal the first time."""
    left = [number]

    def first(*arguments: Any, **options: Any) -> Any:
        if left:
            os.kill(os.getpid(), left.pop())
        return do(*arguments, **options)

    return first


@pytest.mark.parametrize("number", SIGNALS)
def test_interrupted_while_videos_are_made(
    number: signal.Signals, spec: Path, tmp_path: Path, worker: Worker, capsys: pytest.CaptureFixture[str]
) -> None:
    worker.number, paths = number, RunPaths(tmp_path / "run")
    assert run_sweep(spec, [], paths.root, LOCAL) == cli_sweep.INTERRUPTED
    assert capsys.readouterr().out.count(TOLD) == 1
    assert not paths.report.exists()
    assert run_sweep(spec, [], paths.root, LOCAL) == 0
    assert len(Ledger(paths).records()) == 4


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("place", ["experiments.metrics.completing.measure", "experiments.report.write_report"])
def test_interrupted_at_the_end_the_same_command_measures_and_writes_what_is_missing(
    place: str,
    number: signal.Signals,
    spec: Path,
    tmp_path: Path,
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module, _, name = place.rpartition(".")
    real = getattr(__import__(module, fromlist=[name]), name)
    monkeypatch.setattr(place, once(number, real))
    paths = RunPaths(tmp_path / "run")
    assert run_sweep(spec, [], paths.root, LOCAL) == cli_sweep.INTERRUPTED
    assert capsys.readouterr().out.count(TOLD) == 1
    records = paths.records.read_bytes()
    assert records.count(b"\n") == 4
    assert not paths.report.exists()
    assert run_sweep(spec, [], paths.root, LOCAL) == 0
    assert paths.records.read_bytes() == records
    assert paths.report.exists()
    assert {row["arm"] for row in csv.DictReader(paths.summary.open()) if row["psnr"]} == {"other"}


class Tracker:
    """Gets the signal while it closes, after what was told until then."""

    def __init__(self, number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
        self.number, self.capsys = number, capsys
        self.told, self.closed = "", False

    def close(self) -> None:
        self.told = self.capsys.readouterr().out
        os.kill(os.getpid(), self.number)
        self.closed = True


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_sigterm_leaves_the_putting_in_order_alone_and_a_second_ctrl_c_ends_it(
    number: signal.Signals,
    spec: Path,
    tmp_path: Path,
    worker: Worker,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tracker = Tracker(number, capsys)
    worker.number = number
    monkeypatch.setattr(cli_sweep._Run, "_tracker", lambda self: tracker)
    assert run_sweep(spec, [], tmp_path / "run", LOCAL) == cli_sweep.INTERRUPTED
    assert TOLD in tracker.told, "it is told before anything is waited for"
    assert tracker.closed == (number == signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_interrupted_before_the_first_video(
    number: signal.Signals, spec: Path, tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_sweep, "admit", once(number, cli_sweep.admit))
    assert run_sweep(spec, [], tmp_path / "run", LOCAL) == cli_sweep.INTERRUPTED
    assert run_sweep(spec, [], tmp_path / "run", LOCAL) == 0


@pytest.mark.parametrize("number", SIGNALS)
def test_dvg_metrics_interrupted_goes_on_where_it_was(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", make_records(2)).root
    monkeypatch.setattr(completing, "measure", once(number, measure))
    assert run_metrics(str(run), MetricsOptions("flicker")) == 130
    assert "interrupted; what was measured is kept" in capsys.readouterr().out
    assert run_metrics(str(run), MetricsOptions("flicker")) == 0


def breaking(error: Exception, arm: str) -> Callable[[Job], Row]:
    def broken(job: Job) -> Row:
        if job.record.arm == arm:
            raise error
        return measure(job)

    return broken


@pytest.mark.parametrize("error", [RunError("'s3://b' cannot be reached"), ArithmeticError("odd"), OSError("stale file handle")])
def test_metrics_that_fail_do_not_keep_a_sweep_from_its_report(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = make_records(2)
    ledger = Ledger(make_run(tmp_path / "run", records))
    monkeypatch.setattr(completing, "measure", breaking(error, "dvg"))
    conclude(ledger, make_spec(records), records, [], Console())
    assert ledger.paths.report.exists()
    assert ledger.paths.summary.exists()
    assert str(error) in capsys.readouterr().out


def test_a_disk_without_room_for_metrics_ends_a_sweep_as_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = make_records(1)
    ledger = Ledger(make_run(tmp_path / "run", records))
    monkeypatch.setattr(completing, "measure", breaking(DiskFull("no room"), "dvg"))
    with pytest.raises(DiskFull):
        conclude(ledger, make_spec(records), records, [], Console())


def test_what_the_cluster_could_not_measure_is_counted_left_alone_and_told_how_to_complete(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    records = make_records(2)
    ledger = Ledger(make_run(tmp_path / "run", records))
    left, crashed, *rest = records
    beside: Any = SimpleNamespace(
        num_left=1,
        drain=lambda: "no CPU was free",
        given_up={left.item_key, crashed.item_key},
        fatal=[Lost(crashed, "its process died", fatal=True)],
    )
    drained(beside, ledger, Console())
    told = capsys.readouterr().out
    assert "metrics of 1 video are not measured: no CPU was free" in told
    assert f"`dvg metrics {ledger.store.where}` completes them" in told
    lines: list[str] = []
    rows = measured(ledger, make_spec(records), records, lines.append, beside)
    assert {row["item_key"] for row in rows} <= {record.item_key for record in rest}
    assert [line for line in lines if crashed.video in line] == [f"{crashed.video} was not measured: its process died"]
    assert run_metrics(str(ledger.paths.root), MetricsOptions("flicker", as_json=True)) == 0
    assert json.loads(capsys.readouterr().out)["num_videos"] == 4
