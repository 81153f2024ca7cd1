"""What machines do is sampled beside the sweep and reaches MLflow once, at its own times."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from experiments import watching
from experiments.mlflow_system import Samples
from experiments.system_metrics import Machine, parse_gpus
from experiments.tracking import wants_system_metrics
from experiments.watching import Watch, node_name
from orchestrator.paths import RunPaths
from tests.fakerun import make_records, make_run, make_spec


class History:
    """Of an MLflow run: what was logged."""

    def __init__(self) -> None:
        self.points: list[Any] = []
        self.client = self
        self.metrics: dict[str, float] = {}
        self.run_id = "run"

    def at_once(self) -> Any:
        import contextlib

        return contextlib.nullcontext()

    def log_points(self, known: Any, groups: Any) -> None:
        self.points += [point for group in groups for point in group]
        self.metrics = {point.key: point.value for point in self.points}

    def get_metric_history(self, run_id: str, name: str) -> list[Any]:
        return [point for point in self.points if point.key == name]


def rows(paths: RunPaths) -> list[dict[str, Any]]:
    return [json.loads(line) for line in paths.system.read_text().splitlines()]


def test_a_sample_is_finite_and_has_the_names_of_mlflows_own(tmp_path: Path) -> None:
    sample = Machine(tmp_path).sample()
    assert {"cpu_utilization_percentage", "system_memory_usage_percentage", "disk_usage_percentage"} <= set(sample)
    assert 0 < sample["system_memory_usage_percentage"] < 100


def test_gpus_are_told_one_by_one_and_what_they_do_not_tell_is_absent() -> None:
    found = parse_gpus("97, 40960, 81920, 612.5\n0, 0, 81920, [N/A]\n\n")
    assert found["gpu_0_utilization_percentage"] == 97
    assert found["gpu_0_memory_usage_percentage"] == 50
    assert found["gpu_0_memory_usage_megabytes"] == pytest.approx(42949.67, abs=0.01)
    assert "gpu_1_power_usage_watts" not in found
    assert found["gpu_1_memory_usage_percentage"] == 0


def test_this_machine_is_sampled_until_the_watch_is_closed(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    watch = Watch(paths, pause_s=0.01, host="node 1:a")
    while not paths.system.exists():
        time.sleep(0.01)
    watch.close()
    found = rows(paths)
    assert {row["node"] for row in found} == {"node_1_a"}
    assert len(rows(paths)) == len(found)


def test_a_sample_that_finds_no_room_ends_the_watch_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(watching, "append_whole", full)
    watch = Watch(RunPaths(tmp_path), pause_s=0.01)
    watch._thread.join()
    watch.close()


def test_samples_go_to_mlflow_once_even_if_they_are_read_again(tmp_path: Path) -> None:
    paths, runs = RunPaths(tmp_path), History()
    metrics = {"cpu_utilization_percentage": 50.0, "system_memory_usage_percentage": 20.0}
    lines = [json.dumps({"time_ms": t, "node": node, "metrics": metrics}) + "\n" for t in (1000, 2000) for node in ("a", "b")]
    samples: Any = Samples(runs, paths.system)  # type: ignore[arg-type]
    samples.put(runs)
    paths.system.write_text("".join(lines[:2]) + lines[2][:10])
    samples.put(runs)
    assert [(point.key, point.timestamp, point.step) for point in runs.points if "cpu" in point.key] == [
        ("system/a/cpu_utilization_percentage", 1000, 0),
        ("system/b/cpu_utilization_percentage", 1000, 0),
    ]
    paths.system.write_text("".join(lines))
    samples.put(runs)
    again: Any = Samples(runs, paths.system)  # type: ignore[arg-type]
    again.put(runs)
    assert len(runs.points) == 8
    assert max(point.step for point in runs.points) == 1


def test_system_metrics_are_sampled_where_the_config_says_so(tmp_path: Path) -> None:
    records = make_records(1)
    assert not wants_system_metrics(RunPaths(tmp_path))
    assert wants_system_metrics(make_run(tmp_path / "a", records, make_spec(records, system_metrics=True), videos=False))
    assert not wants_system_metrics(make_run(tmp_path / "b", records, make_spec(records, system_metrics=False), videos=False))


def test_names_of_nodes_are_fit_for_metrics() -> None:
    assert node_name("gpu-7.cluster.local") == "gpu-7.cluster.local"
    assert node_name("a/b:c") == "a_b_c"
