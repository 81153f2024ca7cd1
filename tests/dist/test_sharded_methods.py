"""Methods of attention and of tokens with weights spread over ranks, which share the tokens or do a branch of guidance each."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.types import Grid
from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from stages.models.base import Branch, Condition, Placed, load
from stages.models.tiny_wan import TEXT_DIM
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.method_runs import CASE, drifting, maker
from tests.dist.test_wan import random, resident

GRID: Grid = (5, 16, 20)
STEPS = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "adaspa": {"dense_steps": 0.0, "block": 32, "sparsity": 0.7, "trusted_recall": 0.37},
    "svg2": {"dense_steps": 0.25, "dense_layers": 0.0, "query_clusters": 3, "key_clusters": 6, "at_tokens": 400, "top_p": 0.5},
    "ras": {"dense_steps": 1, "reset_steps": (3,)},
    "lipar": {"threshold": 1.1, "warmup": 1, "refresh": 3, "last_steps": 1},
}
SLICES = [(2, 1), (2, 2), (4, 2)]
"""Ranks that have the weights once, and branches of guidance among which they are split."""


def unlike() -> Condition:
    """Guided by a prompt so loud that the heads of the two branches do not recall alike."""
    branches = (Branch({"text": loudness * random(1, 6, TEXT_DIM, seed=1)}, 100) for loudness in (1e3, 1.0))
    return Condition(*branches, 3.0, 2.0)


def velocities(model: Any, name: str) -> tuple[Tensor, float]:
    """Of a few steps, both branches each, and the share of the operations executed."""
    ran = drifting(model, functools.partial(maker, name, SETTINGS[name]), Placed(unlike()), GRID, STEPS)
    return torch.stack(ran[0]), ran[2]


_models: dict[int, Any] = {}


def spread(groups: Groups, folder: str, width: int) -> Any:
    """Of this rank, by the ranks that share the weights."""
    if width not in _models:
        group = groups.slice(groups.rank // width * width, width)
        _models[width] = load(CASE.name, folder, parts=frozenset({"transformer"}), shard=group)
    return _models[width]


def shared(groups: Groups, name: str, folder: str, width: int, num_branches: int) -> tuple[Tensor, float]:
    """By slices of ``width`` ranks side by side."""
    model = spread(groups, folder, width)
    model.attach(layout(groups, groups.rank // width * width, width, num_branches), Native())
    found = velocities(model, name)
    model.attach(None, None)
    return found


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_spread_weights_change_nothing_of_what_a_method_chooses(gang: Gang, name: str) -> None:
    folder = str(checkpoint(CASE.name))
    expected, share = velocities(resident(CASE.name, folder), name)
    assert share != 1, "something is left out; few tokens in blocks may be more slots than there were"
    for width, num_branches in SLICES:
        for found, own_share in gang.run(shared, name, folder, width, num_branches):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
            assert own_share == pytest.approx(share)
