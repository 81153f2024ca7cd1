"""A seam for two streams: parts of a sequence are told apart, and rows added to a short text count for nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from orchestrator.types import Grid
from parallel.groups import Group
from parallel.layout import Layout
from parallel.native import Native
from stages.models import joint
from stages.models.base import Condition, load
from stages.models.joint import FEWEST_ROWS, JointSeam, Share
from tests.checkpoints import checkpoint
from tests.dist.joint_runs import hunyuan15_condition, hunyuan_condition, velocity


def group(start: int, size: int, rank: int) -> Group:
    return Group(range(start, start + size), rank, None, torch.device("cpu"))


def shared(seam: JointSeam, of: Group | None, num_image: int, num_text: int) -> Share:
    seam.attach(of and Layout(of, of, None), of and Native())
    return seam.share(num_image, num_text)


def test_a_part_is_the_same_object_only_for_the_same_part_among_the_same_ranks() -> None:
    """Recordings go by identity, and hold collectives: the others' parts count as well."""
    seam = JointSeam(F.scaled_dot_product_attention)
    asked = [(None, 8, 3), (group(0, 2, 0), 8, 2), (group(0, 2, 0), 8, 3), (group(2, 2, 0), 8, 3), (group(0, 2, 1), 8, 3)]
    found = [shared(seam, *each) for each in asked]
    assert len({id(share) for share in found}) == len(asked)
    assert found[1].image == found[2].image
    assert found[1].text == found[2].text  # the spare token is the other rank's
    assert all(shared(seam, *each) is share for each, share in zip(asked, found, strict=True))


def test_each_row_of_text_is_one_ranks() -> None:
    rows = torch.arange(1.0, 6.0).view(1, 5, 1)
    parts = [shared(JointSeam(F.scaled_dot_product_attention), group(0, 4, rank), 9, 5) for rank in range(4)]
    mine = [share.text_rows(rows) for share in parts]
    assert all(len(share.image) + x.shape[1] == share.num_rows for share, x in zip(parts, mine, strict=True))
    assert min(x.shape[1] for x in mine) == FEWEST_ROWS
    assert torch.cat(mine, dim=1).flatten().tolist() == [1, 0, 2, 0, 3, 0, 4, 5]


@pytest.mark.parametrize(("name", "make"), [("hunyuanvideo", hunyuan_condition), ("hunyuanvideo-1.5", hunyuan15_condition)])
def test_rows_added_to_a_short_text_change_nothing(
    name: str, make: Callable[..., Condition], monkeypatch: pytest.MonkeyPatch
) -> None:
    grid: Grid = (2, 4, 6)
    packed, found = make(name, 1, grid).pack(), []
    for fewest in (0, 5):
        monkeypatch.setattr(joint, "FEWEST_ROWS", fewest)
        fresh = load(name, str(checkpoint(name)), parts=frozenset({"transformer"}))
        found.append(velocity(fresh, packed, grid))
    torch.testing.assert_close(*found, atol=1e-5, rtol=0)
