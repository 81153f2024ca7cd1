"""The filter of static videos before temporal flickering; VBench itself is played."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.vbench import integrity
from experiments.vbench.campaign import Campaign, Options, sweep_over
from experiments.vbench.probe import VARIABLE
from orchestrator.ownership import RunLock
from orchestrator.paths import RunPaths
from orchestrator.store import FolderStore
from orchestrator.suite_files import load_suite
from tests.fakerun import make_record, make_spec
from tests.fakevbench import finished, record_of, text_run, write_environment, write_weights

FLICKERING = "temporal_flickering"
NUM_FRAMES = make_record().num_frames
FILTERED = "vbench-temporal_flickering-filtered"


@pytest.fixture(autouse=True)
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, write_environment(tmp_path / "env").python)
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(integrity, "count_frames", lambda path, num_bytes=0, deep=False: NUM_FRAMES)
    return tmp_path / "env"


def silent(line: str) -> None:
    """Nobody listens."""


def candidates_run(root: Path, **changed: str) -> RunPaths:
    """Twenty-five videos of one prompt of temporal flickering; every third moves. ``changed``: other texts, by ``v<seed>``."""
    prompt = load_suite("vbench-temporal_flickering").entries[0].prompt
    texts = [changed.get(f"v{seed}", f"{seed / 100} {'moving' if seed % 3 == 0 else ''}") for seed in range(25)]
    records = [record_of(root, make_record("full", "p0", seed, prompt=prompt), text) for seed, text in enumerate(texts)]
    spec = make_spec(records) | {"prompts": [{"id": "p0", "prompt": prompt, "seed": seed} for seed in range(25)]}
    return finished(root, records, spec | {"suite": {"name": FILTERED}})


def test_flickering_is_measured_on_the_first_five_videos_that_vbenchs_filter_finds_static(tmp_path: Path) -> None:
    write_weights(tmp_path / "cache", "dynamic_degree")
    paths = candidates_run(tmp_path / "run")
    found = Campaign(paths, Options(dims=FLICKERING, local=True), silent).run()["full"]
    names = [Path(record["video_path"]).stem.rpartition("-")[2] for record in found.results[FLICKERING][1]]
    assert names == ["1", "10", "11", "13", "14"]
    assert found.dimensions[FLICKERING].note == "74 of 75 prompts have fewer than five static videos"
    again = Campaign(paths, Options(dims=FLICKERING, local=True), silent)
    again.run()
    assert not again.evaluation.num_scored


def test_without_the_filters_weights_the_first_five_count_and_a_note_says_so(tmp_path: Path) -> None:
    found = Campaign(candidates_run(tmp_path / "run"), Options(dims=FLICKERING, local=True), silent).run()["full"]
    assert [record["video_results"] for record in found.results[FLICKERING][1]] == [0.0, 0.01, 0.02, 0.03, 0.04]
    assert "raft-things.pth" in found.dimensions[FLICKERING].note


def test_a_candidate_that_the_filter_cannot_judge_is_named(tmp_path: Path) -> None:
    write_weights(tmp_path / "cache", "dynamic_degree")
    paths = candidates_run(tmp_path / "run", v10="unjudged")
    found = Campaign(paths, Options(dims=FLICKERING, local=True), silent).run()["full"]
    names = [Path(record["video_path"]).stem.rpartition("-")[2] for record in found.results[FLICKERING][1]]
    assert names == ["1", "11", "13", "14", "16"]
    ((name, why),) = found.dimensions[FLICKERING].failed.items()
    assert name.endswith("-10.mp4")
    assert "static filter" in why


def test_a_sweep_is_over_when_nothing_is_left_or_nobody_makes_it(tmp_path: Path) -> None:
    paths = text_run(tmp_path / "run", ["0.25"])
    paths.manifest.write_text(json.dumps({"name": "demo", "items": 2, "starts": []}))
    assert sweep_over(paths)
    with RunLock(paths, FolderStore(paths.root), silent):
        assert not sweep_over(paths)
        paths.manifest.write_text(json.dumps({"name": "demo", "items": 1, "starts": []}))
        assert sweep_over(paths)
