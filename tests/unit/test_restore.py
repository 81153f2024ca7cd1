"""Restored frames: where they go, by whom they are made, and that motion between two frames is followed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from orchestrator.types import Merged
from orchestrator.vgdfr import kept_frames
from stages.flow import flow, moved
from stages.restore import Motion, Rife, interpolator, interpolator_of, load_network, restored
from stages.video import Frames

CPU = torch.device("cpu")
MERGED = Merged(45, by_twos=(17,), by_fours=(1,))


class Linear:
    """Mixes two frames by time, and writes down for which times."""

    name = "linear"

    def __init__(self) -> None:
        self.asked: list[tuple[float, ...]] = []

    def between(self, before: Tensor, after: Tensor, ratios: Sequence[float]) -> Iterator[Tensor]:
        self.asked.append(tuple(ratios))
        return iter([(1 - t) * before + t * after for t in ratios])


def numbered(merged: Merged) -> Frames:
    """Frames that are left, each as bright as its place in the whole video."""
    places = np.array(kept_frames(merged), np.uint8)
    return np.broadcast_to(places[:, None, None, None], (len(places), 4, 6, 3)).copy()


def whole(runs: Iterator[Frames]) -> list[int]:
    return [int(frame[0, 0, 0]) for frame in np.concatenate(list(runs))]


def test_every_frame_is_at_its_place_and_only_those_left_out_are_made() -> None:
    made = Linear()
    assert whole(restored([numbered(MERGED)], MERGED, made, CPU)) == list(range(45))
    assert made.asked == [(0.25, 0.5, 0.75)] * 4 + [(0.5,)] * 4


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=8))
def test_the_runs_that_frames_come_in_make_no_difference(cuts: list[int]) -> None:
    places = sorted({min(sum(cuts[: i + 1]), 28) for i in range(len(cuts))})
    runs = [run for run in np.split(numbered(MERGED), places) if len(run)]
    assert whole(restored(runs, MERGED, Linear(), CPU)) == list(range(45))


@pytest.mark.parametrize("num", [0, 1, 28])
def test_frames_that_are_missing_are_told(num: int) -> None:
    runs = [numbered(MERGED)[:num]] if num else []
    with pytest.raises(RuntimeError, match="fewer"):
        list(restored(runs, MERGED, Linear(), CPU))


def test_frames_too_many_are_told() -> None:
    frames = numbered(MERGED)
    with pytest.raises(RuntimeError, match="more frames"):
        list(restored([frames, frames[:1]], MERGED, Linear(), CPU))


def picture(x: Tensor, y: Tensor) -> Tensor:
    """A smooth scene, at any place."""
    red = 0.5 + 0.2 * torch.sin(x / 9) * torch.cos(y / 7) + 0.15 * torch.sin(x / 4 + y / 5)
    green, blue = 0.5 + 0.3 * torch.cos(x / 11 + y / 6), 0.5 + 0.3 * torch.sin(y / 13 - x / 8)
    return torch.stack([red, green, blue]).unsqueeze(0)


def panned(by: float, height: int = 96, width: int = 128) -> Tensor:
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return picture(x - by, y - by / 2)


def square(time: float) -> Tensor:
    """A square that crosses a still scene, sixteen pixels from the first frame to the last."""
    scene, left = panned(0) * 0.3 + 0.5, 30 + round(16 * time)
    scene[:, :, 30:60, left : left + 30] = torch.tensor([1.0, 0.1, 0.1]).view(1, 3, 1, 1)
    return scene


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float(((a - b) ** 2).mean()) + 1e-12)


@pytest.mark.parametrize("by", [1.0, 4.0, 10.0])
def test_flow_finds_a_pan(by: float) -> None:
    found = flow(panned(0), panned(by))[..., 16:-16, 16:-16]
    assert found[0, 0].median().item() == pytest.approx(by, abs=0.1 * by)
    assert found[0, 1].median().item() == pytest.approx(by / 2, abs=0.1 * by)


def test_a_flow_moves_the_later_frame_onto_the_earlier() -> None:
    a, b = panned(0), panned(4)
    assert psnr(moved(b, flow(a, b)), a) > psnr(a, b) + 12


@pytest.mark.parametrize("scene", [lambda t: panned(6 * t), square], ids=["pan", "square"])
@pytest.mark.parametrize("time", [0.25, 0.5, 0.75])
def test_motion_is_followed_where_a_mixture_would_show_it_twice(scene, time: float) -> None:  # type: ignore[no-untyped-def]
    before, now, after = scene(0), scene(time), scene(1)
    (made,) = Motion().between(before, after, [time])
    assert psnr(made, now) > psnr((1 - time) * before + time * after, now) + 5


def test_a_still_scene_stays_as_it_is() -> None:
    (made,) = Motion().between(panned(0), panned(0), [0.5])
    torch.testing.assert_close(made, panned(0), atol=1e-5, rtol=0)


def test_a_cut_is_mixed_and_not_torn() -> None:
    """Frames that have nothing to do with each other are none the worse for being moved."""
    before, after = panned(0), 1 - panned(40).flip(2)
    (made,) = Motion().between(before, after, [0.5])
    assert bool(((made >= 0) & (made <= 1)).all())


class Network(nn.Module):
    """Mixes by time, and refuses sizes that RIFE would."""

    def forward(self, before: Tensor, after: Tensor, ratio: float) -> Tensor:
        assert before.shape[2] % 64 == 0, "height"
        assert before.shape[3] % 64 == 0, "width"
        return (1 - ratio) * before + ratio * after


@pytest.fixture
def network(tmp_path: Path) -> Path:
    path = tmp_path / "rife.pt"
    torch.jit.script(Network()).save(str(path))
    return path


def test_a_given_network_makes_the_frames(network: Path) -> None:
    made = interpolator_of({"rife": str(network)}, CPU)
    assert isinstance(made, Rife)
    assert made.name == "rife"
    frames = numbered(MERGED)
    assert whole(restored([frames], MERGED, made, CPU)) == list(range(45))


def test_without_one_motion_is_compensated() -> None:
    assert interpolator_of({}, CPU).name == "motion"


def test_weights_without_their_network_are_refused_with_what_serves_instead(tmp_path: Path) -> None:
    torch.save(Network().state_dict(), tmp_path / "flownet.pkl")
    with pytest.raises(ValueError, match=r"TorchScript.*motion-compensated"):
        load_network(str(tmp_path / "flownet.pkl"), CPU)


def test_a_network_that_was_changed_since_the_run_was_planned_is_refused(network: Path) -> None:
    with pytest.raises(ValueError, match="has changed"):
        interpolator(str(network), "0" * 64, CPU)
