"""What a forward computes, in floating-point operations: the measure of a method's work that no machine bends."""

from __future__ import annotations

from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Grid


def forward_tflops(geometry: ModelGeometry, grid: Grid) -> float:
    """10^12 operations of one branch's forward on a latent grid: linear layers and attention, a multiply-add being two.

    Text tokens that join the video's count at their most. Norms, rotations and embeddings are left out: under 1 %.
    """
    return tokens_tflops(geometry, geometry.num_tokens(grid))


def tokens_tflops(geometry: ModelGeometry, num_tokens: int, num_seen: int | None = None) -> float:
    """As :func:`forward_tflops`, of any number of the video's tokens, each of which sees ``num_seen``; None: one another."""
    tokens = num_tokens + geometry.text_tokens
    seen = tokens if num_seen is None else num_seen + geometry.text_tokens
    return (linear_flops(geometry) * tokens + attention_flops(geometry, tokens, seen)) / 1e12


def attention_share(geometry: ModelGeometry, grid: Grid) -> float:
    """Of one forward: self-attention's products of queries, keys and values, without its linear layers."""
    return attention_flops(geometry, geometry.num_tokens(grid) + geometry.text_tokens) / 1e12 / forward_tflops(geometry, grid)


def linear_flops(geometry: ModelGeometry) -> float:
    """Of one token in all linear layers."""
    return 2.0 * geometry.linear_macs


def attention_flops(geometry: ModelGeometry, tokens: int, seen: int | None = None) -> float:
    """Of all layers, every token seeing ``seen``, or all: one product for the weights, one for what they find."""
    return 4.0 * geometry.heads * geometry.head_dim * geometry.num_layers * tokens * (tokens if seen is None else seen)
