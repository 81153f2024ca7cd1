"""Caches over compiled blocks and recordings, whose buffers the next forward overwrites: the same as block by block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.types import VideoShape
from stages.models.base import Model
from tests.gpu.clips import Clip, eager_and_compiled, unwaiting

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

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
    return eager_and_compiled()


def run(model: Model, name: str | None, planner: str = "full") -> tuple[Tensor, float]:
    """The latent of a guided clip of the embedded model, and the operations of its denoising."""
    method, settings = (None, {}) if name is None else (name.removesuffix("-blocks"), SETTINGS[name])
    found = Clip(SHAPE, NUM_STEPS, method, settings, planner).run(model)
    return found.x.cpu(), found.past.tflops


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
    monkeypatch.setattr(models[True], "denoise", unwaiting(models[True].denoise))
    run(models[True], name)
