"""Rows of the GPU benchmark are what was measured, counted as the engine runs it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from experiments.bench import single_gpu_models, single_gpu_report
from experiments.bench.floors import work
from experiments.bench.single_gpu_models import SUBJECTS
from experiments.bench.single_gpu_rows import Clock, by_flops, feasible, key_grids, spread
from orchestrator.actions import full_action
from orchestrator.cost import ForwardCost
from orchestrator.geometry import model
from stages.models import tiny
from stages.models.base import load

SUBJECT = SUBJECTS["hv15-i2v-12"]
PER_TOKEN = ForwardCost(fixed_s=0.0, token_s=1e-4, token2_s=0.0)


def test_a_full_run_is_its_steps_times_its_branches() -> None:
    clock = Clock(SUBJECT.geometry, {SUBJECT.grid: 2.0}, PER_TOKEN)
    assert clock.forwards_s(full_action(SUBJECT.geometry, SUBJECT.shape, 12), branches=2) == 2 * 12 * 2.0


def test_a_transitions_forward_counts_on_the_grid_that_it_leaves() -> None:
    action = next(action for action in feasible(SUBJECT.geometry, SUBJECT.shape, 12, 0.5) if action.name == "s0.80-f15")
    seconds = dict(zip((stage.grid for stage in action.stages), (1.0, 10.0, 100.0, 1000.0), strict=True))
    assert Clock(SUBJECT.geometry, seconds, PER_TOKEN).forwards_s(action, branches=1) == 4 * 1 + 3 * 10 + 2 * 100 + 3 * 1000


def test_medians_come_before_the_curve() -> None:
    clock = Clock(SUBJECT.geometry, {(4, 16, 16): 7.0}, PER_TOKEN)
    assert clock.forward_s((4, 16, 16)) == 7.0
    assert clock.forward_s((4, 16, 8)) == pytest.approx(512 * 1e-4)


@pytest.mark.parametrize("name", sorted(SUBJECTS))
@pytest.mark.parametrize(("steps", "budget"), itertools.product((50, 12), (0.5, 0.7)))
def test_the_mean_lies_between_the_fastest_and_the_slowest_action(name: str, steps: int, budget: float) -> None:
    subject = SUBJECTS[name]
    clock = Clock(subject.geometry, {}, by_flops(subject.geometry))
    found = spread(feasible(subject.geometry, subject.shape, steps, budget), clock, 1)
    fast, mean, slow = (clock.forwards_s(action, 1) for action in (found.fastest, found.nearest, found.slowest))
    assert fast <= found.mean_s <= slow
    assert fast <= mean <= slow
    assert subject.grid not in key_grids([found.fastest])


@pytest.mark.parametrize(("name", "num_text"), [("hunyuanvideo", 60), ("hunyuanvideo-1.5", 60), ("wan2.2-a14b", 512)])
def test_the_products_of_a_forward_are_those_of_its_linear_layers(name: str, num_text: int) -> None:
    geometry = model(name)
    found = work(geometry, 30_000, num_text)
    assert found.matmul_flops == pytest.approx(2.0 * geometry.linear_macs * 30_000, rel=0.02)
    attention = 4.0 * 30_000**2 * geometry.heads * geometry.head_dim * geometry.num_layers
    assert found.attention_flops == pytest.approx(attention, rel=0.03)


@pytest.mark.parametrize(
    ("name", "kind", "vae"),
    [
        ("hv", "HunyuanVideoTransformer3DModel", "AutoencoderKLHunyuanVideo"),
        ("hv15-i2v-12", "HunyuanVideo15Transformer3DModel", "AutoencoderKLHunyuanVideo15"),
        ("wan", "WanTransformer3DModel", "AutoencoderKLWan"),
    ],
)
def test_the_adapters_that_are_timed_are_the_ones_that_a_checkpoint_gives(
    name: str, kind: str, vae: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = SUBJECTS[name]
    tiny.build(subject.name, tmp_path / "tiny")
    module, decoder = (
        getattr(diffusers, class_name).from_pretrained(tmp_path / "tiny" / part)
        for class_name, part in ((kind, "transformer"), (vae, "vae"))
    )
    decoder.encoder = None
    monkeypatch.setattr(single_gpu_models, "DEVICE", "cpu")
    made = single_gpu_models.ours(subject, (module,), decoder, compiled=False)
    assert type(made) is type(load(subject.name, str(tmp_path / "tiny"), parts=frozenset({"vae"})))
    frames = sum(len(run) for run in made.decode(torch.zeros(1, subject.geometry.latent_channels, 2, 2, 2)))
    assert frames == 5


def test_the_report_holds_every_row_and_ratio() -> None:
    grids = [(4, 16, 16), (12, 15, 26), (22, 30, 53), SUBJECT.grid]
    rows = [{"grid": grid, "tokens": SUBJECT.geometry.num_tokens(grid), "seconds": [1.0]} for grid in grids]
    figures: dict[str, Any] = {
        "subject": "hv15-i2v-12",
        "kind": "rows",
        "grids": [{**row, "median_s": PER_TOKEN.seconds(int(str(row["tokens"])))} for row in rows],
        "passages": {"transitions_s": {"1-2": 0.001, "2-3": 0.001, "3-4": 0.001}, "plan_s": 0.002, "list_s": 0.004},
        "decode": {"best_s": 2.0},
        "stock": {"median_s": 10.0},
        "stock_decode": {"best_s": 4.0},
        "device": "a GPU",
        "torch": "2",
        "date": "2026-11-21",
        "commit": "abc",
    }
    found, text = single_gpu_report.compose({"rows": figures})
    summary = found["summaries"]["hv15-i2v-12"]
    assert summary["stock_denoise_s"] == 50 * 2 * 10.0
    assert len(summary["rows"]) == 8
    row = next(row for row in summary["rows"] if (row["steps"], row["budget"]) == (12, 0.5))
    assert row["full_s"] == pytest.approx(12 * 4.929)
    assert row["denoise_s"]["fastest"] < row["denoise_s"]["mean"] < row["denoise_s"]["slowest"] < row["full_s"]
    assert f"| {row['full_s'] / row['denoise_s']['mean']:.2f} |" in text


def test_a_clip_is_told_with_its_stages_and_the_kernels_that_attended() -> None:
    rates = {"1024": {"cudnn": 200.0, "flash4": 100.0}, "16384": {"cudnn": 600.0, "flash4": 700.0}}
    figures: dict[str, Any] = {
        "subject": "hv15-i2v-12",
        "steps": 12,
        "budget": 0.5,
        "action": "s0.90-f13",
        "stages_s": {"stage1_s": 0.5, "plan_s": 0.1, "stage2_s": 1.5},
        "denoise_s": 2.0,
        "sum_s": 1.6,
        "clip_over_sum": 1.25,
        "attention_tflops": {"a GPU": rates},
    }
    expected = "| hv15-i2v-12 | 12 | 0.5 | s0.90-f13 | 0.50 + 1.50 | 2.00 | 1.60 | 1.250 | cudnn, flash4 |"
    assert single_gpu_report.clips(figures) == expected
