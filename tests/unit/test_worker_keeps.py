"""What a worker gives to its keeper: every boundary that a clip comes to, with all that led there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.arms import Arm, make_item
from orchestrator.types import Item
from stages.denoise import Boundary
from stages.worker import ClipWorker, Team
from tests.spies import STAGES, SpyModel, SpyPlanner
from tests.unit.test_worker import arm

ARMS: dict[str, Arm] = {a.name: a for a in (arm("dvg", "dvg", 0.5), arm("full", "full"))}
ITEM: Item = make_item(ARMS["dvg"], "p", "a red circle", 7)
NUM_STAGES = len(STAGES)


class Kept:
    """A keeper that remembers."""

    def __init__(self) -> None:
        self.boundaries: list[Boundary] = []
        self.settled_at: list[int] = []

    def keep(self, item_key: str, boundary: Boundary, made_by: Mapping[str, str]) -> None:
        assert item_key == ITEM.item_key
        assert made_by["torch"] == torch.__version__
        self.boundaries.append(boundary)

    def settle(self) -> None:
        self.settled_at.append(len(self.boundaries))


def worker(monkeypatch: pytest.MonkeyPatch, model: SpyModel | None = None) -> tuple[ClipWorker, Kept]:
    """With a model that has no weights and a plan of four stages."""
    kept = Kept()
    made = ClipWorker(ARMS, keeper=kept)
    monkeypatch.setattr(made, "_model", lambda arm: model or SpyModel())
    monkeypatch.setattr(made, "_planner", lambda arm: SpyPlanner())
    return made, kept


def test_every_boundary_is_kept_also_inside_a_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    made, kept = worker(monkeypatch)
    _, _, first = made.sketch(ITEM)
    last, _ = made.refine(ITEM, first)
    assert [boundary.stage for boundary in kept.boundaries] == [1, 2, 3, 4]
    assert kept.boundaries[0] is first
    assert torch.equal(kept.boundaries[-1].x, last.x)


def test_a_clip_goes_on_from_any_kept_boundary_to_the_same_end(monkeypatch: pytest.MonkeyPatch) -> None:
    made, kept = worker(monkeypatch)
    last, _ = made.refine(ITEM, made.sketch(ITEM)[2])
    for boundary in kept.boundaries[:-1]:
        again, _ = made.refine(ITEM, Boundary.unpack(boundary.pack()))
        assert torch.equal(again.x, last.x)


def test_the_past_of_a_boundary_is_the_sum_of_what_led_there(monkeypatch: pytest.MonkeyPatch) -> None:
    made, kept = worker(monkeypatch)
    _, sketch_s, boundary = made.sketch(ITEM)
    told_s: dict[str, float] = dict(sketch_s)
    for stop in (3, 4):
        boundary, phase_s = made.refine(ITEM, boundary, stop=stop)
        told_s |= {name: told_s.get(name, 0.0) + seconds for name, seconds in phase_s.items()}
        assert boundary.past.timings_s == pytest.approx(told_s)
        assert kept.boundaries[-1].past == boundary.past
    assert boundary.past.widths == (1, 1, 1)
    stages_s = sum(told_s[f"stage{stage}_s"] for stage in (2, 3, 4))
    assert boundary.past.device_s == pytest.approx(told_s["text_s"] + told_s["sketch_s"] + stages_s)
    middle = kept.boundaries[1].past
    assert middle.timings_s["refine_s"] == middle.timings_s["stage2_s"]
    assert boundary.past.began_s == middle.began_s > 1.7e9


class Groups:
    """Of ranks whose slices need no exchange."""

    def __init__(self, rank: int) -> None:
        self.rank = rank


def team(rank: int, width: int) -> Team:
    made: Any = Team(Groups(rank), None, 0, width)  # type: ignore[arg-type]
    return made  # type: ignore[no-any-return]


@pytest.mark.parametrize("rank", [0, 1])
def test_the_first_rank_of_a_slice_alone_keeps_and_all_know_its_width(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    made, kept = worker(monkeypatch)
    _, _, first = made.sketch(ITEM)
    monkeypatch.setattr(Team, "layout", lambda self, num_branches: None)
    last, _ = made.refine(ITEM, first, team=team(rank, 2))
    assert len(kept.boundaries) == (NUM_STAGES if rank == 0 else 1)
    assert last.past.widths == (2, 2, 2)
    refined_s = sum(last.past.timings_s[f"stage{stage}_s"] for stage in (2, 3, 4))
    assert last.past.device_s - first.past.device_s == pytest.approx(2 * refined_s)


def test_a_failure_waits_for_what_is_being_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls_until_stage_4 = sum(stage.steps for stage in STAGES[:3])
    made, kept = worker(monkeypatch, SpyModel(break_at_call=calls_until_stage_4 + 2))
    _, _, first = made.sketch(ITEM)
    assert kept.settled_at == []
    with pytest.raises(RuntimeError, match="not finite after stage 4"):
        made.refine(ITEM, first)
    assert [boundary.stage for boundary in kept.boundaries] == [1, 2, 3]
    assert kept.settled_at == [3]


def test_without_a_keeper_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    made, kept = worker(monkeypatch)
    made.keeper = None
    made.refine(ITEM, made.sketch(ITEM)[2])
    made.settle()
    assert kept.boundaries == []


@given(stops=st.lists(st.integers(2, NUM_STAGES), max_size=3).map(lambda stops: [*sorted(set(stops)), NUM_STAGES]))
def test_however_a_clip_is_cut_into_phases_the_same_boundaries_are_kept(stops: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        made, kept = worker(patch)
        boundary = made.sketch(ITEM)[2]
        for stop in stops:
            boundary, _ = made.refine(ITEM, boundary, stop=stop)
    assert [boundary.stage for boundary in kept.boundaries] == [1, 2, 3, 4]
    assert boundary.past.widths == (1, 1, 1)
