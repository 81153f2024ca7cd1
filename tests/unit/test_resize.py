"""Nested anchors and the resizes between them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.resize import nested_axes, resize, smooth

MODES = (
    "temporal_interp_spatial_restore",
    "temporal_interp_spatial_area",
    "temporal_interp_spatial_interp",
    "trilinear",
)
ANCHORED = (MODES[0], MODES[2])


def axis(*sizes):
    """Axes along time of stages with these frame counts."""
    return [axes[0] for axes in nested_axes(tuple((size, 1, 1) for size in sizes))]


def along_time(values):
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, -1, 1, 1)


def one(num):
    return tuple(range(num))


def test_time_anchors_of_a_released_schedule():
    first, second, third, last = axis(12, 17, 17, 31)
    assert first == (0, 2, 6, 8, 11, 13, 17, 19, 22, 24, 28, 30)
    assert second == third == (0, 2, 4, 6, 8, 9, 11, 13, 15, 17, 19, 21, 22, 24, 26, 28, 30)
    assert last == one(31)


def test_height_anchors_of_a_released_schedule():
    first, second, *_ = axis(15, 18, 30, 30)
    assert first == (0, 2, 3, 7, 9, 10, 12, 14, 17, 19, 20, 22, 26, 27, 29)
    assert second == (0, 2, 3, 5, 7, 9, 10, 12, 14, 15, 17, 19, 20, 22, 24, 26, 27, 29)


def test_toy_anchors():
    assert axis(3, 5, 8) == [(0, 4, 7), (0, 2, 4, 5, 7), one(8)]
    assert axis(1, 1, 4) == [(0,), (0,), one(4)]


def test_a_shrinking_axis_is_an_error():
    with pytest.raises(ValueError, match="never shrink"):
        nested_axes(((4, 4, 4), (3, 4, 4)))


@given(st.lists(st.integers(1, 120), min_size=1, max_size=5).map(sorted))
def test_axes_are_nested_increasing_and_keep_both_ends(sizes):
    axes = axis(*sizes)
    assert [len(cells) for cells in axes] == sizes
    for cells in axes:
        assert all(a < b for a, b in pairwise(cells))
        assert cells[0] == 0
        assert len(cells) == 1 or cells[-1] == sizes[-1] - 1
    assert all(set(coarse) <= set(fine) for coarse, fine in pairwise(axes))


@pytest.mark.parametrize(
    ("values", "anchors", "length", "expected"),
    [
        ([10, 20, 40], (0, 2, 4), 5, [10, 15, 20, 30, 40]),
        ([0, 1, 2, 3, 4], (0, 2, 4, 5, 7), 8, [0, 0.5, 1, 1.5, 2, 3, 3.5, 4]),
        ([7], (0,), 3, [7, 7, 7]),
    ],
)
def test_time_is_interpolated_linearly_between_anchors(values, anchors, length, expected):
    y = resize(along_time(values), (anchors, (0,), (0,)), (one(length), (0,), (0,)), MODES[0])
    assert torch.equal(y, along_time(expected))


AREA = [[0, 0.5, 1, 1.5, 2], [1.5, 2, 2.5, 3, 3.5], [3, 3.5, 4, 4.5, 5]]


def test_area_averages_the_source_cells_a_target_cell_overlaps():
    x = torch.arange(6.0).reshape(1, 1, 1, 2, 3)
    y = resize(x, ((0,), (0, 2), (0, 2, 4)), ((0,), one(3), one(5)), "temporal_interp_spatial_area")
    assert torch.equal(y[0, 0, 0], torch.tensor(AREA))


def test_restore_puts_the_source_back_at_its_anchors():
    x = torch.arange(6.0).reshape(1, 1, 1, 2, 3)
    y = resize(x, ((0,), (0, 2), (0, 1, 4)), ((0,), one(3), one(5)), "temporal_interp_spatial_restore")[0, 0, 0]
    expected = torch.tensor(AREA)
    expected[::2, 1] = torch.tensor([1.0, 4.0])  # anchor 1 holds 1 and 4, where area would leave 0.5 and 3.5
    assert torch.equal(y, expected)


def test_trilinear_is_the_plain_resize():
    x = torch.randn(1, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    source, target = nested_axes(((3, 4, 5), (6, 7, 9)))
    expected = F.interpolate(x, size=(6, 7, 9), mode="trilinear", align_corners=False)
    assert torch.equal(resize(x, source, target, "trilinear"), expected)


@st.composite
def two_grids(draw):
    fine = tuple(draw(st.integers(1, 9)) for _ in range(3))
    coarse = tuple(draw(st.integers(1, size)) for size in fine)
    final = tuple(size + draw(st.integers(0, 4)) for size in fine)
    return coarse, fine, final


def latent(grid, seed):
    return torch.randn(1, 2, *grid, generator=torch.Generator().manual_seed(seed))


def at_anchors(y, source, target):
    t, h, w = ([fine.index(cell) for cell in coarse] for coarse, fine in zip(source, target, strict=True))
    return y[:, :, t][:, :, :, h][..., w]


@settings(max_examples=60, deadline=None)
@given(two_grids(), st.integers(0, 99), st.sampled_from(ANCHORED))
def test_anchored_modes_keep_every_source_value_exactly(grids, seed, mode):
    source, target, _ = nested_axes(grids)
    x = latent(grids[0], seed)
    y = resize(x, source, target, mode)
    assert y.shape[2:] == grids[1]
    assert torch.equal(at_anchors(y, source, target), x)


@settings(max_examples=60, deadline=None)
@given(two_grids(), st.integers(0, 99), st.sampled_from(MODES))
def test_no_mode_leaves_the_range_of_its_source_or_changes_a_constant(grids, seed, mode):
    source, target, _ = nested_axes(grids)
    x = latent(grids[0], seed)
    y = resize(x, source, target, mode)
    assert y.min() >= x.min() - 1e-5
    assert y.max() <= x.max() + 1e-5
    assert torch.allclose(resize(torch.full_like(x, 3.0), source, target, mode), torch.tensor(3.0))


@pytest.mark.parametrize("mode", MODES)
def test_the_same_grid_is_left_alone(mode):
    axes = nested_axes(((3, 4, 5), (6, 8, 9)))[0]
    x = latent((3, 4, 5), 1)
    assert torch.allclose(resize(x, axes, axes, mode), x)


def test_the_input_is_not_written_to():
    source, target = nested_axes(((3, 4, 4), (3, 4, 4)))
    x = latent((3, 4, 4), 2)
    before = x.clone()
    resize(x, source, target, MODES[0]).add_(1)
    assert torch.equal(x, before)


def test_grids_that_are_not_nested_are_an_error():
    with pytest.raises(ValueError, match=r"not nested.*dimension 1"):
        resize(torch.zeros(1, 1, 1, 2, 1), ((0,), (0, 3), (0,)), ((0,), (0, 2, 4), (0,)), MODES[0])


def test_a_latent_on_another_grid_is_an_error():
    source, target = nested_axes(((2, 2, 2), (3, 3, 3)))
    with pytest.raises(ValueError, match=r"\(2, 2, 3\) cells.*\(2, 2, 2\)"):
        resize(torch.zeros(1, 1, 2, 2, 3), source, target, MODES[0])


def test_smoothing_mixes_in_the_mean_of_nine_cells():
    x = torch.zeros(1, 1, 1, 5, 5)
    x[..., 2, 2] = 9.0
    y = smooth(x, 0.3, "replicate")[0, 0, 0]
    assert y[2, 2].item() == pytest.approx(0.7 * 9 + 0.3)
    assert y[1, 1].item() == pytest.approx(0.3)
    assert y[0, 0].item() == 0.0


def test_zero_padding_darkens_the_border_as_the_release_does_and_replication_does_not():
    x = torch.ones(1, 2, 3, 6, 6)
    zeros = smooth(x, 0.3, "zeros")[0, 0, 0]
    assert zeros[0, 2].item() == pytest.approx(0.9)
    assert zeros[0, 0].item() == pytest.approx(0.8333, abs=1e-4)
    assert zeros[2, 2].item() == pytest.approx(1.0)
    assert torch.allclose(smooth(x, 0.3, "replicate"), x)


def test_smoothing_stays_inside_a_frame_and_a_channel():
    x = torch.zeros(1, 2, 3, 4, 4)
    x[0, 1, 1] = 1.0
    y = smooth(x, 0.3, "replicate")
    assert torch.allclose(y, x)
