"""The Triton kernels against the same pieces in plain torch and float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stages import attention, kernels
from stages.replay import Replay

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

EPS = 1e-6
CLOSE = 1e-2
"""Relative distance of bf16 results: rounding of inputs and of the output."""


def rows(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def assert_close(found: Tensor, expected: Tensor) -> None:
    distance = (found.float() - expected.float()).norm() / expected.float().norm()
    assert float(distance) < CLOSE


def rope_of(num_tokens: int, width: int) -> Tensor:
    angle = torch.randn(num_tokens, width // 2, device="cuda")
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


@pytest.mark.parametrize("dim", [96, 2048, 3072, 5120])
@pytest.mark.parametrize("batch", [1, 2])
def test_norms_and_gates_equal_plain_torch(dim: int, batch: int) -> None:
    h, x, gate, scale, shift = rows(batch, 77, dim), rows(batch, 77, dim), rows(dim), rows(dim), rows(dim).float()
    plain = [value.float() for value in (h, x, gate, scale, shift)]
    assert_close(kernels.modulated_norm(h, scale, shift, EPS), kernels.modulated_norm(plain[0], *plain[3:], EPS))
    assert_close(kernels.gated_add(h, x, gate), kernels.gated_add(*plain[:3]))
    for weight, exact in ((gate, plain[2]), (None, None)):
        found = kernels.add_norm(h, x, weight, scale, shift, EPS, plus_one=False)
        expected = kernels.add_norm(*plain[:2], exact, *plain[3:], EPS, plus_one=False)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)


@pytest.mark.parametrize(("heads", "width", "across"), [(16, 128, False), (24, 128, False), (40, 128, True), (3, 32, True)])
@pytest.mark.parametrize("batch", [1, 2])
def test_queries_and_keys_equal_plain_torch(heads: int, width: int, across: bool, batch: int) -> None:
    norms = [rows(heads * width if across else width) for _ in range(2)]
    qkv, rope = rows(batch, 77, 3 * heads * width), rope_of(77, width)
    exact = kernels.qk_rope(qkv.float(), *(norm.float() for norm in norms), rope, heads, EPS)
    for one, other in zip(kernels.qk_rope(qkv, *norms, rope, heads, EPS), exact, strict=True):
        assert_close(one, other)


@pytest.mark.parametrize("num_text", [1, 60])
@pytest.mark.parametrize("batch", [1, 2])
def test_joint_tokens_equal_plain_torch(num_text: int, batch: int) -> None:
    heads, width = 24, 128
    image, text, rope = rows(batch, 77, 3 * heads * width), rows(batch, num_text, 3 * heads * width), rope_of(77, width)
    norms = [(rows(width), rows(width)) for _ in range(2)]
    plain = [(first.float(), second.float()) for first, second in norms]
    exact = kernels.joint_qkv(image.float(), text.float(), *plain, rope, heads, EPS)
    for one, other in zip(kernels.joint_qkv(image, text, *norms, rope, heads, EPS), exact, strict=True):
        assert_close(one, other)


def test_gelu_inside_the_product_equals_plain_torch() -> None:
    x, weight, bias = rows(2, 77, 256), rows(512, 256) / 16, rows(512)
    assert_close(kernels.linear_gelu(x, weight, bias), kernels.linear_gelu(x.float(), weight.float(), bias.float()))


@pytest.mark.parametrize("name", ["auto", *attention.installed()])
@pytest.mark.parametrize("num_tokens", [300, 5000])
def test_every_installed_attention_kernel_equals_plain_torch(name: str, num_tokens: int) -> None:
    q, k, v = (rows(1, num_tokens, 16, 128).transpose(1, 2) for _ in range(3))
    try:
        found = attention.choose(name, q.device, 16, 128)(q, k, v)
    except (RuntimeError, NotImplementedError) as refusal:
        pytest.skip(f"{name} refuses this GPU: {refusal}")
    assert_close(found, F.scaled_dot_product_attention(q.float(), k.float(), v.float()))


@torch.inference_mode()
def test_a_replay_gives_what_the_function_gives_for_new_inputs_and_shapes() -> None:
    factor = torch.full((8,), 3.0, device="cuda")
    replay = Replay(lambda x, y: (x * y).relu() + 1, enabled=True)
    for num_rows in (4, 9):
        for _ in range(4):
            x = torch.randn(num_rows, 8, device="cuda")
            torch.testing.assert_close(replay((x,), (factor,)), (x * factor).relu() + 1)
