"""Sparse-vDiT: patterns told by the size of a frame, chosen head by head off line, and what calibration measures."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

from experiments.calibrate_sparse import PatternProbe, measured_steps
from orchestrator.arms import Arm
from orchestrator.cli import app
from orchestrator.mistakes import ConfigError
from orchestrator.resolve import resolve_arm
from orchestrator.types import Grid
from stages.accelerators import sparse_vdit
from stages.accelerators.attending import Log
from stages.accelerators.pattern_fits import CANDIDATES, FOLDER_VARIABLE, SHELF, PatternFit
from stages.sparse.pattern import Pattern
from stages.sparse.relative import Relative, patterned, read
from tests.unit.attention_calls import GEOMETRY, HEADS, dense, here, made, masked, qkv

CPU = torch.device("cpu")
GRID: Grid = (3, 5, 6)
TOKENS = math.prod(GRID)
SIZES = st.integers(1, 6)
NAMES = ("diagonal:0.2", "multi-diagonal:0.1", "stripe:0.4", "diagonal:0", "multi-diagonal:0.5", "stripe:1")


def wanted(name: str, grid: Grid, query: int, key: int) -> bool:
    """Whether a token attends to another, by the rule."""
    per_frame, pattern = grid[1] * grid[2], read(name)
    reach = int(pattern.width * per_frame)
    if pattern.kind == "diagonal":
        return abs(query - key) <= reach
    if pattern.kind == "multi-diagonal":
        return abs(query % per_frame - key % per_frame) <= reach
    return key // per_frame < max(1, round(pattern.width * grid[0]))


def by_blocks(name: str, grid: Grid, size: int) -> Tensor:
    """All pairs of blocks that hold a wanted pair, token by token ``[tokens, tokens]``."""
    per_frame, num = grid[1] * grid[2], math.prod(grid)

    def block(token: int) -> int:
        by_place = token % per_frame * grid[0] + token // per_frame
        return (by_place if name.startswith("multi") else token) // size

    pairs = itertools.product(range(num), range(num))
    kept = {(block(query), block(key)) for query, key in pairs if wanted(name, grid, query, key)}
    return torch.tensor([[(block(query), block(key)) in kept for key in range(num)] for query in range(num)])


@given(
    grid=st.tuples(SIZES, SIZES, SIZES), size=st.integers(3, 9), names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)
)
@settings(max_examples=25, deadline=None)
def test_a_pattern_keeps_the_blocks_that_hold_a_pair_of_its_rule_and_no_others(grid: Grid, size: int, names: list[str]) -> None:
    pairs = patterned([read(name) for name in names], grid, size, CPU).pairs()
    for own, name in zip(pairs, names, strict=True):
        assert torch.equal(own, by_blocks(name, grid, size)), name
        assert bool(own.any(-1).all()), "every query sees something"


def test_the_same_pattern_on_a_larger_grid_reaches_as_far_in_frames() -> None:
    small, large = (patterned([read("diagonal:1")], grid, 4, CPU).pairs()[0] for grid in ((4, 2, 4), (4, 4, 8)))
    assert int(small[0].nonzero().max()) == 8 + 3, "a frame on, and to the end of its block"
    assert int(large[0].nonzero().max()) == 32 + 3


@pytest.mark.parametrize("text", ["full:1", "diagonal", "zigzag:1", "stripe:-1", "stripe:x", "stripe:nan", ""])
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no pattern|is no number|must be 0 or more"):
        read(text)


HEADS_OF_LAYERS = (
    ("full", "skip"),
    ("diagonal:0.2", "multi-diagonal:0.1"),
    ("skip", "stripe:0.4"),
    ("full", "full"),
    ("skip", "skip"),
)


def attended(layer: int, num_text: int, heads: range = range(HEADS), **more: Any) -> tuple[Tensor, Log]:
    log = Log(5)
    options = {"heads": HEADS_OF_LAYERS, "block": 16, "dense_steps": 0.0, **more}
    where = dataclasses.replace(here(GRID, log, step=layer, layer=layer), heads=heads)
    own = (x[:, heads.start : heads.stop] for x in qkv(TOKENS + num_text))
    return made("sparse-vdit", **options).attend(*own, where, dense), log


def seen(name: str, num_text: int) -> Tensor:
    pairs = torch.ones(TOKENS + num_text, TOKENS + num_text, dtype=torch.bool)
    if name == "skip":
        pairs[:TOKENS] = False
    elif name != "full":
        pairs[:TOKENS, :TOKENS] = by_blocks(name, GRID, 16)
    return pairs


@pytest.mark.parametrize("num_text", [0, 7])
@pytest.mark.parametrize("layer", range(5))
def test_every_head_attends_within_its_own_pattern_and_text_to_all(layer: int, num_text: int) -> None:
    found, log = attended(layer, num_text)
    pairs = torch.stack([seen(name, num_text) for name in HEADS_OF_LAYERS[layer]])
    expected = masked(*qkv(TOKENS + num_text), pairs).nan_to_num(0)  # a skipped head finds nothing
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert float(log.calls[0].density) == pytest.approx(float(pairs.double().mean()))
    if log.calls[0].recall is not None:
        q, k, _ = qkv(TOKENS + num_text)
        weights = torch.softmax(q @ k.transpose(2, 3) * 8**-0.5, dim=-1)
        assert float(log.calls[0].recall) == pytest.approx(float((weights[0] * pairs).sum(-1).mean()), abs=0.05)


def test_a_rank_takes_the_patterns_of_its_own_heads() -> None:
    for layer, head in itertools.product(range(3), range(HEADS)):
        both, _ = attended(layer, 3)
        alone, _ = attended(layer, 3, range(head, head + 1))
        torch.testing.assert_close(alone, both[:, head : head + 1], atol=1e-6, rtol=0)


def test_texts_of_other_lengths_have_their_own_pattern_laid_once_for_all_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    laid: list[tuple[Relative, ...]] = []

    def noted(heads: list[Relative], *more: Any) -> Pattern:
        laid.append(tuple(heads))
        return patterned(heads, *more)

    expected = {(num_text, layer): attended(layer, num_text)[0] for num_text in (7, 3) for layer in (1, 2)}
    monkeypatch.setattr(sparse_vdit, "patterned", noted)
    log, method = Log(5), made("sparse-vdit", heads=HEADS_OF_LAYERS, block=16, dense_steps=0.0)
    for num_text, layer in itertools.product((7, 3, 7, 3), (1, 2)):
        found = method.attend(*qkv(TOKENS + num_text), here(GRID, log, layer=layer), dense)
        torch.testing.assert_close(found, expected[num_text, layer], atol=1e-6, rtol=0)
    assert len(laid) == 4, "for two lengths, those of either order of tokens"


def held_bytes(value: Any, seen: set[int] | None = None) -> int:
    """Of all tensors that something holds, however deep."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, Tensor):
        return value.untyped_storage().nbytes()
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    if dataclasses.is_dataclass(value) or isinstance(value, sparse_vdit.SparseVDiT):
        parts = vars(value).values()
    return sum(held_bytes(part, seen) for part in parts)


def test_what_is_kept_does_not_grow_with_layers_but_for_the_numbers_of_heads() -> None:
    def held(num_layers: int) -> int:
        method = made("sparse-vdit", heads=(("diagonal:0.2", "multi-diagonal:0.1"),) * num_layers, block=16, dense_steps=0.0)
        for layer in range(num_layers):
            method.attend(*qkv(TOKENS), here(GRID, Log(num_layers), layer=layer), dense)
        return held_bytes(method)

    assert 0 < held(9) - held(1) <= 8 * 2 * HEADS * 8


@pytest.mark.parametrize(("layer", "more"), [(3, {}), (1, {"dense_steps": 0.2}), (1, {"dense_layers": 0.3})])
def test_heads_that_see_everything_are_dense_attention_bit_for_bit(layer: int, more: dict[str, Any]) -> None:
    found, log = attended(layer, 0, **more)
    assert torch.equal(found, dense(*qkv(TOKENS)))
    assert log.calls[0].density == 1.0


def fit(**more: Any) -> PatternFit:
    told: dict[str, Any] = {
        "model": "wan-mini", "revision": "", "grids": ((3, 4, 4),), "num_steps": 4, "solver": "euler", "shift": 3.0,
        "guidance": 1.0, "num_clips": 1, "block": 16, "steps": (1,), "candidates": ("full", "stripe:0.5", "skip"),
        "costs": (1.0, 0.5, 0.0), "errors": (((0.0, 0.01, 0.2), (0.0, 0.3, 0.02)),),
    }  # fmt: skip
    return PatternFit.model_validate({**told, **more})


def test_a_head_takes_the_pattern_of_least_error_and_weighed_cost() -> None:
    assert fit().chosen(0.0) == (("full", "full"),)
    assert fit().chosen(0.01) == (("full", "full"),), "0 + .01 against .01 + .005, and .02"
    assert fit().chosen(0.03) == (("stripe:0.5", "skip"),), ".025 against .03; .02 against .03"
    assert fit().chosen(1.0) == (("skip", "skip"),)
    assert list(fit().told((("stripe:0.5", "skip"),))) == pytest.approx([0.25, 0.015])
    assert fit(errors=(((0.0, 0.0, 0.0),),)).chosen(0.0) == (("full",),), "of equal ones that which keeps most"


def test_a_file_with_a_number_missing_is_refused() -> None:
    with pytest.raises(ValueError, match="a number for each of 3 candidates"):
        fit(errors=(((0.0, 0.1),),))


def arm(mistakes: list[str], model: str = "wan-mini", **options: Any) -> Arm | None:
    asked = {"model": model, "planner": "full", "steps": 4, "accelerators": [{"sparse-vdit": options}]}
    return resolve_arm("own", asked, mistakes, with_weights=model == "wan-mini")


def test_the_fit_that_ships_serves_the_embedded_model_and_is_part_of_the_arm() -> None:
    own = arm([])
    assert own is not None
    heads = own.accelerators[0].settings["heads"]
    assert len(heads) == GEOMETRY.num_layers
    assert {len(layer) for layer in heads} == {GEOMETRY.heads}
    kinds = {name.split(":")[0] for layer in heads for name in layer}
    assert "full" in kinds
    assert len(kinds) > 2
    neutral = arm([], balance=0)
    assert neutral is not None
    assert {name for layer in neutral.accelerators[0].settings["heads"] for name in layer} == {"full"}


def test_a_model_without_a_fit_is_told_what_measures_one_and_what_needs_none() -> None:
    mistakes: list[str] = []
    assert arm(mistakes, "wan2.1-1.3b") is None
    assert any("dvg calibrate-sparse wan2.1-1.3b, or take svg" in line for line in mistakes)


def test_patterns_for_other_numbers_of_heads_are_refused() -> None:
    mistakes: list[str] = []
    assert arm(mistakes, heads=[["full"] * 3] * 7) is None
    assert any("7 layers of 3 patterns: wan-mini has 7 layers of 8 heads" in line for line in mistakes)
    assert arm(mistakes, heads=[["full"] * 8] * 7) is not None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"balance": 0.2}, "heads are given, and balance"),
        ({"fit": "own.json", "balance": 0.1}, "heads are given, and balance and fit"),
    ],
)
def test_heads_beside_what_would_choose_them_are_refused(options: dict[str, Any], told: str) -> None:
    mistakes: list[str] = []
    assert arm(mistakes, heads=[["full"] * 8] * 7, **options) is None
    assert any(told in line for line in mistakes)


def test_blocks_other_than_those_a_fit_was_measured_with_are_refused() -> None:
    mistakes: list[str] = []
    assert arm(mistakes, block=64) is None
    assert any("block is 64: what patterns lose was measured with blocks of 32" in line for line in mistakes)
    own = arm(mistakes, block=32)
    assert own is not None
    usual = arm([])
    assert usual is not None
    assert own.accelerators[0].settings == usual.accelerators[0].settings


def test_no_step_and_no_layer_is_dense_but_by_its_fit() -> None:
    own = arm([])
    assert own is not None
    assert (own.accelerators[0].settings["dense_steps"], own.accelerators[0].settings["dense_layers"]) == (0, 0)


@pytest.mark.parametrize("num_text", [0, 7])
def test_the_probe_attends_to_everything_and_measures_what_each_candidate_loses(num_text: int) -> None:
    probe, log = PatternProbe((3,), 16), Log(1)
    q, k, v = qkv(TOKENS + num_text)
    for step in (2, 3):
        assert torch.equal(probe.attend(q, k, v, here(GRID, log, step), dense), dense(q, k, v))
    (errors,) = probe.errors[0]
    whole = dense(q, k, v)[0, :, :TOKENS]
    for name, own in zip(CANDIDATES, errors.T, strict=True):
        found = masked(q, k, v, seen(name, num_text).unsqueeze(0)).nan_to_num(0)[0, :, :TOKENS]
        lost = (found - whole).square().mean((1, 2)) / whole.square().mean()
        torch.testing.assert_close(own.float(), lost, atol=1e-5, rtol=1e-4)
    costs = [float(seen(name, num_text).double().mean()) for name in CANDIDATES]
    assert probe.densities[0].tolist() == pytest.approx(costs)


def test_steps_that_are_measured_are_spread_over_the_clip() -> None:
    assert measured_steps(30) == (3, 11, 18, 26)
    assert measured_steps(2) == (0, 1)


def test_calibrate_sparse_writes_a_fit_that_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    options = {"limit": 1, "steps": 2, "frames": 5, "height": 64, "width": 64, "block": 16, "device": "cpu"}
    asked = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    done = CliRunner().invoke(app, ["calibrate-sparse", "wan-mini", *asked, "--json"], catch_exceptions=False)
    path = Path(json.loads(done.stdout)["path"])
    assert path.parent == tmp_path
    found = SHELF.load(path)
    assert (found.grids, found.num_clips, found.block, found.steps) == (((2, 8, 8),), 1, 16, (0, 1))
    assert len(found.errors) == GEOMETRY.num_layers
    own = arm([])
    assert own is not None
    assert own.accelerators[0].settings["block"] == 16, "the user's file comes before what ships"


def test_blocks_that_no_gpu_takes_are_refused_before_anything_is_measured() -> None:
    with pytest.raises(ConfigError, match="--block: a block is of 16, 32 or 64 tokens"):
        CliRunner().invoke(app, ["calibrate-sparse", "wan-mini", "--block", "24"], catch_exceptions=False)


def test_operations_fall_by_the_mean_of_the_heads() -> None:
    _, log = attended(1, 0)
    saved, (step,) = log.settle(None)
    pairs = torch.stack([seen(name, 0) for name in HEADS_OF_LAYERS[1]])
    assert step.sparsity == pytest.approx(1 - float(pairs.double().mean()))
    kept = [int(patterned([read(name)], GRID, 16, CPU).keep.sum()) * 16 * 16 / TOKENS**2 for name in HEADS_OF_LAYERS[1]]
    assert saved == pytest.approx((1 - sum(kept) / HEADS) / 5), "one layer of five, in whole blocks"
