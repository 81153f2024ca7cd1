"""Noise as a function of the final-grid coordinate."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.noise import coordinate_noise, derive_seed
from stages.resize import nested_axes


def grid_axes(*grid):
    return tuple(tuple(range(size)) for size in grid)


def restrict(noise, axes):
    t, h, w = map(list, axes)
    return noise[:, :, t][:, :, :, h][..., w]


GOLDEN = [  # (t, h, w, c), arithmetic shift as released, logical shift
    ((0, 0, 0, 0), -0.721240528, -1.679662601),
    ((0, 0, 1, 0), -0.500140381, -1.410282649),
    ((0, 1, 0, 0), 0.739812506, 1.605796108),
    ((0, 0, 0, 1), -1.511766367, -1.238008029),
]


@pytest.mark.parametrize(("cell", "arithmetic", "logical"), GOLDEN)
def test_golden_values(cell, arithmetic, logical):
    t, h, w, c = cell
    for kind, value in (("arithmetic", arithmetic), ("logical", logical)):
        noise = coordinate_noise(grid_axes(2, 2, 2), 2, 12345, "cpu", kind)
        assert noise[0, c, t, h, w].item() == pytest.approx(value, abs=1.2e-7)


def test_shape_and_type():
    noise = coordinate_noise(grid_axes(2, 3, 4), 5, 1, "cpu")
    assert noise.shape == (1, 5, 2, 3, 4)
    assert noise.dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 7), st.integers(1, 7)),
    st.data(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from(["arithmetic", "logical"]),
)
def test_every_stage_is_the_restriction_of_one_field_on_the_final_grid(full, data, seed, kind):
    coarse = tuple(data.draw(st.integers(1, size)) for size in full)
    axes, full_axes = nested_axes((coarse, full))
    field = coordinate_noise(full_axes, 3, seed, "cpu", kind)
    assert torch.equal(coordinate_noise(axes, 3, seed, "cpu", kind), restrict(field, axes))


@given(st.integers(1, 5), st.integers(0, 2**32))
def test_shards_drawn_apart_equal_the_whole(cut, seed):
    t, h, w = grid_axes(6, 4, 5)
    whole = coordinate_noise((t, h, w), 2, seed, "cpu")
    shards = [coordinate_noise((part, h, w), 2, seed, "cpu") for part in (t[:cut], t[cut:])]
    assert torch.equal(torch.cat(shards, dim=2), whole)


@pytest.mark.parametrize("kind", ["arithmetic", "logical"])
def test_the_field_is_standard_normal_and_uncorrelated(kind):
    noise = coordinate_noise(grid_axes(20, 60, 60), 4, 7, "cpu", kind).double()
    num = noise.numel()
    assert abs(noise.mean().item()) < 5 / num**0.5
    assert noise.std().item() == pytest.approx(1.0, abs=5 / (2 * num) ** 0.5)
    assert (noise**4).mean().item() == pytest.approx(3.0, abs=5 * (96 / num) ** 0.5)
    for dim in range(1, 5):
        size = noise.shape[dim]
        lag = (noise.narrow(dim, 0, size - 1) * noise.narrow(dim, 1, size - 1)).mean().item()
        assert abs(lag) < 5 / num**0.5 * (size / (size - 1)) ** 0.5


def test_seeds_give_unrelated_fields():
    first, second = (coordinate_noise(grid_axes(8, 16, 16), 4, derive_seed(seed), "cpu") for seed in (0, 1))
    assert abs((first * second).mean().item()) < 5 / first.numel() ** 0.5


@given(st.integers(-(2**63), 2**64 - 1))
def test_a_derived_seed_fits_a_signed_64_bit_number(seed):
    assert 0 <= derive_seed(seed) < 2**63


def test_derived_seeds_are_fixed_and_distinct():
    assert derive_seed(0) == 0xE220A8397B1DCDAF >> 1  # SplitMix64's first output from state 0
    assert len({derive_seed(seed) for seed in range(1000)}) == 1000
