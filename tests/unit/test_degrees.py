"""On how many ranks a model may run, and what is said of the widths that it may not have."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cost import split
from orchestrator.degrees import Limits, device_limits, legal_widths, memory_gb, mistakes, require, shard_ranks
from orchestrator.geometry import MODELS, model
from parallel import backends

H200 = device_limits("NVIDIA H200")


@pytest.mark.parametrize(
    ("name", "one_branch", "two_branches"),
    [
        ("wan2.1-14b", (1, 2, 4, 8), (1, 2, 4, 8)),
        ("hunyuanvideo", (1, 2, 4, 8), (1, 2, 4, 8)),
        ("hunyuanvideo-1.5", (1, 2, 4, 8), (1, 2, 4, 8)),
        ("wan2.1-1.3b", (1, 2, 4), (1, 2, 4, 8)),
    ],
)
def test_the_ranks_of_one_forward_divide_the_heads_and_guidance_doubles_the_width(
    name: str, one_branch: tuple[int, ...], two_branches: tuple[int, ...]
) -> None:
    assert legal_widths(model(name), Limits()) == one_branch
    assert legal_widths(model(name), Limits(), num_branches=2) == two_branches
    assert legal_widths(model(name), Limits(max_width=1)) == (1,)
    assert legal_widths(model(name), Limits(max_width=3)) == (1, 2)


def test_a_refusal_prints_the_arithmetic_and_what_would_do() -> None:
    with pytest.raises(ValueError, match=r"wan2\.1-1\.3b: width 8: 12 heads .*12 / 8 = 1\.5; legal: 1, 2, 4; .* 8 = 2 x 4"):
        require(model("wan2.1-1.3b"), Limits(), asked=8)
    with pytest.raises(ValueError, match=r"width 3: .*power of two; legal: 1, 2, 4, 8$"):
        require(model("hunyuanvideo"), Limits(), num_branches=2, asked=3)
    with pytest.raises(ValueError, match="width 8: the pod has 4 ranks"):
        require(model("hunyuanvideo"), Limits(max_width=4), asked=8)
    assert require(model("wan2.1-1.3b"), Limits(), num_branches=2, asked=8) == (1, 2, 4, 8)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_fits_one_h200_at_full_size(name: str) -> None:
    geometry = model(name)
    tokens = geometry.num_tokens(geometry.latent_grid(geometry.default_shape))
    assert shard_ranks(geometry, H200, 1, tokens) == 1


def test_two_experts_of_fourteen_billion_are_sharded_where_memory_is_short() -> None:
    geometry, tokens = model("wan2.2-a14b"), 32_760
    assert shard_ranks(geometry, device_limits("NVIDIA H100 80GB HBM3"), 2, tokens) == 1
    assert shard_ranks(geometry, device_limits("NVIDIA L40S"), 2, tokens) == 2
    assert shard_ranks(geometry, device_limits("NVIDIA A100-SXM4-40GB"), 2, tokens) == 2
    assert legal_widths(geometry, device_limits("NVIDIA GeForce RTX 4090"), 2, [tokens]) == (4, 8)
    tiny = Limits(memory_gb=8)
    with pytest.raises(
        ValueError, match=r"57\.2 GB of weights / 8 ranks \+ .* GB of working memory = .* a GPU has 8 GB.*none up to 8"
    ):
        shard_ranks(geometry, tiny, 2, tokens)


def test_a_backend_that_needs_equal_shares_gets_only_grids_that_divide() -> None:
    usp = Limits(backend="usp")
    geometry = model("wan2.1-14b")
    assert legal_widths(geometry, usp, 1, [32_760]) == (1, 2, 4, 8)
    assert legal_widths(geometry, usp, 1, [32_760, 11_340]) == (1, 2, 4)
    assert "11,340 tokens / 8 ranks = 1,417.50" in "; ".join(mistakes(geometry, 8, usp, 1, [11_340]))
    assert legal_widths(model("hunyuanvideo"), usp, 1, [115_200]) == (1,), "the prompt's tokens join, and may be any number"
    assert legal_widths(model("hunyuanvideo"), Limits(), 1, [115_200]) == (1, 2, 4, 8)
    assert legal_widths(geometry, Limits(backend="usp", on_gpu=False), 1, [32_760]) == (1,)


def test_every_rank_has_a_token() -> None:
    assert legal_widths(model("wan-mini"), Limits(), 1, [5]) == (1, 2, 4)
    assert legal_widths(model("wan-mini"), Limits(), 2, [5]) == (1, 2, 4, 8)
    assert "3 tokens" in mistakes(model("wan-mini"), 4, Limits(), 1, [100, 3])[0]


@given(st.sampled_from(sorted(MODELS)), st.integers(0, 3), st.integers(1, 2), st.integers(1, 200_000))
def test_a_wider_slice_never_holds_more_and_shares_everything(name: str, power: int, branches: int, tokens: int) -> None:
    width = 2**power
    side_by_side, degree = split(width, branches)
    assert side_by_side * degree == width
    wider, narrower = memory_gb(model(name), 2 * width, branches, tokens), memory_gb(model(name), width, branches, tokens)
    assert sum(wider) <= sum(narrower) or width == 1


@given(st.sampled_from(sorted(MODELS)), st.sampled_from(backends.names()), st.integers(1, 2), st.integers(1, 100_000))
def test_one_rank_may_always_run_where_memory_allows_and_legal_widths_break_no_rule(
    name: str, backend: str, branches: int, tokens: int
) -> None:
    limits = Limits(backend=backend)
    legal = legal_widths(model(name), limits, branches, [tokens])
    assert legal[0] == 1
    assert [width for width in range(1, 10) if not mistakes(model(name), width, limits, branches, [tokens])] == list(legal)


def test_deciding_on_widths_loads_no_torch() -> None:
    code = "import sys, orchestrator.degrees; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
