"""Caches over compiled blocks and recordings, whose buffers the next forward overwrites: the same as block by block."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import Request as Asked
from orchestrator.methods import find, read_settings
from orchestrator.types import VideoShape
from stages.denoise import run_stages, start
from stages.models.base import Model, Request, load
from stages.planners import make_planner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

NAME = "wan-mini"
SHAPE = VideoShape(17, 96, 96)
NUM_STEPS = 14
SETTINGS: Mapping[str, dict[str, Any]] = {
    "teacache": {},
    "adacache": {"codebook": "fast"},
    "taylorseer": {"interval": 3},
    "taylorseer-blocks": {"interval": 3, "mode": "blocks"},
    "delta-dit": {},
    "first-block": {"threshold": 10},
    "dbcache": {"threshold": 10, "warmup": 3},
    "pab": {},
    "fastercache": {},
}
MEASURING = ("teacache", "adacache", "first-block", "dbcache")
"""Those that look at values before they decide."""


@pytest.fixture(scope="module")
def models() -> dict[bool, Model]:
    return {is_compiled: load(NAME, None, "cuda", compile_blocks=is_compiled) for is_compiled in (False, True)}


def run(model: Model, name: str | None, planner: str = "full") -> tuple[Tensor, float]:
    """The latent of a guided clip of the embedded model, and the operations of its denoising."""
    makers = ()
    if name is not None:
        method = find(name.removesuffix("-blocks"), "accelerator")
        asked = Asked(model.geometry, SHAPE, NUM_STEPS, 2.0, planner, DvgConfig())
        settings = method.resolve(read_settings(method, SETTINGS[name]), asked)
        makers = (functools.partial(method.make, settings, model.geometry),)
    budget = 0.5 if planner == "dvg" else None
    plan = make_planner(planner, model.geometry, SHAPE, NUM_STEPS, budget, DvgConfig(), accelerators=makers)
    boundary = start(model, plan, model.encode(Request("a red circle moves left", SHAPE, 2.0, "blue square")), 3)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, _ = run_stages(model, plan, boundary, boundary.stage + 1)
    return boundary.x.cpu(), boundary.past.tflops


@pytest.mark.parametrize("planner", ["full", "dvg"])
@pytest.mark.parametrize("name", SETTINGS)
def test_compiled_and_recorded_it_is_what_it_is_block_by_block(models: dict[bool, Model], name: str, planner: str) -> None:
    plain, whole = run(models[False], None, planner)
    (eager, spent), (compiled, again) = (run(models[is_compiled], name, planner) for is_compiled in (False, True))
    torch.testing.assert_close(compiled, eager, atol=2e-2, rtol=2e-2)
    assert again == pytest.approx(spent)
    if planner == "full":
        assert spent < whole
        assert not torch.allclose(eager, plain, atol=1e-4)


@pytest.mark.parametrize("name", sorted(set(SETTINGS) - set(MEASURING)))
def test_whoever_decides_by_the_step_never_waits_for_the_gpu(
    models: dict[bool, Model], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(models[True], name)
    denoise = models[True].denoise

    def watched(*given: Any) -> Tensor:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return denoise(*given)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(models[True], "denoise", watched)
    run(models[True], name)
