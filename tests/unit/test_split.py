"""How GPUs divide between sketches, heavy ranks and decoding."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.actions import DvgConfig, action_list, full_action
from orchestrator.cost import CostModel, ForwardCost, denoise_s
from orchestrator.degrees import Limits
from orchestrator.geometry import model
from orchestrator.resolve_sizing import sizing_on
from orchestrator.split import (
    DECODE_SHARE,
    POOLS,
    Load,
    Pools,
    best,
    decode_is_measured,
    divide,
    load_of,
    mean_load,
    needed,
    steady,
)
from orchestrator.types import VideoShape

HV15 = model("hunyuanvideo-1.5")
SHAPE = VideoShape(121, 480, 848)
LINEAR = ForwardCost(fixed_s=0.0, token_s=1e-4, token2_s=0.0)
COST = CostModel(label="calibrated", device="NVIDIA H200", forwards=(LINEAR,), num_branches=2, decode_s=3.0)
SECONDS = st.floats(0.01, 1000)
LOADS = st.builds(Load, SECONDS, SECONDS, SECONDS)


def sized(cost=COST, ranks=8):
    return sizing_on(Limits(max_width=ranks), HV15, SHAPE, cost)


def test_an_items_phases_add_up_to_denoising_on_one_gpu_and_decoding():
    for action in action_list(HV15, SHAPE, 50, 0.5, DvgConfig())[:4]:
        load = load_of(sized(ranks=1), action, text_s=0.5)
        assert load.sketch_s + load.heavy_s == pytest.approx(0.5 + denoise_s(HV15, action, COST))
        assert load.decode_s == 3.0
    full = load_of(sized(), full_action(HV15, SHAPE, 50), text_s=0.5)
    assert full.sketch_s == 0.5, "a plain run has no sketch"


def test_a_decode_that_nobody_measured_is_a_share_of_the_full_run():
    guess = COST.model_copy(update={"decode_s": None})
    action = full_action(HV15, SHAPE, 20)
    expected_s = DECODE_SHARE * denoise_s(HV15, full_action(HV15, SHAPE, HV15.default_steps), COST)
    assert load_of(sized(guess), action).decode_s == pytest.approx(expected_s)
    assert decode_is_measured(COST)
    assert not decode_is_measured(guess)


def test_a_mean_goes_by_the_weights():
    assert mean_load([(Load(1, 10, 0), 3), (Load(5, 50, 4), 1)]) == Load(2, 20, 1)
    with pytest.raises(ValueError, match="at least one item"):
        mean_load([])


@given(LOADS, st.builds(Pools, st.integers(1, 64), st.integers(1, 512), st.integers(1, 64)))
def test_the_slowest_pool_never_idles_and_every_pool_does_the_same_items(load, pools):
    found = steady(load, pools)
    assert found.idle[found.slowest] == 0.0
    for pool in POOLS:
        assert 0 <= found.idle[pool] <= 1
        assert pools.of(pool) * (1 - found.idle[pool]) == pytest.approx(found.items_per_s * load.of(pool))


@given(LOADS, st.integers(1, 512))
def test_the_workers_needed_keep_the_heavy_ranks_busy_and_one_fewer_would_not(load, ranks):
    pools = needed(load, ranks)
    assert steady(load, pools).idle["heavy"] <= 1e-3
    for fewer in (Pools(pools.sketch - 1, ranks, pools.decode), Pools(pools.sketch, ranks, pools.decode - 1)):
        if min(fewer.sketch, fewer.decode) > 0:
            assert steady(load, fewer).idle["heavy"] > 0


@given(LOADS, st.integers(2, 40))
def test_no_other_division_of_the_gpus_is_faster(load, num_gpus):
    def pace(sketch, decode):
        return min(sketch / load.sketch_s, decode / load.decode_s)

    sketch, decode = divide(load, num_gpus)
    assert sketch + decode == num_gpus
    assert pace(sketch, decode) == max(pace(n, num_gpus - n) for n in range(1, num_gpus))


def test_a_single_gpu_is_shared_by_its_work_and_a_pool_without_work_gets_none():
    assert divide(Load(3, 100, 1), 1) == (0.75, 0.25)
    assert divide(Load(3, 100, 0), 4) == (4, 0)
    assert divide(Load(0, 100, 2), 4) == (0, 4)
    with pytest.raises(ValueError, match="at least 1"):
        divide(Load(1, 1, 1), 0)


@given(LOADS, st.integers(2, 80), st.sampled_from([1, 2, 4, 8]))
def test_no_other_number_of_pods_is_faster(load, num_gpus, ranks):
    if num_gpus <= ranks:
        with pytest.raises(ValueError, match="no room for a pod"):
            best(load, num_gpus, ranks)
        return
    found = best(load, num_gpus, ranks)
    assert found.sketch + found.heavy + found.decode == pytest.approx(num_gpus)
    assert found.heavy % ranks == 0
    for pods in range(1, (num_gpus - 1) // ranks + 1):
        other = Pools(*_around(load, num_gpus, pods * ranks))
        assert steady(load, found).items_per_s >= steady(load, other).items_per_s * (1 - 1e-12)


def _around(load, num_gpus, heavy):
    sketch, decode = divide(load, num_gpus - heavy)
    return sketch, heavy, decode


def test_where_another_pool_decodes_it_has_that_work_and_nobody_else_does():
    load = Load(2, 20, 4)
    assert load.decoded_on("workers") == load
    assert load.decoded_on("pod") == Load(2, 24, 0)
    assert load.decoded_on("sketchers") == Load(6, 20, 0)
    assert steady(load.decoded_on("pod"), Pools(1, 12, 0)).idle == {"sketch": 0.0, "heavy": 0.0, "decode": 1.0}


def test_work_without_a_worker_is_refused():
    with pytest.raises(ValueError, match="the sketch and the decode pool"):
        steady(Load(1, 1, 1), Pools(0, 8, 0))
    with pytest.raises(ValueError, match="sets no pace"):
        needed(Load(1, 0, 1), 8)
