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
from experiments.calibrate_fit import About, compose, fit_forward, held_out
from orchestrator.calibration import FOLDER_VARIABLE, SHIPPED, DecodeRow, StepRow, load
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


ABOUT = About("wan2.1-14b", "NVIDIA H200", "bfloat16", "cudnn", "2.11")


def made_rows(degree: int, backend: str = "native", wobble: float = 0.0) -> list[StepRow]:
    counts = (960, 1920, 3900, 7800, 15_600, 32_760)
    seconds = [0.01 + (2e-5 * n + 1e-9 * n * n) / degree for n in counts]
    return [
        StepRow(grid=(1, 1, n), tokens=n, degree=degree, backend=backend, median_s=s * (1 + wobble * (-1) ** i), repeats=1)
        for i, (n, s) in enumerate(zip(counts, seconds, strict=True))
    ]


def test_rows_of_any_degrees_and_backends_become_one_file_with_the_error_on_rows_left_out() -> None:
    rows = [*made_rows(8, "usp"), *made_rows(1), *made_rows(2), *made_rows(2, "usp")]
    found = compose(rows, ABOUT, [DecodeRow(num_frames=9, height=32, width=32, degree=2, seconds=1.0)])
    assert [(fit.degree, fit.backend) for fit in found.fits] == [(1, "native"), (2, "native"), (2, "usp"), (8, "usp")]
    assert set(found.steps) == set(rows)
    assert found.held_out_error is not None
    assert found.held_out_error < 0.01
    assert found.split_decode_s(VideoShape(9, 32, 64)) == ((2, 2.0),)
    with pytest.raises(ValueError, match="degree 1"):
        compose(made_rows(2), ABOUT)


def test_a_row_that_is_left_out_is_predicted_by_the_others_alone() -> None:
    odd = [row.model_copy(update={"median_s": 2 * row.median_s}) if row.tokens == 3900 else row for row in made_rows(1)]
    errors = {row.tokens: error for row, error in held_out(odd)}
    assert errors[3900] == pytest.approx(-0.5, abs=0.01)
    assert set(errors) == {1920, 3900, 7800, 15_600}, "nothing is told of the ends"
    assert held_out(made_rows(1)[:3]) == []
    small = max(abs(error) for _, error in held_out(made_rows(4, wobble=0.01)))
    assert 0.005 < small < 0.06


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.json")), ids=lambda path: path.stem)
def test_the_files_that_ship_predict_what_they_left_out(path: Path) -> None:
    found = load(path)
    alone = found.rows_of(1, "native")
    for fit in found.fits:
        rows = found.rows_of(fit.degree, fit.backend)
        errors = [abs(error) for _, error in held_out(rows, alone if fit.degree > 1 else (), fit.waves)]
        assert max(errors) < 0.06


@pytest.fixture
def dvg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dvg:
    """The command in this process; ``result.exception`` is what :func:`orchestrator.cli.main` tells in one line."""
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "mine"))
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *arguments: CliRunner().invoke(app, arguments)


CALIBRATE = ("calibrate", "--frames", "9", "--height", "32", "--width", "32", "--grids", "1x4x4,3x4x4", "--repeats", "1")


def test_ranks_are_measured_together_and_one_of_them_alone(dvg: Dvg, monkeypatch: pytest.MonkeyPatch) -> None:
    done = dvg(*CALIBRATE, "--degrees", "2", "--no-decode", "--json")
    assert done.exit_code == 0, done.exception
    found = load(Path(json.loads(done.stdout)["path"]))
    assert [(row.degree, row.tokens) for row in found.steps] == [(1, 4), (1, 12), (2, 4), (2, 12)]
    assert [fit.degree for fit in found.fits] == [1, 2]
    planned = dvg("plan", "--ranks", "2", "--json")
    phases = json.loads(planned.stdout)["actions"][0]["phases"]
    assert "(uncalibrated)" not in phases[0]["why"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "wan2.1-1.3b", "--degrees", "1,8"), "12 heads cannot be shared evenly by 8 ranks: 12 / 8 = 1.5"),
        (("--degrees", "3"), "power of two; legal: 1, 2, 4, 8"),
        (("--degrees", "two"), "for example 1,2,4,8"),
        (("--degrees", "2", "--backend", "usp"), "usp"),
        (("--degrees", "2", "--backend", "ring"), "Choices: auto, native, peer, ulysses, usp"),
    ],
)
def test_ranks_that_cannot_work_together_are_refused_before_anything_is_loaded(
    dvg: Dvg, options: tuple[str, ...], words: str
) -> None:
    done = dvg("calibrate", *options)
    assert isinstance(done.exception, ConfigError)
    assert words in str(done.exception)


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
