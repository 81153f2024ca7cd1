"""Measuring a model's seconds, and ``dvg calibrate``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from experiments.calibrate import Settings, check_grids, default_grids, measure, random_model
from experiments.calibrate_fit import fit_forward
from orchestrator.calibration import FOLDER_VARIABLE, StepRow, load
from orchestrator.cli import app
from orchestrator.geometry import MODELS, model
from orchestrator.mistakes import ConfigError
from orchestrator.types import VideoShape
from stages.models import base
from stages.models.tiny import build

Dvg = Callable[..., Any]
"""Runs the command; the result has ``stdout``, ``exit_code`` and ``exception``."""
SMALL = VideoShape(9, 32, 32)
GRIDS = ((1, 4, 4), (3, 4, 4))


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_grids_measured_by_default_are_legal_and_reach_from_a_sketch_to_the_full_one(name: str) -> None:
    geometry = model(name)
    grids = default_grids(geometry, geometry.default_shape)
    check_grids(geometry, geometry.default_shape, grids)
    assert grids[-1] == geometry.latent_grid(geometry.default_shape)
    assert geometry.num_tokens(grids[0]) < geometry.num_tokens(grids[-1]) / 10
    assert len(grids) == 9


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "wan2.1-i2v-14b", "hunyuanvideo", "hunyuanvideo-1.5-i2v"])
def test_every_kind_of_model_can_be_measured(name: str, tmp_path: Path) -> None:
    build(name, tmp_path / name)
    geometry = model(name)
    height, width = (4 * side for side in geometry.pixel_multiple)
    shape = VideoShape(9, height, width)
    full = geometry.latent_grid(shape)
    told: list[StepRow] = []
    found = measure(base.load(name, str(tmp_path / name)), Settings(shape, ((1, *full[1:]), full), 3), told.append)
    assert found.model == name
    assert found.device.startswith("CPU ")
    assert (found.dtype, found.attention, found.num_threads) == ("float32", "torch", torch.get_num_threads())
    assert [row.grid for row in found.steps] == [(1, *full[1:]), full]
    assert tuple(told) == found.steps
    assert all(row.repeats == 3 for row in found.steps)
    assert found.transition_token_s > 0
    assert found.decodes[0].seconds > 0


def test_random_weights_are_refused_for_a_size_nobody_knows_and_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"not made for wan-mini; they are for .*hunyuanvideo.*wan2\.1-14b"):
        random_model(model("wan-mini"), Settings(SMALL, GRIDS))
    with pytest.raises(ValueError, match="need a GPU"):
        random_model(model("hunyuanvideo"), Settings(SMALL, GRIDS))


@pytest.mark.parametrize(
    ("grids", "words"),
    [
        (((1, 4, 4), (4, 4, 4)), "4x4x4 is not within the full latent grid 3x4x4"),
        (((1, 4, 3), (1, 4, 4)), "1x4x3: wan-mini needs multiples of 1x2x2"),
        (((0, 4, 4), (1, 4, 4)), "0x4x4 is not within"),
        (((1, 4, 4),), "at least two grids"),
        (((1, 2, 4), (1, 4, 2)), "at least two grids"),
    ],
)
def test_grids_that_cannot_be_run_or_fitted_are_refused(grids: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_grids(model("wan-mini"), SMALL, grids)


def test_a_fit_never_bends_down_for_a_slow_small_grid() -> None:
    rows = [
        StepRow(grid=(1, 1, n), tokens=n, median_s=s, repeats=1) for n, s in ((100, 0.5), (200, 0.4), (400, 0.45), (800, 0.9))
    ]
    fit, error = fit_forward(rows)
    assert min(fit.fixed_s, fit.token_s, fit.token2_s) >= 0
    assert fit.seconds(100) <= fit.seconds(200) <= fit.seconds(800)
    assert error == pytest.approx(max(abs(fit.seconds(row.tokens) / row.median_s - 1) for row in rows))


@pytest.fixture
def dvg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dvg:
    """The command in this process; ``result.exception`` is what :func:`orchestrator.cli.main` tells in one line."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "mine"))
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *arguments: CliRunner().invoke(app, arguments)


CALIBRATE = ("calibrate", "--frames", "9", "--height", "32", "--width", "32", "--grids", "1x4x4,3x4x4", "--repeats", "1")


def test_calibrate_writes_the_file_that_plan_then_uses(dvg: Dvg) -> None:
    plan = ("plan", "--json")
    assert json.loads(dvg(*plan).stdout)["cost"]["label"] == "uncalibrated"
    done = dvg(*CALIBRATE, "--no-decode", "--json")
    assert done.exit_code == 0, done.exception
    told = json.loads(done.stdout)
    found = load(Path(told.pop("path")))
    assert found.model_dump(mode="json") == told
    assert found.decodes == ()
    assert json.loads(dvg(*plan).stdout)["cost"]["label"] == "calibrated"


def test_calibrate_prints_a_table_with_the_fit_error(dvg: Dvg, tmp_path: Path) -> None:
    done = dvg(*CALIBRATE, "--out", str(tmp_path / "here.json"))
    assert done.exit_code == 0, done.exception
    for words in ("1x4x4", "3x4x4", "tokens", "fitted", "largest fit error", "decode of 9x32x32", "here.json"):
        assert words in done.stdout
    assert load(tmp_path / "here.json").decodes[0].num_frames == 9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "wan-maxi"), "wan-maxi"),
        (("--model", "hunyuanvideo"), "ships no weights"),
        (("--frames", "10"), "4k+1"),
        (("--grids", "21x60"), "'21x60' must be latent frames x height x width"),
        (("--grids", "1x4x4,99x4x4"), "99x4x4 is not within"),
        (("--frames", "0"), "num_frames is 0"),
        (("--device", "cuda:7"), "cuda:7"),
        (("--attention", "flsh"), "did you mean 'flash'"),
        (("--random-weights", "--weights", "org/name"), "--weights and --random-weights"),
        (("--out", "/proc/here.json"), "'/proc' is not writable"),
        (("--out", "/"), "'/' is a folder"),
    ],
)
def test_calibrate_refuses_what_is_written_wrong(dvg: Dvg, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = dvg("calibrate", *arguments)
    assert isinstance(done.exception, ConfigError)
    (line,) = done.exception.mistakes
    assert words in line
    assert not (tmp_path / "mine").exists()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--guidance", "nan", "finite"),
        ("--guidance", "-3", "equal to 0"),
        ("--steps", "0", "equal to 1"),
        ("--device-name", "", "1"),
    ],
)
def test_plan_checks_its_options_like_a_spec(dvg: Dvg, option: str, value: str, words: str) -> None:
    (line,) = dvg("plan", option, value).exception.mistakes
    assert words in line


def test_plan_takes_one_form_of_budget_and_shows_what_it_predicts(dvg: Dvg) -> None:
    hunyuan = ("plan", "--model", "hunyuanvideo", "--device-name", "NVIDIA A100")
    done = dvg(*hunyuan, "--speedup", "2.5")
    assert done.exit_code == 0, done.exception
    for words in ("uncalibrated on NVIDIA A100", "predicted", "speedup", "one branch"):
        assert words in done.stdout
    assert "--speedup and --gpu-seconds" in str(dvg(*hunyuan, "--speedup", "2", "--gpu-seconds", "9").exception)
    assert "Nearest speedup: 3." in str(dvg(*hunyuan, "--budget", "speedup=9").exception)
