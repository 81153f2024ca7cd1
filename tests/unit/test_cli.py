"""The command line as a person meets it: a real process, its exit code, what it prints."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parents[2]


def dvg(*arguments: str | pathlib.Path, cwd: pathlib.Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "orchestrator", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=cwd, env={**os.environ, **env, "COLUMNS": "200"}, check=False
    )


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if not line.startswith("import time:")]


def imported(done: subprocess.CompletedProcess[str]) -> set[str]:
    return {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}


GOLDEN_PLAN = ("plan", "--model", "hunyuanvideo-1.5", "--height", "480", "--width", "848", "--frames", "121", "--steps", "50")


def plan(*arguments: str) -> dict[str, Any]:
    done = dvg(*GOLDEN_PLAN, "--budget", "0.5", "--json", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "torch" not in imported(done)
    return dict(json.loads(done.stdout))


def test_plan_gives_the_golden_grid_tokens_and_steps_without_loading_torch() -> None:
    found = plan()
    assert (found["grid"], found["tokens"], found["steps_per_stage"]) == ([31, 30, 53], 49290, [14, 11, 11, 14])
    assert len(found["actions"]) == 24
    assert found["chosen"] is None
    assert found["actions"][0]["stages"][-1]["grid"] == [31, 30, 53]


def test_plan_chooses_the_golden_action_for_a_demand() -> None:
    chosen = plan("--spatial-demand", "0.05", "--temporal-demand", "0.05")["chosen"]
    assert (chosen["s2"], chosen["f2"]) == (0.8, 18)


def test_plan_prints_a_schedule_that_leaves_nothing_to_choose() -> None:
    done = dvg(*GOLDEN_PLAN, "--budget", "1", "--spatial-demand", "0.1", "--temporal-demand", "0.1")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "31x30x53x50@5" in done.stdout


def test_an_infeasible_budget_exits_2_and_names_feasible_ones() -> None:
    done = dvg(*GOLDEN_PLAN, "--budget", "0.2")
    assert done.returncode == 2
    (line,) = errors(done)
    assert "0.2" in line
    assert "feasible" in line


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("bugdet: 0.5", ["bugdet", "budget"]),
        ("prompts: nowhere.txt", ["nowhere.txt"]),
        ("budget: 1.5", ["budget", "1.5"]),
        ("frames: 40", ["40", "4k+1"]),
        ("model: wan-mimi", ["wan-mimi", "wan-mini"]),
    ],
)
def test_a_mistake_in_a_spec_is_one_line_exit_2_and_starts_nothing(tmp_path: pathlib.Path, change: str, words: list[str]) -> None:
    prompts = "" if change.startswith("prompts") else "prompts: [a red circle]\n"
    (tmp_path / "spec.yaml").write_text(f"{prompts}{change}\n")
    done = dvg("sweep", tmp_path / "spec.yaml", "--out", tmp_path / "out")
    assert done.returncode == 2
    (line,) = errors(done)
    assert all(word in line for word in words), line
    assert not {"ray", "torch", "mlflow"} & imported(done)
    assert not (tmp_path / "out").exists()


def test_an_unwritable_output_exits_2_before_ray_starts(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    done = dvg("sweep", ROOT / "experiments/specs/demo.yaml", "--out", tmp_path / "file" / "run")
    assert done.returncode == 2
    assert "not writable" in errors(done)[0]
    assert "ray" not in imported(done)


def test_a_relative_output_is_refused_inside_a_ray_job(tmp_path: pathlib.Path) -> None:
    done = dvg("sweep", ROOT / "experiments/specs/demo.yaml", "--out", "run", cwd=tmp_path, RAY_JOB_CONFIG_JSON_ENV_VAR="{}")
    assert done.returncode == 2
    assert "absolute" in errors(done)[0]


def test_print_config_shows_every_setting_and_starts_nothing(tmp_path: pathlib.Path) -> None:
    done = dvg("sweep", ROOT / "experiments/specs/demo.yaml", "arms.dvg.budget=0.45", "--print-config", cwd=tmp_path)
    assert done.returncode == 0
    assert "budget: 0.45" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_run_folder_in_use_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    from orchestrator.ownership import RunLock
    from orchestrator.paths import RunPaths

    with RunLock(RunPaths(tmp_path)):
        done = dvg("sweep", ROOT / "experiments/specs/demo.yaml", "--out", tmp_path)
    assert done.returncode == 2
    assert str(os.getpid()) in errors(done)[0]


@pytest.mark.parametrize("command", ["track", "report"])
def test_a_folder_that_is_no_run_is_refused(command: str, tmp_path: pathlib.Path) -> None:
    done = dvg(command, tmp_path)
    assert done.returncode == 2
    assert "no run folder" in errors(done)[0]


def test_doctor_names_what_each_missing_piece_would_give() -> None:
    done = dvg("doctor", "--json")
    rows = {row["topic"]: row for row in json.loads(done.stdout)}
    assert rows["torch"]["state"] == "ok"
    assert all(row["gives"] for row in rows.values())
    assert rows["backend native"]["state"] == "ok"
    assert rows["backend native"]["gives"] == "cannot do: heads that the ranks do not divide"
    assert "CPUs" in rows["backend usp"]["gives"]
    assert done.returncode in (0, 1)


def test_models_shows_the_embedded_vocabulary_and_an_example_made_of_it() -> None:
    shown = json.loads(dvg("models", "--json").stdout)["wan-mini"]
    assert set(shown["example"].split()) <= set(shown["vocabulary"])
