"""Gaussian noise as a pure function of the final-grid coordinate: DVG's equation 13 (arXiv 2605.21042).

One fixed field lives on the final grid; a stage's noise is its restriction to the stage's cells. So stages that share a
cell share its noise, and any shard of any stage can be drawn by itself.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from orchestrator.dvg_config import NoiseHash
from stages.resize import Axes, on_device

MASK_64 = (1 << 64) - 1
AXIS_FACTORS = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
CHANNEL_FACTOR = 0x85EBCA77C2B2AE63
SEED_FACTOR = 0x27D4EB2F165667C5
SECOND_DRAW = 0x9E3779B97F4A7C15
MIX_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
MANTISSA = 1 << 53


def derive_seed(item_seed: int) -> int:
    """The noise seed of an item, in [0, 2^63): one SplitMix64 step, so that near seeds give unrelated noise."""
    x = (item_seed + SECOND_DRAW) & MASK_64
    x = ((x ^ (x >> 30)) * MIX_FACTORS[0]) & MASK_64
    x = ((x ^ (x >> 27)) * MIX_FACTORS[1]) & MASK_64
    return (x ^ (x >> 31)) >> 1


def coordinate_noise(
    axes: Axes, num_channels: int, seed: int, device: torch.device | str, hash: NoiseHash = "arithmetic"
) -> Tensor:
    """Noise [1, C, T, H, W], float32, of the final-grid cells ``axes``; computed in float64 (Box-Muller, cosine branch)."""
    first = _hash(_coordinates(axes, num_channels, seed, device), hash)
    second = _hash(_coordinates(axes, num_channels, seed, device) + _signed(SECOND_DRAW), hash)
    radius = torch.sqrt(-2 * torch.log(_uniform(first)))
    return (radius * torch.cos(2 * math.pi * _uniform(second))).float().unsqueeze(0)


def _coordinates(axes: Axes, num_channels: int, seed: int, device: torch.device | str) -> Tensor:
    """One 64-bit number per cell [C, T, H, W], wrapping around: a dot product of the coordinates and odd factors."""
    on = torch.device(device)
    indices = [on_device(axis, on) for axis in (tuple(range(num_channels)), *axes)]
    base = torch.full((1, 1, 1, 1), _signed(seed * SEED_FACTOR), dtype=torch.int64, device=on)
    for dim, (index, factor) in enumerate(zip(indices, (CHANNEL_FACTOR, *AXIS_FACTORS), strict=True)):
        shape = [-1 if i == dim else 1 for i in range(4)]
        base = base + index.reshape(shape) * _signed(factor)
    return base


def _hash(x: Tensor, kind: NoiseHash) -> Tensor:
    """SplitMix64's finaliser. DVG's release shifts signed numbers, which drags the sign along (``arithmetic``)."""
    x = (x ^ _shift_right(x, 30, kind)) * _signed(MIX_FACTORS[0])
    x = (x ^ _shift_right(x, 27, kind)) * _signed(MIX_FACTORS[1])
    return x ^ _shift_right(x, 31, kind)


def _shift_right(x: Tensor, num_bits: int, kind: NoiseHash) -> Tensor:
    shifted = x >> num_bits
    return shifted if kind == "arithmetic" else shifted & ((1 << (64 - num_bits)) - 1)


def _uniform(x: Tensor) -> Tensor:
    """The low 53 bits as a float64 strictly inside (0, 1)."""
    return (((x & (MANTISSA - 1)).double() + 0.5) / MANTISSA).clamp(1e-12, 1 - 1e-12)


def _signed(x: int) -> int:
    """The same 64 bits as a signed number, which is what torch multiplies."""
    x &= MASK_64
    return x - (1 << 64) if x >> 63 else x
