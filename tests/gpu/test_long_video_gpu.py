"""Clips longer than their model was trained on, on GPUs: by blocks, on one GPU as on the CPU, over ranks through NCCL as on one;
and FreeLong, compiled as block by block."""

from __future__ import annotations

import dataclasses
import gc
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor

from orchestrator.types import VideoShape
from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from stages.models.base import Model, load
from tests.dist.gang import free_port, met
from tests.gpu.clips import NAME, Clip, distance, eager_and_compiled, unwaiting

NUM_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
several = pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs 2 GPUs, there are {NUM_GPUS}")

LONG = VideoShape(85, 96, 96)
"""22 latent frames, twice those of the model's own length."""
NUM_STEPS = 6
BLOCKS: dict[str, dict[str, Any]] = {
    "overlapping": {},
    "overlapping, few in flight": {"block_frames": 5, "overlap_frames": 2, "in_flight": 2},
    "noisiest": {"block_frames": 6, "context_frames": 3, "in_flight": 4},
    "cleanest": {"block_frames": 6, "context_frames": 6, "in_flight": 3, "order": "cleanest"},
}
FREE = Clip(LONG, NUM_STEPS, "freelong")
TIMEOUT = timedelta(seconds=240)
CLOSE = 1e-2
"""Relative distance."""


def by_blocks(which: str) -> Clip:
    return Clip(LONG, NUM_STEPS, planner="dualparal", planned=BLOCKS[which])


@pytest.fixture(scope="module")
def models() -> dict[bool, Model]:
    return eager_and_compiled()


@pytest.fixture(scope="module")
def reference() -> Model:
    return load(NAME, None, "cpu")


@pytest.mark.parametrize("which", BLOCKS)
def test_a_long_video_on_a_gpu_is_the_cpus(models: dict[bool, Model], reference: Model, which: str) -> None:
    expected, found = (by_blocks(which).run(model) for model in (reference, models[True]))
    assert found.x.shape[2] == 22
    assert distance(found.x, expected.x) < CLOSE
    assert found.past.tflops == expected.past.tflops


@pytest.mark.parametrize("planner", ["full", "dvg"])
def test_freelong_compiled_is_what_it_is_block_by_block(models: dict[bool, Model], planner: str) -> None:
    clip = dataclasses.replace(FREE, planner=planner, num_steps=12)
    eager, compiled = (clip.run(models[is_compiled]) for is_compiled in (False, True))
    torch.testing.assert_close(compiled.x.cpu(), eager.x.cpu(), atol=2e-2, rtol=2e-2)
    assert compiled.past.tflops == pytest.approx(eager.past.tflops)
    assert min(step.sparsity for step in eager.past.attended) < 0, "it attends twice"


def test_freelong_on_a_gpu_is_the_cpus(models: dict[bool, Model], reference: Model) -> None:
    expected, found = (FREE.run(model).x for model in (reference, models[False]))
    assert distance(found, expected) < CLOSE


def test_freelong_never_waits_for_the_gpu(models: dict[bool, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    FREE.run(models[True])
    monkeypatch.setattr(models[True], "denoise", unwaiting(models[True].denoise))
    assert FREE.run(models[True]).x.isfinite().all()


def clips(groups: Groups, model: Model, width: int) -> dict[str, Tensor]:
    """What the first ``width`` ranks make together; nothing on the others."""
    if groups.rank >= width:
        return {}
    model.attach(layout(groups, 0, width, 2), Native())
    found = {which: by_blocks(which).run(model).x.cpu() for which in BLOCKS}
    model.attach(None, None)
    return found


def rank(index: int, num_ranks: int, port: int, folder: Path, kind: str) -> None:
    """Every rank alone, then all of them together."""
    device = torch.device(kind, index) if kind == "cuda" else torch.device(kind)
    groups = met(index, num_ranks, port, device, TIMEOUT)
    model = load(NAME, None, str(device))
    alone = {which: by_blocks(which).run(model).x.cpu() for which in BLOCKS}
    widths = [width for width in (2, 4) if width <= num_ranks]
    torch.save({1: alone} | {width: clips(groups, model, width) for width in widths}, folder / f"{index}.pt")
    gc.collect()  # recordings hold the groups' collectives, and the groups cannot end before them
    groups.close()


def made(folder: Path, num_ranks: int, kind: str = "cuda") -> list[dict[int, dict[str, Tensor]]]:
    multiprocessing.spawn(rank, (num_ranks, free_port(), folder, kind), nprocs=num_ranks)
    return [torch.load(folder / f"{index}.pt") for index in range(num_ranks)]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, dict[str, Tensor]]]:
    return made(tmp_path_factory.mktemp("ranks"), 4 if NUM_GPUS >= 4 else 2)


@several
@pytest.mark.parametrize("which", BLOCKS)
@pytest.mark.parametrize("width", [2, pytest.param(4, marks=pytest.mark.skipif(NUM_GPUS < 4, reason="needs 4 GPUs"))])
def test_a_long_video_over_ranks_is_that_of_one(told: list[dict[int, dict[str, Tensor]]], width: int, which: str) -> None:
    expected = told[0][1][which]
    for ranks in told[:width]:
        assert distance(ranks[width][which], expected) < CLOSE
        assert torch.equal(ranks[width][which], told[0][width][which]), "all of them have the last one's"
