"""AttenCarve: blocks along the curve, and which of them a row keeps."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from orchestrator.types import Grid
from stages.accelerators.attencarve import AttenCarveSettings, neighbours
from stages.accelerators.attending import Log
from stages.sparse.curve import hilbert
from tests.unit.scripted_attention import dense, here, method, noise, stage, within

GRIDS: list[Grid] = [(3, 6, 8), (3, 5, 7), (1, 4, 9)]
"""Of 144, 105 and 36 tokens: blocks of 16, the last of which may have fewer."""
BLOCK = 16


def blocks_of(grid: Grid) -> list[list[int]]:
    order = hilbert(grid).tolist()
    return [order[start : start + BLOCK] for start in range(0, len(order), BLOCK)]


def beside(grid: Grid, one: list[int], other: list[int]) -> bool:
    """Whether a token of the one is next to one of the other, or in it."""
    places = [(token // (grid[1] * grid[2]), token // grid[2] % grid[1], token % grid[2]) for token in one + other]
    return any(sum(abs(x - y) for x, y in zip(a, b, strict=True)) <= 1 for a in places[: len(one)] for b in places[len(one) :])


def kept(scores: list[float], num: int, mass: float) -> set[int]:
    """Of one row: the largest, and as many as come to the mass."""
    best = sorted(range(len(scores)), key=lambda j: -scores[j])
    found, total = set(best[:num]), 0.0
    for j in best:
        if total >= mass:
            break
        found.add(j)
        total += scores[j]
    return found


def by_the_rule(q: Tensor, k: Tensor, grid: Grid, drop: float, mass: float) -> Tensor:
    blocks, num = blocks_of(grid), math.prod(grid)
    seen = torch.zeros(q.shape[1], num, num, dtype=torch.bool)
    for head in range(q.shape[1]):
        means = [(q[0, head, tokens].mean(0), k[0, head, tokens].mean(0)) for tokens in blocks]
        for i, row in enumerate(blocks):
            scores = torch.softmax(torch.stack([means[i][0] @ key for _, key in means]) / math.sqrt(q.shape[-1]), dim=0).tolist()
            chosen = kept(scores, round((1 - drop) * len(blocks)), mass)
            for j, column in enumerate(blocks):
                if j in chosen or beside(grid, row, column):
                    seen[head, torch.tensor(row).unsqueeze(1), torch.tensor(column)] = True
    return seen


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("drop", "mass"), [(0.75, 0.0), (0.9, 0.6), (0.7, 0.3)])
def test_a_row_keeps_its_best_those_that_make_up_the_mass_and_its_neighbours(grid: Grid, drop: float, mass: float) -> None:
    q, k, v = noise(grid)
    log = Log(7)
    carve = method("attencarve", drop_rates=(drop,), mass=mass, block=BLOCK)
    found = carve.attend(q, k, v, here(grid, log=log), dense)
    seen = by_the_rule(q, k, grid, drop, mass)
    assert torch.equal(carve.choose(q, k, here(grid)).pairs(), seen)
    torch.testing.assert_close(found, within(q, k, v, seen))
    assert float(log.calls[0].density) == pytest.approx(float(seen.double().mean()))


def test_without_neighbours_and_mass_there_would_be_less() -> None:
    """The control: each of the rule's parts adds something here."""
    grid = (3, 6, 8)
    q, k, _ = noise(grid)
    counts = [int(by_the_rule(q, k, grid, 0.9, mass).sum()) for mass in (0.0, 0.6)]
    alone = 1 / 9 * 2 * 144**2
    assert alone < counts[0] < counts[1]


def test_neighbours_are_those_beside_in_space_or_time() -> None:
    found = neighbours(torch.arange(24), (2, 3, 4), 4)
    in_rows = [[1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 1, 0], [0, 1, 1, 0, 0, 1]]
    assert found.int().tolist() == in_rows + [row[3:] + row[:3] for row in in_rows]


@pytest.mark.parametrize(("number", "num_stages", "rate"), [(0, 4, 0.7), (1, 4, 0.8), (3, 4, 0.8), (0, 1, 0.8)])
def test_each_stage_has_its_drop_rate_and_the_full_grid_the_last(number: int, num_stages: int, rate: float) -> None:
    assert AttenCarveSettings().drop_rate(stage(number, num_stages)) == rate


def test_three_stages_may_have_three_rates() -> None:
    settings = AttenCarveSettings(drop_rates=(0.6, 0.75, 0.85))
    assert [settings.drop_rate(stage(number, 3)) for number in range(3)] == [0.6, 0.75, 0.85]


def test_at_a_drop_rate_of_0_it_is_dense_bit_for_bit() -> None:
    grid, log = (3, 5, 7), Log(7)
    q, k, v = noise(grid, num_text=4)
    found = method("attencarve", drop_rates=(0,), block=BLOCK).attend(q, k, v, here(grid, log=log), dense)
    assert torch.equal(found, dense(q, k, v))
    assert log.calls[0].density == 1.0


def test_as_published_no_step_and_no_layer_is_dense() -> None:
    carve, first = method("attencarve"), here((3, 5, 7), step=0, layer=0)
    assert not carve.is_dense(first)


@pytest.mark.parametrize("rates", [(), (0.5, 1.0), (-0.1,)])
def test_rates_that_leave_nothing_are_refused(rates: tuple[float, ...]) -> None:
    with pytest.raises(ValidationError):
        AttenCarveSettings(drop_rates=rates)
