"""The pieces of a block in plain torch, which the GPU kernels are held to, against their definitions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from stages import kernels

EPS = 1e-6


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rope_of(num_tokens: int, width: int) -> torch.Tensor:
    angle = rows(num_tokens, width // 2, seed=9)
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


@pytest.mark.parametrize("per_token", [False, True])
def test_modulated_norm_is_a_layer_norm_scaled_by_one_plus_scale_and_shifted(per_token: bool) -> None:
    h = rows(1, 5, 8)
    scale, shift = (rows(5, 8, seed=1), rows(5, 8, seed=2)) if per_token else (rows(8, seed=1), rows(8, seed=2))
    expected = F.layer_norm(h, (8,), eps=EPS) * (1 + scale) + shift
    torch.testing.assert_close(kernels.modulated_norm(h, scale, shift, EPS), expected)
    torch.testing.assert_close(kernels.modulated_norm(h, 1 + scale, shift, EPS, plus_one=False), expected)


@pytest.mark.parametrize("gated", [False, True])
def test_add_norm_gives_the_sum_and_its_norm(gated: bool) -> None:
    h, x, scale, shift = rows(1, 5, 8), rows(1, 5, 8, seed=3), rows(8, seed=1), rows(8, seed=2)
    gate = rows(8, seed=4) if gated else None
    total, seen = kernels.add_norm(h, x, gate, scale, shift, EPS)
    torch.testing.assert_close(total, h + x * (1 if gate is None else gate))
    torch.testing.assert_close(seen, kernels.modulated_norm(total, scale, shift, EPS))


def test_rotation_keeps_lengths_and_turns_by_the_angle() -> None:
    angle = torch.tensor([[0.3], [1.2]])
    x = torch.tensor([1.0, 0.0]).expand(1, 2, 1, 2)
    turned = kernels.rotated(x, torch.stack([angle.cos(), angle.sin()], dim=-1))
    torch.testing.assert_close(turned[0, :, 0], torch.cat([angle.cos(), angle.sin()], dim=1))


def test_a_complex_table_turns_as_the_real_one_does() -> None:
    x, rope = rows(2, 5, 3, 8), rope_of(5, 8)
    torch.testing.assert_close(kernels.rotated(x, torch.view_as_complex(rope)), kernels.rotated(x, rope))


@pytest.mark.parametrize("across", [False, True])
def test_queries_and_keys_have_unit_mean_square_over_a_head_or_over_all(across: bool) -> None:
    heads, width = 3, 8
    ones = torch.ones(heads * width if across else width)
    q, k = kernels.qk_rope(rows(1, 5, 3 * heads * width), ones, ones, rope_of(5, width), heads, EPS)
    for x in (q, k):
        square = x.square().mean((2, 3)) if across else x.square().mean(3)
        torch.testing.assert_close(square, torch.ones_like(square), atol=1e-4, rtol=1e-4)


def test_joint_tokens_are_image_rotated_then_text_as_it_is() -> None:
    heads, width = 2, 4
    image, text, rope = rows(1, 5, 24), rows(1, 3, 24, seed=5), rope_of(5, width)
    norms, text_norms = (rows(width, seed=6), rows(width, seed=7)), (rows(width, seed=8), rows(width, seed=10))
    q, k, v = kernels.joint_qkv(image, text, norms, text_norms, rope, heads, EPS)
    still = torch.stack([torch.ones(3, 2), torch.zeros(3, 2)], dim=-1)
    for joint, of_image, of_text in zip((q, k), kernels.qk_rope(image, *norms, rope, heads, EPS),
                                        kernels.qk_rope(text, *text_norms, still, heads, EPS), strict=True):  # fmt: skip
        torch.testing.assert_close(joint, torch.cat([of_image, of_text], dim=1))
    values = [kernels.split_qkv(x, heads)[2] for x in (image, text)]
    assert v.equal(torch.cat(values, dim=1))


def test_linear_gelu_is_the_tanh_form() -> None:
    x, weight, bias = rows(1, 5, 8), rows(6, 8, seed=1), rows(6, seed=2)
    y = x @ weight.T + bias
    expected = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
    torch.testing.assert_close(kernels.linear_gelu(x, weight, bias), expected, atol=1e-5, rtol=1e-5)
