"""AttenCarve, DraftAttention and AdaSpa on a tiny checkpoint: neutral settings, operations, stages; from a spec."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.config import build_sweep
from orchestrator.flops import attention_share
from orchestrator.mistakes import ConfigError
from stages.denoise import Boundary
from tests.unit.test_caches_on_models import maker, plain, run
from tests.unit.test_trunk import resident

NEUTRAL: Mapping[str, dict[str, Any]] = {
    "attencarve": {"drop_rates": (0,)},
    "draft-attention": {"sparsity": 0},
    "adaspa": {"sparsity": 0},
}
SPARSE: Mapping[str, dict[str, Any]] = {
    "attencarve": {"block": 16},
    "draft-attention": {"dense_layers": 0},
    "adaspa": {"block": 16, "sparsity": 0.6},
}
"""As published but for blocks, of which a small grid has few, and for layers, of which a tiny model has two."""
GRID = (5, 8, 12)
NUM_LAYERS = 2
"""Of the tiny model, which counts as the whole one's."""


@functools.cache
def sparse(name: str, planner: str) -> Boundary:
    return run(maker(name, SPARSE[name]), planner=planner)


@pytest.mark.parametrize("name", NEUTRAL)
def test_at_its_neutral_setting_a_method_changes_no_bit(name: str) -> None:
    for planner in ("full", "dvg"):
        found = run(maker(name, NEUTRAL[name]), planner=planner)
        assert torch.equal(found.x, plain(planner).x), planner
        assert found.past.tflops == pytest.approx(plain(planner).past.tflops)


@pytest.mark.parametrize("name", SPARSE)
def test_operations_fall_by_the_attention_that_was_left_out_but_for_empty_slots_and_searches(name: str) -> None:
    found, whole = sparse(name, "full"), plain("full")
    sparsity = [row.sparsity for row in found.past.attended]
    assert len(sparsity) == 12
    assert sum(sparsity) > 0
    geometry = resident("wan-mini").geometry
    share = attention_share(geometry, GRID) * NUM_LAYERS / geometry.num_layers * sum(sparsity) / 12
    assert 1e-5 < found.past.tflops / whole.past.tflops - (1 - share) < 0.01, "blocks at the end are whole, and AdaSpa searches"
    assert 0 < (found.x - whole.x).abs().max() < whole.x.std()


@pytest.mark.parametrize(("name", "dense"), [("attencarve", 0), ("draft-attention", 2), ("adaspa", 3)])
def test_the_first_steps_are_as_dense_as_published(name: str, dense: int) -> None:
    attended = sparse(name, "full").past.attended
    assert [(row.sparsity, row.choose_s) for row in attended[:dense]] == [(0, 0)] * dense
    assert attended[dense].choose_s > 0


@pytest.mark.parametrize("name", SPARSE)
def test_every_stage_of_dvg_chooses_anew_on_its_own_grid(name: str) -> None:
    found = sparse(name, "dvg")
    assert [row.step for row in found.past.attended] == list(range(12))
    assert found.past.tflops != plain("dvg").past.tflops
    assert found.decision is not None
    assert len(found.decision.action.stages) > 1
    assert bool(found.x.isfinite().all())


def test_adaspa_searches_at_the_first_step_of_a_stage_that_is_neither_dense_nor_too_short() -> None:
    found = sparse("adaspa", "dvg")
    assert found.decision is not None
    solved = [stage.steps for stage in found.decision.action.stages]
    assert solved == [3, 3, 2, 4]
    searches = [row.step for row in found.past.attended if row.sparsity == 0 < row.choose_s]
    assert searches == [9], "after a transition's forward; stages before it have two blocks or few steps"


def built(**settings: Any) -> Any:
    return build_sweep({"prompts": ["a red circle"], "arms": {"a": {"planner": "dvg", **settings}}}, Path())


@pytest.mark.parametrize("name", SPARSE)
def test_a_spec_may_name_it_alone_or_beside_a_cache(name: str) -> None:
    (arm,) = built(accelerators=[{name: SPARSE[name]}, "teacache"]).arms
    assert [use.name for use in arm.accelerators] == [name, "teacache"]


REFUSED: dict[str, tuple[list[Any], list[str]]] = {
    "two": (["attencarve", "adaspa"], ["attencarve and adaspa cannot be combined", "both are a attention"]),
    "rate": ([{"attencarve": {"drop_rates": [1.0]}}], ["attencarve", "drop_rates", "below 1"]),
    "block": ([{"adaspa": {"block": 100}}], ["adaspa", "block", "100 is none of these"]),
    "tile": ([{"draft-attention": {"tile": [3, 5]}}], ["draft-attention", "tile", "15 is none of these"]),
    "setting": ([{"draft-attention": {"sparse": 0.5}}], ["draft-attention", "sparse", "sparsity"]),
}


@pytest.mark.parametrize(("accelerators", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_had_is_refused_with_the_rule(accelerators: list[Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        built(accelerators=accelerators)
    text = "\n".join(refused.value.mistakes)
    assert all(word in text for word in words), text
