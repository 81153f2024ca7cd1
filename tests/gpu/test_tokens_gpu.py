"""Chosen tokens on a GPU: keys that count more than once, compiled blocks over changing numbers of tokens, and no waiting."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import find, read_settings
from orchestrator.types import VideoShape
from stages.denoise import run_stages, start
from stages.models.base import Model, Request, load
from stages.planners import make_planner
from stages.sparse.weighted import by_bias, by_scores

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

SHAPE = VideoShape(17, 96, 96)
NUM_STEPS = 12
SETTINGS: Mapping[str, dict[str, Any]] = {
    "ras": {},
    "lipar": {"share": 0.3, "warmup": 2, "refresh": 3},
    "lipar-threshold": {"warmup": 2, "refresh": 3},
}


def run(model: Model, name: str | None, planner: str = "full") -> Tensor:
    """The latent of a guided clip of the embedded model."""
    makers = ()
    if name is not None:
        method = find(name.removesuffix("-threshold"), "accelerator")
        makers = (functools.partial(method.make, read_settings(method, SETTINGS[name]), model.geometry),)
    budget = 0.5 if planner == "dvg" else None
    plan = make_planner(planner, model.geometry, SHAPE, NUM_STEPS, budget, DvgConfig(), accelerators=makers)
    boundary = start(model, plan, model.encode(Request("a red circle moves left", SHAPE, 2.0, "blue square")), 3)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, _ = run_stages(model, plan, boundary, boundary.stage + 1)
    return boundary.x.cpu()


@pytest.fixture(scope="module")
def models() -> dict[bool, Model]:
    return {is_compiled: load("wan-mini", None, "cuda", compile_blocks=is_compiled) for is_compiled in (False, True)}


@pytest.mark.parametrize("num_heads", [12, 3, 1])
@pytest.mark.parametrize("num_tokens", [333, 2048])
def test_a_key_counts_as_often_compiled_as_by_a_bias(num_tokens: int, num_heads: int) -> None:
    q, k, v = torch.randn(3, 1, num_heads, num_tokens, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    log_weights = torch.randint(1, 6, (num_tokens,), device="cuda").float().log()
    expected = by_bias(q, k, v, log_weights)
    torch.testing.assert_close(by_scores(q, k, v, log_weights), expected, atol=5e-3, rtol=5e-3)
    half = (x.bfloat16() for x in (q, k, v))
    torch.testing.assert_close(by_scores(*half, log_weights).float(), expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("planner", ["full", "dvg"])
@pytest.mark.parametrize("name", SETTINGS)
def test_compiled_it_is_what_it_is_block_by_block(models: dict[bool, Model], name: str, planner: str) -> None:
    eager, compiled = (run(models[is_compiled], name, planner) for is_compiled in (False, True))
    torch.testing.assert_close(compiled, eager, atol=2e-2, rtol=2e-2)
    if planner == "full":
        assert not torch.allclose(eager, run(models[False], None), atol=1e-4)


@pytest.mark.parametrize("name", ["ras", "lipar"])
def test_with_a_fixed_number_of_tokens_the_host_never_waits(
    models: dict[bool, Model], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first step of a stage and its end."""
    method, model = find(name, "accelerator"), models[False]
    kind = type(method.make(read_settings(method, SETTINGS[name]), model.geometry))
    for rule in ("tokens", "saw", "attend"):
        monkeypatch.setattr(kind, rule, _unwaiting(getattr(kind, rule)))
    run(model, name)  # compiles what is to be compiled
    assert run(model, name).isfinite().all()


def _unwaiting(real: Any) -> Any:
    def call(*args: Any, **more: Any) -> Any:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return real(*args, **more)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    return call
