"""Chosen, merged and reflected tokens on a GPU: keys that count more than once, compiled blocks over changing numbers of tokens,
and no waiting."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from orchestrator.methods import ACCELERATORS, find
from orchestrator.types import VideoShape
from stages.merging import match
from stages.models.base import Model
from stages.sparse.weighted import by_bias, by_scores
from tests.gpu.clips import Clip, distance, eager_and_compiled, unwaiting

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

PLAIN = Clip(VideoShape(17, 96, 96), 12)
CLIPS = {
    "ras": dataclasses.replace(PLAIN, method="ras"),
    "lipar": dataclasses.replace(PLAIN, method="lipar", settings={"share": 0.3, "warmup": 2, "refresh": 3}),
    "lipar-threshold": dataclasses.replace(PLAIN, method="lipar", settings={"warmup": 2, "refresh": 3}),
    "tome": dataclasses.replace(PLAIN, method="tome", settings={"window": (2, 2)}),
    "tome-in-place": dataclasses.replace(PLAIN, method="tome", settings={"window": (2, 2), "shuffle": False}),
    "tome-dense": dataclasses.replace(PLAIN, method="tome", settings={"window": (2, 2), "proportional": False}),
    "w2sd": dataclasses.replace(PLAIN, method="w2sd"),
}
UNWAITING = sorted(set(CLIPS) - {"lipar-threshold"})
"""A threshold's number of tokens is known to the device alone."""
CLOSE = 1e-2
"""Relative distance. Without merging, or pruning, a clip is several times as far away."""


@pytest.fixture(scope="module")
def models() -> dict[bool, Model]:
    return eager_and_compiled()


@pytest.mark.parametrize("num_heads", [12, 3, 1])
@pytest.mark.parametrize("num_tokens", [333, 2048])
def test_a_key_counts_as_often_compiled_as_by_a_bias(num_tokens: int, num_heads: int) -> None:
    q, k, v = torch.randn(3, 1, num_heads, num_tokens, 64, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    log_weights = torch.randint(1, 6, (num_tokens,), device="cuda").float().log()
    expected = by_bias(q, k, v, log_weights)
    torch.testing.assert_close(by_scores(q, k, v, log_weights), expected, atol=5e-3, rtol=5e-3)
    half = (x.bfloat16() for x in (q, k, v))
    torch.testing.assert_close(by_scores(*half, log_weights).float(), expected, atol=3e-2, rtol=3e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_are_merged_as_on_the_cpu_and_spread_again(dtype: torch.dtype) -> None:
    """Windows of 16 tokens, five loose ones after them; of a window eight tokens differ by far and eight are copies of these."""
    num, area = 40, 16
    some = torch.randn(1, num, area // 2, 64, generator=torch.Generator().manual_seed(1))
    loose = torch.randn(1, 5, 64, generator=torch.Generator().manual_seed(2))
    h = torch.cat([torch.cat([some, some], dim=2).flatten(1, 2), loose], dim=1).to(dtype)
    destinations = torch.arange(area // 2).expand(num, -1)
    cpu = match(h, destinations, 8, area)
    gpu = match(h.cuda(), destinations.cuda(), 8, area)
    assert torch.equal(gpu.rows.cpu(), cpu.rows)
    assert torch.equal(gpu.sizes.cpu(), cpu.sizes)
    assert gpu.merged(h.cuda()).dtype == dtype
    torch.testing.assert_close(gpu.merged(h.cuda()).cpu(), cpu.merged(h))
    torch.testing.assert_close(gpu.spread(gpu.merged(h.cuda())).cpu(), h, atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("planner", ["full", "dvg"])
@pytest.mark.parametrize("name", CLIPS)
def test_compiled_it_is_what_it_is_block_by_block(models: dict[bool, Model], name: str, planner: str) -> None:
    clip = dataclasses.replace(CLIPS[name], planner=planner)
    eager, compiled = (clip.run(models[is_compiled]) for is_compiled in (False, True))
    assert distance(compiled.x, eager.x) < CLOSE
    assert compiled.past.tflops == pytest.approx(eager.past.tflops, rel=1e-2 if name == "lipar-threshold" else 1e-6)
    if planner == "full":
        plain = PLAIN.run(models[False])
        assert distance(eager.x, plain.x) > 2 * CLOSE
        assert (eager.past.tflops < plain.past.tflops) == (name != "w2sd"), "reflected steps cost more"


@pytest.mark.parametrize("name", UNWAITING)
def test_the_host_never_waits_after_the_first_step(models: dict[bool, Model], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stage, which sends indices of tokens to the device."""
    clip, model = CLIPS[name], models[True]
    clip.run(model)  # compiles what is to be compiled
    turns = itertools.chain([model.denoise], itertools.repeat(unwaiting(model.denoise)))
    monkeypatch.setattr(model, "denoise", lambda *given: next(turns)(*given))
    for kind, rule in _rules(clip, model):
        monkeypatch.setattr(kind, rule, unwaiting(getattr(kind, rule)))
    assert clip.run(model).x.isfinite().all()


def test_waiting_and_copies_from_the_host_are_noticed() -> None:
    x, index = torch.ones(3, device="cuda"), torch.arange(2)
    for waiting in (x.sum().item, lambda: x[x > 0], lambda: index.to(x.device)):
        with pytest.raises(RuntimeError, match="synchronizing"):
            unwaiting(waiting)()
    assert unwaiting(lambda: x[1:] * 2)().shape == (2,)


def _rules(clip: Clip, model: Model) -> list[tuple[type[Any], str]]:
    """What is asked between forwards."""
    (make,) = clip.makers(model)
    kind = type(make())
    return [(kind, rule) for rule in ("saw", "reflect") if hasattr(kind, rule)]


def test_every_method_of_tokens_and_of_reflection_is_here() -> None:
    levers = {name: find(name, "accelerator").lever for name in ACCELERATORS}
    asked = {name for name, lever in levers.items() if lever in ("tokens", "reflection")}
    assert asked == {clip.method for clip in CLIPS.values()}
