"""The embedded model's transformer and its batched forward for training: diffusers' weights, compiled block by block."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor

from experiments.embedded.text import TEXT_DIM
from experiments.embedded.vae import LATENT_CHANNELS

HEADS, HEAD_DIM, NUM_LAYERS, FFN_DIM = 8, 32, 7, 512
Block = Callable[[Any, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def build(num_layers: int = NUM_LAYERS) -> WanTransformer3DModel:
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=FFN_DIM,
        num_layers=num_layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )


def run_block(block: Any, h: Tensor, text: Tensor, bias: Tensor, time: Tensor, first: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """One ``WanTransformerBlock``, with a bias on cross-attention's logits. ``h [B, N, D]``.

    ``time [B, 2, 6, D]`` holds the first frame's and the others' noise level, ``first [N, 1]`` which tokens are its.
    """
    shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (
        torch.where(first, level[:, 0], level[:, 1]) for level in (block.scale_shift_table + time.float()).chunk(6, 2)
    )
    inner = (block.norm1(h.float()) * (1 + scale) + shift).to(h.dtype)
    h = (h.float() + _attend(block.attn1, inner, inner, None, (cos, sin)) * gate).to(h.dtype)
    h = h + _attend(block.attn2, block.norm2(h.float()).to(h.dtype), text, bias, None)
    inner = (block.norm3(h.float()) * (1 + ffn_scale) + ffn_shift).to(h.dtype)
    return (h.float() + block.ffn(inner).float() * ffn_gate).to(h.dtype)


def _attend(attn: Any, h: Tensor, rows: Tensor, bias: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
    q, k, v = attn.norm_q(attn.to_q(h)), attn.norm_k(attn.to_k(rows)), attn.to_v(rows)
    q, k, v = (part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in (q, k, v))
    if rope is not None:
        q, k = _rotate(q, *rope), _rotate(k, *rope)
    out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=None if bias is None else bias.to(v.dtype))
    return attn.to_out[0](out.transpose(1, 2).flatten(2))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on adjacent pairs: ``x [B, heads, N, d]``, ``cos`` and ``sin [N, d / 2]``."""
    even, odd = x.float().unflatten(3, (-1, 2)).unbind(4)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), 4).flatten(3)


def velocity(
    model: WanTransformer3DModel,
    x: Tensor,
    sigma: Tensor,
    text: Tensor,
    bias: Tensor,
    block: Block = run_block,
    first_sigma: Tensor | None = None,
) -> Tensor:
    """Velocity like ``x [B, C, T, H, W]`` at noise levels ``sigma [B]``; equal to the stock forward with 512 text rows.

    ``first_sigma [B]`` is the level of the first latent frame, 0 where it is a given image; None: as the others'.
    """
    frames, height, width = x.shape[2], x.shape[3] // 2, x.shape[4] // 2
    cos, sin = model.rope(x)
    cos, sin = cos[0, :, 0, 0::2].contiguous(), sin[0, :, 0, 1::2].contiguous()
    levels = torch.stack([sigma if first_sigma is None else first_sigma, sigma], 1)
    temb, time, text, _ = model.condition_embedder(levels.flatten() * 1000, text, None)
    temb, time = temb.view(len(x), 2, 1, -1), time.view(len(x), 2, 6, -1)
    first = (torch.arange(frames * height * width, device=x.device) < height * width)[:, None]
    h = model.patch_embedding(x).flatten(2).transpose(1, 2)
    for layer in model.blocks:
        h = block(layer, h, text, bias, time, first, cos, sin)
    shift, scale = (torch.where(first, p[:, 0], p[:, 1]) for p in (model.scale_shift_table + temb).chunk(2, 2))
    h = (model.norm_out(h.float()) * (1 + scale) + shift).to(h.dtype)
    out = model.proj_out(h).unflatten(1, (frames, height, width)).unflatten(4, (2, 2, -1))
    return out.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
