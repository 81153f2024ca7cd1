"""Calibration files: what they hold, where they are looked for, which one serves, and what is said of a broken one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from orchestrator import calibration as files
from orchestrator.calibration import Calibration, DecodeRow, StepRow, cost_model, find, load, save, user_folder
from orchestrator.cost import ForwardCost
from orchestrator.geometry import MODELS, model
from orchestrator.types import VideoShape

H200 = "NVIDIA H200"
DAY = datetime(2026, 11, 1, tzinfo=UTC)
SHAPE = VideoShape(81, 480, 832)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of the user's, and nothing that ships."""
    monkeypatch.setenv(files.FOLDER_VARIABLE, str(tmp_path / "mine"))
    monkeypatch.setattr(files, "SHIPPED", tmp_path / "shipped")
    return tmp_path


def made(fixed_s: float = 0.5, model_name: str = "wan2.1-14b", device: str = H200, days: int = 0) -> Calibration:
    return Calibration(
        model=model_name,
        device=device,
        dtype="bfloat16",
        attention="cudnn",
        compiled=True,
        torch="2.11.0",
        commit=None,
        measured_at=DAY + timedelta(days=days),
        steps=tuple(StepRow(grid=(n, 60, 104), tokens=1560 * n, median_s=fixed_s + n, repeats=5) for n in (1, 21)),
        fits=(ForwardCost(fixed_s=fixed_s, token_s=1 / 1560, token2_s=0.0),),
        fit_error=0.01,
        transition_token_s=1e-7,
        decodes=(DecodeRow(num_frames=81, height=480, width=832, seconds=1.8),),
    )


def test_a_file_comes_back_as_it_was_saved() -> None:
    path = save(made())
    assert path == user_folder() / "wan2.1-14b_nvidia-h200_bfloat16.json"
    assert load(path) == made()
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_saving_again_replaces_and_a_named_file_goes_where_it_is_told(tmp_path: Path) -> None:
    save(made(0.5))
    path = save(made(0.7))
    assert load(path).fits[0].fixed_s == 0.7
    assert save(made(), tmp_path / "deep" / "here.json") == tmp_path / "deep" / "here.json"


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/x\.json.* cannot be written"):
        save(made(), tmp_path / "file" / "x.json")


def test_the_cache_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(files.FOLDER_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert user_folder() == tmp_path / "cache" / "dvg" / "calibrations"


def test_only_a_file_of_the_same_device_and_size_serves() -> None:
    save(made())
    assert find(model("wan2.1-14b"), H200) == made()
    assert find(model("wan2.2-i2v-a14b"), H200) == made()  # its experts have the same sizes
    for name in ("wan2.1-1.3b", "wan2.2-ti2v-5b", "hunyuanvideo"):
        assert find(model(name), H200) is None
    assert find(model("wan2.1-14b"), "NVIDIA H100 80GB HBM3") is None


def test_models_that_differ_in_their_text_do_not_stand_in_for_each_other() -> None:
    save(made(model_name="hunyuanvideo"))
    assert find(model("hunyuanvideo"), H200) is not None
    assert find(model("hunyuanvideo-i2v"), H200) is None


def test_the_users_file_comes_before_a_shipped_one_its_own_model_before_a_twin_and_the_newest_last(tmp_path: Path) -> None:
    def fixed_s() -> float:
        found = find(model("wan2.2-a14b"), H200)
        assert found is not None
        return found.fits[0].fixed_s

    save(made(0.1, "wan2.2-a14b", days=9), files.SHIPPED / "a.json")
    assert fixed_s() == 0.1
    save(made(0.2), user_folder() / "twin.json")
    assert fixed_s() == 0.2
    save(made(0.3, "wan2.2-a14b"), user_folder() / "own.json")
    assert fixed_s() == 0.3
    save(made(0.4, "wan2.2-a14b", days=1), user_folder() / "newer.json")
    assert fixed_s() == 0.4


def test_a_cost_model_is_calibrated_with_a_file_and_uncalibrated_without() -> None:
    geometry = model("wan2.1-14b")
    without = cost_model(geometry, SHAPE, 5.0, H200)
    assert (without.label, without.device, without.decode_s, without.num_branches) == ("uncalibrated", H200, None, 2)
    save(made())
    found = cost_model(geometry, SHAPE, 1.0, H200)
    assert (found.label, found.num_branches, found.decode_s) == ("calibrated", 1, 1.8)
    assert found.forward_s(1560) == pytest.approx(1.5)


def test_a_decode_of_another_size_is_scaled_by_its_pixels() -> None:
    assert made().decode_s(VideoShape(81, 480, 416)) == pytest.approx(0.9)
    assert made().model_copy(update={"decodes": ()}).decode_s(SHAPE) is None


def test_a_named_file_serves_any_device_but_not_another_model(tmp_path: Path) -> None:
    path = save(made(), tmp_path / "given.json")
    assert cost_model(model("wan2.2-a14b"), SHAPE, 4.0, "CPU here", path).device == H200
    with pytest.raises(ValueError, match=r"given\.json.* is of wan2\.1-14b, .* size of hunyuanvideo"):
        cost_model(model("hunyuanvideo"), SHAPE, 6.0, H200, path)


def _without(text: str, key: str) -> str:
    row = json.loads(text)
    del row[key]
    return json.dumps(row)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text[:100], "broken"),
        (lambda text: "", "broken"),
        (lambda text: _without(text, "fits"), "fits"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format"),
        (lambda text: text.replace('"median_s": 1.5', '"median_s": -1.5'), "steps.0.median_s"),
        (lambda text: text.replace('"dtype"', '"dtpe"'), "dt"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong_and_what_to_do(spoil: Callable[[str], str], words: str) -> None:
    path = save(made())
    path.write_text(spoil(path.read_text()))
    with pytest.raises(ValueError, match=r"wan2\.1-14b_nvidia-h200_bfloat16\.json.*is broken.*delete it") as caught:
        find(model("wan2.1-14b"), H200)
    assert words in str(caught.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"nowhere\.json.* cannot be read"):
        cost_model(model("wan-mini"), SHAPE, 1.0, H200, Path("nowhere.json"))


def test_a_machine_without_gpus_is_named_after_its_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_gpu_name", lambda: None)
    assert files.device_name().startswith("CPU ")
    monkeypatch.setattr(files, "_gpu_name", lambda: H200)
    assert files.device_name() == H200
    assert files.device_name(on_gpu=False).startswith("CPU ")


def test_every_file_that_ships_can_be_read_and_fits_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for path in files.SHIPPED.glob("*.json"):
        found = load(path)
        assert found.model in MODELS
        for row in found.steps:
            (fit,) = [fit for fit in found.fits if fit.degree == row.degree]
            assert fit.seconds(row.tokens) == pytest.approx(row.median_s, rel=found.fit_error + 1e-6)


def test_looking_for_a_calibration_loads_no_torch() -> None:
    code = "import sys, orchestrator.calibration; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
