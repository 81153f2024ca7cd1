"""What makes the adapters fast on a GPU, on tiny checkpoints: compiled blocks, no waiting, parts that take turns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.types import Grid, VideoShape
from stages import compiling
from stages.memory import Turns
from stages.models import tiny
from stages.models.base import Request, load
from stages.resize import nested_axes
from stages.sampling import initial_noise, make_solver

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NAMES = ["hunyuanvideo", "hunyuanvideo-1.5", "wan2.2-a14b"]
GRIDS: list[Grid] = [(3, 4, 6), (3, 8, 8), (5, 10, 12)]
SHAPE = VideoShape(9, 64, 96, 24)
GUIDANCE = 4.0
"""HunyuanVideo's network is told its thousandfold, which bf16 holds exactly; the default's 6,000 it takes for 6,016, as the stock
pipeline does, and the tiny network answers that with 13 % of its velocity."""


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    path: Path = tmp_path_factory.mktemp("tiny") / request.param
    tiny.build(request.param, path)
    return request.param, str(path)


def velocity(loaded: Any, condition: Any, grid: Grid) -> torch.Tensor:
    placed = loaded.place(condition, nested_axes((grid,))[0], "index")
    x = initial_noise(grid, loaded.geometry.latent_channels, seed=1).to(loaded.device)
    found: torch.Tensor = loaded.denoise(x, make_solver("euler", 4, 5.0).levels[1], placed)
    return found.float().cpu()


def encoded(loaded: Any) -> Any:
    return loaded.encode(Request("a boat on a lake", SHAPE, GUIDANCE))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_bf16_on_a_gpu_compiled_or_not_is_near_float32_on_a_cpu(folder: tuple[str, str]) -> None:
    exact = load(*folder)
    condition = encoded(exact)
    for compiled in (False, True):
        loaded = load(*folder, "cuda", compile_blocks=compiled)
        for grid in GRIDS:
            assert distance(velocity(loaded, condition, grid), velocity(exact, condition, grid)) < 5e-2


def test_one_compilation_serves_every_grid_and_repeats_are_replayed_alike(folder: tuple[str, str]) -> None:
    loaded = load(*folder, "cuda", compile_blocks=True)
    condition = encoded(loaded)
    first = [velocity(loaded, condition, GRIDS[0])]
    graphs = compiling.num_graphs()
    first += [velocity(loaded, condition, grid) for grid in GRIDS[1:]]
    assert compiling.num_graphs() == graphs
    for _ in range(2):
        for grid, expected in zip(GRIDS, first, strict=True):
            torch.testing.assert_close(velocity(loaded, condition, grid), expected, atol=1e-2, rtol=1e-2)


@torch.inference_mode()
def test_steps_never_wait_for_the_device(folder: tuple[str, str]) -> None:
    loaded = load(*folder, "cuda", compile_blocks=True)
    condition = encoded(loaded)
    solver = make_solver(loaded.geometry.solver, 6, 5.0)
    placed = loaded.place(condition, nested_axes((GRIDS[1],))[0], "index")
    x = initial_noise(GRIDS[1], loaded.geometry.latent_channels, seed=1).to("cuda")
    for level in solver.levels[:2]:
        loaded.denoise(x, level, placed)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(6):
            x = solver.step(x, loaded.denoise(x, solver.levels[step], placed), step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert bool(x.isfinite().all())


def test_a_parked_encoder_gives_its_memory_back_and_the_same_values() -> None:
    encoder = torch.nn.Linear(2048, 2048, device="cuda")
    x = torch.randn(4, 2048, device="cuda")
    expected, used = encoder(x), torch.cuda.memory_allocated()
    turns = Turns(torch.device("cuda"), {"text": [encoder]})
    turns.settle(1 << 60)
    assert turns.away == ("text",)
    assert encoder.weight.device.type == "cpu"
    assert torch.cuda.memory_allocated() <= used - encoder.weight.nbytes
    with turns.turn("text"):
        torch.testing.assert_close(encoder(x), expected)
    assert encoder.weight.device.type == "cpu"
    assert torch.cuda.memory_allocated() <= used - encoder.weight.nbytes


def test_an_encoder_that_fits_stays() -> None:
    encoder = torch.nn.Linear(8, 8, device="cuda")
    turns = Turns(torch.device("cuda"), {"text": [encoder]})
    turns.settle(1)
    with turns.turn("text"):
        assert encoder.weight.is_cuda
    assert turns.away == ()
