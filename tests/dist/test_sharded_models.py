"""Whole models whose layers are spread over 2 and 4 ranks, against the same model on one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from parallel.sharding import Sharded
from stages.models.base import Branch, Condition, Placed, load
from stages.models.tiny_wan import TEXT_DIM
from stages.models.wan import WanModel
from stages.sampling import NoiseLevel
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.joint_runs import attach, hunyuan15_condition, hunyuan_condition, velocity

A14B = "wan2.2-a14b"
HUNYUAN15 = "hunyuanvideo-1.5"
GRID, JOINT_GRID = (3, 10, 14), (3, 6, 10)


@functools.cache
def whole(folder: str) -> WanModel:
    model = load(A14B, folder, parts=frozenset({"transformer"}))
    assert isinstance(model, WanModel)
    return model


resident: dict[int, WanModel] = {}
"""Of this rank, by the ranks that share the weights."""


def spread(groups: Groups, folder: str, width: int) -> WanModel:
    if width not in resident:
        group = groups.slice(groups.rank // width * width, width)
        model = load(A14B, folder, parts=frozenset({"transformer"}), shard=group)
        assert isinstance(model, WanModel)
        resident[width] = model
    return resident[width]


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def velocities(model: WanModel) -> list[Tensor]:
    """Of both experts in turn, guided, twice."""

    def branch(seed: int) -> Branch:
        return Branch({"text": random(1, 6, TEXT_DIM, seed=seed)}, 100)

    placed = Placed(Condition(branch(1), branch(2), 3.0, 2.0))
    x = random(1, model.geometry.latent_channels, *GRID, seed=3)
    return [model.denoise(x, NoiseLevel(t / 1000, t, 0.0), placed) for t in (900.0, 500.0, 900.0)]


def shared(groups: Groups, folder: str, spread_over: int, start: int, width: int) -> list[Tensor] | None:
    model = spread(groups, folder, spread_over)
    if groups.rank not in range(start, start + width):
        return None
    model.attach(layout(groups, start, width, 2), Native())
    found = velocities(model)
    model.attach(None, None)
    return found


@pytest.mark.parametrize(("spread_over", "start", "width"), [(2, 0, 2), (2, 2, 2), (2, 0, 4), (4, 0, 4)])
def test_spread_weights_change_nothing(gang: Gang, spread_over: int, start: int, width: int) -> None:
    folder = str(checkpoint(A14B))
    expected = velocities(whole(folder))
    for rank in gang.run(shared, folder, spread_over, start, width)[start : start + width]:
        for found, expected_ in zip(rank, expected, strict=True):
            torch.testing.assert_close(found, expected_, atol=1e-5, rtol=0)


def shared_joint(groups: Groups, name: str, folder: str, packed: dict[str, Any], num_branches: int) -> Tensor:
    """Of a model with image and text streams, spread over adjacent pairs, on all four ranks."""
    model: Any = load(name, folder, parts=frozenset({"transformer"}), shard=groups.slice(groups.rank // 2 * 2, 2))
    attach(groups, model, 4, num_branches)
    return velocity(model, packed, JOINT_GRID)


@pytest.mark.parametrize(
    ("name", "condition", "num_branches"),
    [("hunyuanvideo", hunyuan_condition, 1), ("hunyuanvideo-i2v", hunyuan_condition, 1), (HUNYUAN15, hunyuan15_condition, 2)],
)
def test_spread_weights_of_two_streams_change_nothing(
    gang: Gang, name: str, condition: Callable[..., Condition], num_branches: int
) -> None:
    folder, packed = str(checkpoint(name)), condition(name, 7, JOINT_GRID).pack()
    expected = velocity(load(name, folder, parts=frozenset({"transformer"})), packed, JOINT_GRID)
    for found in gang.run(shared_joint, name, folder, packed, num_branches):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def bytes_held(groups: Groups, folder: str, spread_over: int) -> tuple[int, int]:
    """Of the layers, and of all the rest that the experts hold."""
    experts = spread(groups, folder, spread_over).parts.experts
    layers = [expert.layers for expert in experts]
    assert all(isinstance(of, Sharded) for of in layers)
    return sum(of.num_bytes for of in layers if isinstance(of, Sharded)), sum(map(_storages, experts))


def _storages(expert: Any) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in expert.weights.state_dict().values()}
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("spread_over", [2, 4])
def test_each_rank_holds_its_share_of_the_layers_and_no_more(gang: Gang, spread_over: int) -> None:
    folder = str(checkpoint(A14B))
    experts = whole(folder).parts.experts
    of_layers = sum(weight.nbytes for expert in experts for layer in expert.layers for weight in layer)
    of_all = sum(map(_storages, experts))
    for layers, others in gang.run(bytes_held, folder, spread_over):
        assert layers == pytest.approx(of_layers / spread_over, rel=0.01)
        assert others == of_all - of_layers


def alone(groups: Groups, folder: str) -> str:
    """What a rank is told that runs without those that have the rest of its weights."""
    model = spread(groups, folder, 4)
    model.attach(layout(groups, groups.rank // 2 * 2, 2, 2), Native())
    try:
        velocities(model)
    except ValueError as problem:
        return str(problem)
    finally:
        model.attach(None, None)
    return ""


def test_a_slice_without_all_the_weights_is_refused_by_all_its_ranks_at_once(gang: Gang) -> None:
    told = "the weights are spread over 4 ranks, 0 to 3: a slice of 2 cannot run them"
    assert gang.run(alone, str(checkpoint(A14B))) == [told] * 4
