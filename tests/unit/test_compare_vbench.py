"""Which of two arms' videos VBench's figures are paired by: the seeds that they were made of, not the numbers of their files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.compare.comparison import Compared, compare
from experiments.compare.sources import read_runs
from experiments.compare.stats import Paired
from experiments.compare.vbench_scores import numbered
from experiments.vbench.arm_videos import ArmVideos, Asked, read_arm
from experiments.vbench.names import parse_name
from experiments.vbench.view import plan_view
from orchestrator.prompts import prompt_id
from orchestrator.types import Record
from tests.fakerun import PROMPTS, make_record, make_run
from tests.unit.comparing import arm_record, arm_records, write_run


def rows(*roots: Path) -> dict[str, Compared]:
    return {row.arm.label: row for row in compare(read_runs([str(root) for root in roots])).rows}


def flickering(row: Compared) -> Paired | None:
    return row.figures["vbench.temporal_flickering"].difference


def test_videos_are_paired_by_seed_whatever_their_numbers(tmp_path: Path) -> None:
    """Number 1 of the first run and number 0 of the second are both seed 1."""
    for name, seeds in (("a", (0, 1)), ("b", (1, 2)), ("c", (2, 3))):
        records = [arm_record("full", prompt, seed) for prompt in PROMPTS for seed in seeds]
        write_run(tmp_path / name, records, vbench={"full": 0.9})
    found = rows(*(tmp_path / name for name in "abc"))
    shared = flickering(found["b/full"])
    assert shared is not None
    assert (shared.n, shared.num_prompts, shared.mean) == (8, 8, pytest.approx(-0.001))
    assert flickering(found["c/full"]) is None


def test_videos_of_another_task_are_left_out_and_the_others_paired(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm_records(("full",)), vbench={"full": 0.9})
    unlike = [dataclasses.replace(r, width=96) if r.prompt_id == "pan" else r for r in arm_records(("dvg",))]
    write_run(tmp_path / "b", unlike, vbench={"dvg": 0.8})
    found = flickering(rows(tmp_path / "a", tmp_path / "b")["b/dvg"])
    assert found is not None
    assert (found.n, found.mean) == (14, pytest.approx(-0.1))


def test_numbers_are_those_that_the_view_gives(tmp_path: Path) -> None:
    """Also of a second prompt of one text, and of one that can be no file's name: both go by their ids."""
    asked = [("first", "two", 5), ("first", "two", 3), ("second", "two", 1), ("third", "a / b", 0)]
    paths = make_run(tmp_path, [make_record("full", name, seed, prompt=text) for name, text, seed in asked], videos=False)
    view = plan_view(paths, "custom", "full")
    found = numbered(read_arm(paths, "full"), "custom")
    assert found == {parse_name(n): (v.record.prompt_id, v.record.seed) for n, v in view.videos.items() if v.record}
    assert found[("two", 1)] == ("first", 3)
    assert {stem for stem, _ in found} == {"two", "second", "third"}


@pytest.mark.parametrize("image", [None, "images/cat.jpg"])
def test_a_prompt_of_a_suite_is_the_one_that_the_suite_calls_so(image: str | None) -> None:
    usual = prompt_id("a cat", image and Path(image).name)
    asked = {name: Asked("a cat", False, (), (0,)) for name in ("mine", usual, "other")}
    records: dict[tuple[str, int], Record] = {(usual, 0): make_record("full", usual, image=image)}
    assert numbered(ArmVideos("full", asked, records), "vbench-i2v") == {("a cat", 0): (usual, 0)}
    del asked[usual]
    assert numbered(ArmVideos("full", asked, records), "vbench-i2v") == {("a cat", 0): ("mine", 0)}
