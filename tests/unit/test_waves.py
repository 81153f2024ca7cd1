"""Attention's waves of blocks over multiprocessors."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.calibrate_fit import fit_forward
from orchestrator.calibration import StepRow
from orchestrator.cost import ForwardCost, shared_s
from orchestrator.geometry import model
from orchestrator.waves import H200_SMS, QUERIES, Waves, waves_of

WAVES = Waves(heads=12, num_sms=H200_SMS, even_tokens=1e-9)
"""Attention alone: 11 blocks of queries of 12 heads fill all 132 multiprocessors."""
FULL = 11 * QUERIES


def test_full_waves_lose_nothing_and_the_next_token_begins_a_wave_that_is_nearly_idle() -> None:
    assert WAVES.stretch(FULL, 1) == pytest.approx(1.0)
    assert WAVES.stretch(2 * FULL, 1) == pytest.approx(1.0)
    assert WAVES.stretch(FULL + 1, 1) == pytest.approx((2 * FULL / (FULL + 1)) ** 0.5)


def test_fewer_heads_on_a_gpu_lose_more_where_they_do_not_fill_a_wave() -> None:
    assert WAVES.stretch(FULL, 2) == pytest.approx(2**0.5)
    assert WAVES.stretch(2 * FULL, 2) == pytest.approx(1.0)
    assert Waves(heads=24, num_sms=H200_SMS, even_tokens=1e-9).stretch(FULL, 2) == WAVES.stretch(FULL, 1)


@given(st.integers(1, 15), st.integers(1, 200), st.floats(1.0, 1e6), st.integers(1, 200_000), st.sampled_from([1, 2, 4, 8]))
def test_a_wave_never_makes_work_faster_nor_more_tokens_cheaper(
    share: int, num_sms: int, even: float, num_tokens: int, degree: int
) -> None:
    heads = share * degree
    waves = Waves(heads=heads, num_sms=num_sms, even_tokens=even)
    forward = ForwardCost(degree=degree, fixed_s=0.0, token_s=1e-5, token2_s=1e-9, waves=waves)
    assert waves.stretch(num_tokens, degree) >= 1.0
    assert forward.seconds(num_tokens + 1) >= forward.seconds(num_tokens) * (1 - 1e-12)


def test_attention_counts_by_its_share_of_the_multiplications() -> None:
    geometry = model("hunyuanvideo-1.5")
    found = waves_of(geometry, H200_SMS)
    assert found is not None
    layer = geometry.linear_macs / geometry.num_layers
    assert 2 * found.even_tokens**2 * geometry.heads * geometry.head_dim == pytest.approx(found.even_tokens * layer)
    assert waves_of(geometry, None) is None


def test_condition_tokens_are_queries_too_but_for_wan() -> None:
    joined = waves_of(model("hunyuanvideo"), H200_SMS, num_text=60)
    assert joined is not None
    alone = joined.model_copy(update={"num_text": 0})
    assert joined.stretch(14_081, 4) == pytest.approx(joined.stretch(14_080, 4), abs=1e-4)
    assert alone.stretch(14_081, 4) > alone.stretch(14_080, 4) + 0.01
    assert waves_of(model("wan2.1-14b"), H200_SMS, num_text=60) == waves_of(model("wan2.1-14b"), H200_SMS)


def test_rows_that_waves_explain_are_fitted_and_shared_exactly() -> None:
    one = ForwardCost(fixed_s=0.01, token_s=1e-5, token2_s=1e-9, waves=WAVES)
    counts = (1_000, 1_500, 3_000, 6_000, 12_000)
    fit, error = fit_forward([StepRow(grid=(1, 1, n), tokens=n, median_s=one.seconds(n), repeats=1) for n in counts], WAVES)
    assert error < 1e-6
    assert fit.seconds(2_000) == pytest.approx(one.seconds(2_000))
    two = ForwardCost(degree=2, fixed_s=0.0, token_s=1e-5, token2_s=0.0, waves=WAVES)
    two = two.model_copy(update={"points": tuple((n, one.share_s(n, two) + 0.002) for n in counts)})
    assert one.share_s(1_500, two) / one.seconds(1_500) == pytest.approx(WAVES.stretch(1_500, 2) / WAVES.stretch(1_500, 1) / 2)
    assert shared_s(fit, two, 2_000) == pytest.approx(one.share_s(2_000, two) + 0.002)
