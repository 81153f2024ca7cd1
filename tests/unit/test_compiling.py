"""One compiled graph serves all layers and grids, and computes what the plain function does."""

from __future__ import annotations

import functools
import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages import compiling
from stages.compiling import compile_seconds, maybe_compile, num_graphs
from stages.replay import Replay


def layer(weight: Tensor, h: Tensor, rope: tuple[Tensor, Tensor], scale: float, activation: Any) -> Tensor:
    return activation(F.linear(h, weight)) * rope[0].unsqueeze(1) * scale + rope[1].unsqueeze(1)


def weights(count: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(8, 8), requires_grad=False) for _ in range(count)]


@pytest.fixture(autouse=True)
def _fresh() -> None:
    torch._dynamo.reset()


def partial_layer() -> Any:
    return functools.partial(layer, scale=2.0, activation=torch.tanh)


def test_a_function_that_is_not_to_be_compiled_is_returned_as_it_is() -> None:
    assert maybe_compile(layer, enabled=False) is layer


@torch.inference_mode()
def test_one_graph_serves_all_layers_and_grids_with_the_same_values() -> None:
    plain = partial_layer()
    compiled = maybe_compile(plain, enabled=True, backend="aot_eager")
    before = num_graphs()
    for num_tokens in (5, 9, 9, 1200, 6):
        h, rope = torch.randn(1, num_tokens, 8), (torch.randn(num_tokens), torch.randn(num_tokens))
        for weight in weights(3):
            torch.testing.assert_close(compiled(weight, h, rope), plain(weight, h, rope))
    assert num_graphs() == before + 1


@torch.inference_mode()
def test_seconds_of_compiling_are_counted_apart() -> None:
    compiled = maybe_compile(partial_layer(), enabled=True, backend="aot_eager")
    h, rope = torch.randn(1, 5, 8), (torch.randn(5), torch.randn(5))
    before = compile_seconds()
    compiled(weights(1)[0], h, rope)
    after_first = compile_seconds()
    compiled(weights(1)[0], h, rope)
    assert after_first > before
    assert compile_seconds() == after_first


def test_compiled_kernels_are_kept_in_the_users_cache_unless_the_environment_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    compiling._keep_on_disk()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == os.path.join("cache", "dvg", "inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "elsewhere")
    compiling._keep_on_disk()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "elsewhere"


def test_a_replay_on_a_cpu_just_calls_the_function() -> None:
    replay = Replay(lambda x, y: x + y, enabled=True)
    x, y = torch.randn(3), torch.randn(3)
    assert replay((x,), (y,)).equal(x + y)
