"""Sparse VideoGen: bands and sinks, which heads are temporal, and what is attended to, by the definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model
from orchestrator.methods import Request, find, read_settings
from stages.accelerators.attending import Log
from stages.accelerators.svg import Svg, band, errors, half_width, kinds, sampled
from stages.sparse.pattern import Pattern
from tests.unit.attention_calls import GEOMETRY, dense, here, masked, qkv

CPU = torch.device("cpu")
GRID = (7, 6, 9)
"""378 tokens, three blocks of queries and six of keys, none of which ends with a frame of 54."""
NUM = math.prod(GRID)
PER_FRAME = 54


def made(**settings: object) -> Svg:
    method = find("svg", "accelerator")
    attending: Svg = method.make(read_settings(method, {"dense_steps": 0, "dense_layers": 0, **settings}), GEOMETRY)
    return attending


def position_major(token: int) -> int:
    """Where a token comes in the order of positions."""
    frame, position = divmod(token, PER_FRAME)
    return position * GRID[0] + frame


@pytest.mark.parametrize(("num", "width", "sink", "sizes"), [(23, 4.0, 3, (4, 2)), (24, 0.5, 1, (8, 4)), (10, 9.0, 2, (3, 3))])
def test_a_block_is_kept_if_it_holds_a_pair_of_the_band_or_a_key_of_the_sink(
    num: int, width: float, sink: int, sizes: tuple[int, int]
) -> None:
    rows, columns = (math.ceil(num / size) for size in sizes)
    expected = [[False] * columns for _ in range(rows)]
    for i in range(num):
        for j in range(num):
            if abs(i - j) <= width or j < sink:
                expected[i // sizes[0]][j // sizes[1]] = True
    assert band(num, width, sink, CPU, sizes).tolist() == expected


@pytest.mark.parametrize("density", [0.1, 0.25, 0.3, 0.8])
def test_the_band_alone_has_the_density_it_is_made_for(density: float) -> None:
    num, width = 4000, half_width(4000, 0, density)
    pairs = sum(min(num - 1, i + int(width)) - max(0, i - int(width)) + 1 for i in range(num))
    assert pairs / num**2 == pytest.approx(density, abs=1e-3)


def test_text_counts_in_the_density() -> None:
    assert half_width(3900, 100, 0.25) == pytest.approx(4000 * (1 - math.sqrt(1 - 0.2)))
    assert half_width(100, 300, 0.25) == 0


def test_the_same_queries_are_drawn_for_a_step_and_others_for_another() -> None:
    rows = sampled(NUM, 64, 3, CPU)
    assert torch.equal(rows, sampled(NUM, 64, 3, CPU))
    assert not torch.equal(rows, sampled(NUM, 64, 4, CPU))
    assert rows.shape == (64,)
    assert int(rows.max()) < NUM


def seen(is_temporal: bool, width: float, num_text: int = 0) -> Tensor:
    """Which token attends to which ``[tokens, tokens]``, block by block of a head's order, text in full."""
    keep = band(NUM, width, PER_FRAME, CPU)
    places = torch.tensor([position_major(token) if is_temporal else token for token in range(NUM)])
    found = torch.ones(NUM + num_text, NUM + num_text, dtype=torch.bool)
    found[:NUM, :NUM] = keep[places // 128][:, places // 64]
    return found


def test_spatial_heads_go_frame_by_frame_and_temporal_ones_position_by_position() -> None:
    spatial, temporal = kinds(GRID, 20.0, CPU)
    assert torch.equal(spatial.pairs()[0], seen(False, 20.0))
    assert torch.equal(temporal.pairs()[0], seen(True, 20.0))
    assert not torch.equal(spatial.pairs(), temporal.pairs())


def test_the_error_of_a_kind_is_of_what_the_sampled_queries_find_by_it() -> None:
    q, k, v = qkv(NUM + 5)
    rows = sampled(NUM, 10, 0, CPU)
    found = errors(q[0], k[0], v[0], rows, kinds(GRID, 20.0, CPU))
    for error, is_temporal in zip(found, (False, True), strict=True):
        off = masked(q, k, v, seen(is_temporal, 20.0, 5)) - dense(q, k, v)
        torch.testing.assert_close(error, off[0, :, rows].square().mean((1, 2)))


def heads_of_both_kinds(num_text: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Head 0 looks for keys of its position, head 1 for keys of its frame."""
    of_position = torch.randn(PER_FRAME, 8, generator=torch.Generator().manual_seed(2)).repeat(GRID[0], 1)
    of_frame = torch.randn(GRID[0], 8, generator=torch.Generator().manual_seed(3)).repeat_interleave(PER_FRAME, 0)
    codes = 4 * torch.nn.functional.normalize(torch.stack([of_position, of_frame]), dim=-1)
    q = torch.cat([codes, torch.zeros(2, num_text, 8)], dim=1).unsqueeze(0)
    return q * 3, q, qkv(NUM + num_text)[2]


def test_a_head_that_looks_along_time_is_temporal_and_one_that_looks_inside_its_frame_is_not() -> None:
    q, k, v = heads_of_both_kinds()
    pattern = made().pattern(q, k, v, here(GRID, Log(7)))
    assert isinstance(pattern, Pattern)
    first_in_line = pattern.queries.slots[:, : GRID[0]].tolist()
    assert first_in_line == [[PER_FRAME * frame for frame in range(GRID[0])], list(range(GRID[0]))]


@pytest.mark.parametrize("num_text", [0, 5])
def test_each_head_attends_to_its_kinds_blocks_and_text_is_dense(num_text: int) -> None:
    q, k, v = heads_of_both_kinds(num_text)
    log = Log(7)
    out = made(density=0.2).attend(q, k, v, here(GRID, log), dense)
    width = half_width(NUM, num_text, 0.2)
    both = torch.stack([seen(True, width, num_text), seen(False, width, num_text)])
    torch.testing.assert_close(out, masked(q, k, v, both))
    assert log.settle(None)[1][0].sparsity == pytest.approx(1 - float(both.double().mean()))
    assert not both.all()


def test_a_density_of_one_is_the_dense_kernel_to_the_bit() -> None:
    q, k, v = qkv(NUM)
    assert torch.equal(made(density=1).attend(q, k, v, here(GRID, Log(7)), dense), dense(q, k, v))


@pytest.mark.parametrize(
    ("name", "dense_steps", "density"),
    [("hunyuanvideo", 0.1, 0.25), ("hunyuanvideo-1.5-i2v", 0.1, 0.25), ("wan2.1-14b", 0.2, 0.3), ("wan2.2-i2v-a14b", 0.35, 0.3)],
)
def test_first_steps_and_layers_are_dense_as_released_for_a_model(name: str, dense_steps: float, density: float) -> None:
    method, geometry = find("svg", "accelerator"), model(name)
    request = Request(geometry, geometry.default_shape, 50, 1.0, "full", DvgConfig())
    settings = method.resolve(read_settings(method, {}), request)
    assert (settings.dense_steps, settings.dense_layers, settings.density) == (dense_steps, 0.03, density)
    assert method.resolve(read_settings(method, {"density": 0.5}), request).density == 0.5
    attending, layers = method.make(settings, geometry), math.ceil(0.03 * geometry.num_layers)
    log = Log(geometry.num_layers)
    first = [attending.is_dense(here(GRID, log, step, layers)) for step in range(10)]
    assert first == [step < 10 * dense_steps for step in range(10)]
    assert [attending.is_dense(here(GRID, log, 9, layer)) for layer in (layers - 1, layers)] == [True, False]
