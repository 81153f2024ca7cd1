"""Predicted seconds of a forward, a schedule and a decode. Pure arithmetic: planning and admission load no torch.

One forward of one branch costs ``fixed + token * n + token2 * n^2`` seconds for n video tokens: launches and weights, linear
layers and elementwise work, self-attention. The coefficients come from a measurement (``orchestrator.calibration``) or, without
one, from the roofline of :func:`uncalibrated`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.actions import full_action
from orchestrator.model_geometry import ModelGeometry
from orchestrator.schedules import forwards_per_stage
from orchestrator.types import Action, VideoShape

Label = Literal["calibrated", "uncalibrated"]

ACTIVATION_PASSES = 24
"""Times a layer reads or writes a token's hidden state in 16 bits, of which little is fused away in practice."""
LAUNCH_S = 1e-4
"""Kernel launches of one layer."""
TRANSITION_PASSES = 64
"""Times a transition (clean estimate, resize, noise) reads or writes each float32 latent cell it makes."""


class ForwardCost(BaseModel):
    """Seconds of one forward of one branch, as a polynomial of its video tokens, on ``degree`` GPUs working together."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    degree: int = Field(1, ge=1)
    fixed_s: float = Field(ge=0, allow_inf_nan=False)
    token_s: float = Field(ge=0, allow_inf_nan=False)
    """Seconds per token."""
    token2_s: float = Field(ge=0, allow_inf_nan=False)
    """Seconds per token squared."""

    def seconds(self, num_tokens: int) -> float:
        return self.fixed_s + self.token_s * num_tokens + self.token2_s * num_tokens * num_tokens


class CostModel(BaseModel):
    """What one model costs on one kind of device, for one arm: resolved once, so that every process predicts alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: Label
    device: str
    """The device's own name, for example ``NVIDIA H200``."""
    forwards: tuple[ForwardCost, ...] = Field(min_length=1)
    """One per degree; degree 1 is always among them."""
    num_branches: int = Field(1, ge=1, le=2)
    """Forwards of one step: 2 with classifier-free guidance."""
    transition_token_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Seconds of a transition per token of the grid it enters."""
    decode_s: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Seconds to decode the arm's videos; None when that was not measured."""

    def forward_s(self, num_tokens: int, degree: int = 1) -> float:
        """Seconds of one branch. Raises ValueError for a degree that was not measured."""
        for forward in self.forwards:
            if forward.degree == degree:
                return forward.seconds(num_tokens)
        known = ", ".join(str(forward.degree) for forward in self.forwards)
        raise ValueError(f"degree {degree} is not in the cost model of {self.device}; it has {known}")


def num_branches(geometry: ModelGeometry, guidance: float) -> int:
    """Forwards of one step. HunyuanVideo takes its guidance as an input of the network, so it never needs the second."""
    return 2 if guidance > 1 and geometry.family != "hunyuan" else 1


def denoise_s(geometry: ModelGeometry, action: Action, cost: CostModel) -> float:
    """Seconds of denoising on one device: the forwards that really run, every branch of them, and the transitions."""
    tokens = [geometry.num_tokens(stage.grid) for stage in action.stages]
    forwards = forwards_per_stage([stage.steps for stage in action.stages])
    steps_s = sum(num * cost.forward_s(count) for num, count in zip(forwards, tokens, strict=True))
    return cost.num_branches * steps_s + cost.transition_token_s * sum(tokens[1:])


def full_s(geometry: ModelGeometry, shape: VideoShape, num_steps: int, cost: CostModel) -> float:
    """Seconds of denoising of the plain run, every step on the full grid."""
    return denoise_s(geometry, full_action(geometry, shape, num_steps), cost)


@dataclass(frozen=True)
class Rates:
    """What a device sustains in real layers, not its data sheet: FLOP/s of linear layers and of attention, bytes/s."""

    linear: float
    attention: float
    memory: float


CPU = Rates(5e10, 2e10, 1e10)
"""A few cores in float32: rather too slow than too fast."""
GPUS = (
    ("B200", Rates(1.2e15, 1.0e15, 6.4e12)),
    ("H200", Rates(6.2e14, 5.2e14, 3.9e12)),
    ("H100", Rates(6.0e14, 5.0e14, 2.7e12)),
    ("H800", Rates(6.0e14, 5.0e14, 2.7e12)),
    ("A100", Rates(2.3e14, 1.9e14, 1.6e12)),
    ("A800", Rates(2.3e14, 1.9e14, 1.6e12)),
    ("5090", Rates(1.7e14, 1.6e14, 1.4e12)),
    ("L40S", Rates(1.8e14, 1.4e14, 7.0e11)),
    ("4090", Rates(1.4e14, 1.3e14, 8.0e11)),
)
"""By a part of the device's name. H200: about 80 % of the rates measured on one; the others scaled by their data sheets."""
UNKNOWN_GPU = GPUS[-1][1]


def rates(device: str) -> Rates:
    """Sustained rates of a device by name; those of the slowest known GPU when the name is not known."""
    if device.upper().startswith("CPU"):
        return CPU
    return next((rates for part, rates in GPUS if part in device.upper()), UNKNOWN_GPU)


def uncalibrated(geometry: ModelGeometry, device: str) -> CostModel:
    """A roofline estimate from the model's sizes and the device's rates, good to a factor of about two."""
    known = rates(device)
    hidden = geometry.heads * geometry.head_dim
    text = geometry.text_tokens
    pair_s = 4 * hidden * geometry.num_layers / known.attention
    token_s = 2 * geometry.linear_macs / known.linear + 2 * ACTIVATION_PASSES * hidden * geometry.num_layers / known.memory
    weights_s = 2 * geometry.linear_macs / known.memory
    forward = ForwardCost(
        fixed_s=LAUNCH_S * geometry.num_layers + weights_s + token_s * text + pair_s * text * text,
        token_s=token_s + 2 * pair_s * text,
        token2_s=pair_s,
    )
    cells = math.prod(geometry.patch) * geometry.latent_channels
    transition_token_s = 4 * TRANSITION_PASSES * cells / known.memory
    return CostModel(label="uncalibrated", device=device, forwards=(forward,), transition_token_s=transition_token_s)
