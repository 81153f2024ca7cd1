"""A clip that lay on disk goes on at any width: bit for bit at the same one, within rounding at another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from orchestrator.arms import Arm, make_item
from orchestrator.checkpoints import Checkpoints, Saved, load
from orchestrator.keeper import Keeper
from orchestrator.types import Item
from parallel.groups import Groups
from parallel.native import Native
from stages.denoise import Boundary
from stages.worker import ClipWorker, Team
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang

NUM_STAGES = 4


def arm() -> Arm:
    return Arm(
        name="guided",
        model="wan-mini",
        weights=str(checkpoint("wan-mini")),
        planner="dvg",
        budget=0.5,
        num_steps=12,
        guidance=3.0,
        num_frames=25,
        height=96,
        width=96,
        fps=8,
    )


ROUNDING = 1e-5


def item(arm: Arm) -> Item:
    return make_item(arm, "p", "a red circle moves left", 7)


def refined(groups: Groups, arm: Arm, root: Path, saved: Saved, stop: int, width: int) -> Tensor:
    """Every rank of a slice has a keeper, as in a pod."""
    keeper = Keeper(Checkpoints(root))
    worker = ClipWorker({arm.name: arm}, frozenset({"transformer"}), num_threads=1, keeper=keeper)
    team = Team(groups, Native(), 0, width) if width > 1 else None
    boundary, _ = worker.refine(item(arm), Boundary.unpack(load(saved)), stop=stop, team=team)
    worker.settle()
    return boundary.x


class Clip:
    """One clip of the arm, sketched here and refined by ranks of the gang."""

    def __init__(self, gang: Gang, root: Path) -> None:
        self.gang, self.root, self.arm = gang, root, arm()
        self.kept = Checkpoints(root)
        self.kept.open([])
        worker = ClipWorker({self.arm.name: self.arm}, num_threads=1, keeper=Keeper(self.kept))
        worker.sketch(item(self.arm))
        worker.settle()

    def refine(self, stop: int, width: int) -> Tensor:
        """From where the file says that the clip is."""
        found = self.kept.find(item(self.arm).item_key)
        assert found is not None
        latents: list[Tensor] = self.gang.run(refined, self.arm, self.root, found.handle, stop, width, ranks=range(width))
        assert all(torch.equal(latent, latents[0]) for latent in latents)
        return latents[0]

    def widths(self) -> tuple[int, ...]:
        found = self.kept.find(item(self.arm).item_key)
        assert found is not None
        assert found.stop == NUM_STAGES
        return found.past.widths


@pytest.mark.slow
@pytest.mark.parametrize("width", [1, 2, 4])
def test_at_the_same_width_it_is_bit_for_bit_the_clip_that_never_stopped(gang: Gang, tmp_path: Path, width: int) -> None:
    undisturbed = Clip(gang, tmp_path / "a").refine(NUM_STAGES, width)
    clip = Clip(gang, tmp_path / "b")
    for stop in (2, 3):
        clip.refine(stop, width)
    assert torch.equal(clip.refine(NUM_STAGES, width), undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("widths", [(1, 2, 4), (4, 2, 1), (2, 4, 2)], ids=str)
def test_at_other_widths_it_is_the_same_within_rounding(gang: Gang, tmp_path: Path, widths: tuple[int, ...]) -> None:
    undisturbed = Clip(gang, tmp_path / "a").refine(NUM_STAGES, 1)
    clip = Clip(gang, tmp_path / "b")
    for stop, width in enumerate(widths, start=2):
        latent = clip.refine(stop, width)
    error = (latent - undisturbed).abs().max().item()
    assert error <= ROUNDING * undisturbed.abs().max().item()
    assert clip.widths() == widths
