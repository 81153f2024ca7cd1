"""What settings of ``vgdfr`` come to before anything runs: its network, its least share, its neutral ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.config import load_sweep
from orchestrator.types import VideoShape
from stages.worker import ClipWorker
from tests.unit.test_planner_vgdfr import ALIKE, arm, planner, spec


class Halfway(torch.nn.Module):
    """Restores by the mean of both neighbours."""

    def forward(self, before: Tensor, after: Tensor, ratio: float) -> Tensor:
        return (1 - ratio) * before + ratio * after


def network(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.jit.script(Halfway()).save(str(path))
    return path


def test_a_network_is_found_from_anywhere_and_where_it_lies_makes_no_other_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = network(tmp_path / "a" / "net.pt")
    (tmp_path / "b").mkdir()
    copy = tmp_path / "b" / "net.pt"
    copy.write_bytes(there.read_bytes())
    monkeypatch.chdir(there.parent)
    found = [load_sweep(spec(tmp_path, planner={"vgdfr": {"rife": path}}), []) for path in ("net.pt", str(copy))]
    assert [sweep.arms[0].planner_settings["rife"] for sweep in found] == [str(there), str(copy)]
    assert len({sweep.items[0].item_key for sweep in found}) == 1


def test_a_network_that_is_gone_is_told_before_the_first_clip(tmp_path: Path) -> None:
    settings = {**ALIKE, "rife": str(tmp_path / "gone.pt"), "rife_sha256": "0" * 64}
    arms = {"wan": arm("wan", settings=settings)}
    with pytest.raises(ValueError, match="is no file"):
        ClipWorker(arms, num_threads=1).warm_up()
    ClipWorker(arms, frozenset({"transformer"}), num_threads=1).warm_up()


def test_the_least_share_is_taken_and_stands_in_for_a_default_out_of_reach() -> None:
    assert planner(VideoShape(65, 64, 64), keep_token_ratio=0.384).settings.keep_token_ratio == 0.384
    assert planner(VideoShape(17, 64, 64)).settings.keep_token_ratio == 0.764, "13 of 17"
    assert planner(VideoShape(65, 64, 64)).settings.keep_token_ratio == 0.75


@pytest.mark.parametrize("settings", [{"keep_token_ratio": 1}, {"similarity_threshold": 1.0}])
def test_a_neutral_setting_needs_no_vae_and_serves_every_shape(settings: dict[str, float]) -> None:
    assert arm("plain", settings=settings).sketch_parts == frozenset()
    assert planner(VideoShape(5, 16, 64), **settings).decide(None).why == "every frame is kept"
