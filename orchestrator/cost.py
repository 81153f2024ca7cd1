"""Predicted seconds of a forward, a schedule and a decode. Pure arithmetic: planning and admission load no torch.

One forward of one branch costs ``fixed + token * n + token2 * n^2`` seconds for n video tokens: launches and weights, linear
layers and elementwise work, self-attention, stretched by its waves (``orchestrator.waves``). The coefficients are measured
(``orchestrator.calibration``), the curve then bent to go through the points, or those of :func:`uncalibrated`, a roofline. Ranks
that were not measured are predicted from one: compute is shared, launches are not, and tokens are exchanged in every layer.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.actions import full_action
from orchestrator.model_geometry import ModelGeometry
from orchestrator.schedules import forwards_per_stage
from orchestrator.types import Action, VideoShape
from orchestrator.waves import Waves

Label = Literal["calibrated", "uncalibrated"]

ACTIVATION_PASSES = 24
"""Times a layer reads or writes a token's hidden state in 16 bits, of which little is fused away in practice."""
LAUNCH_S = 1e-4
"""Kernel launches of one layer."""
TRANSITION_PASSES = 64
"""Times a transition (clean estimate, resize, noise) reads or writes each float32 latent cell it makes."""


class ForwardCost(BaseModel):
    """Seconds of one forward of one branch on ``degree`` GPUs that share its tokens: a polynomial, bent through measurements."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    degree: int = Field(1, ge=1)
    backend: str = "native"
    """How they exchange tokens."""
    fixed_s: float = Field(ge=0, allow_inf_nan=False)
    token_s: float = Field(ge=0, allow_inf_nan=False)
    """Seconds per token."""
    token2_s: float = Field(ge=0, allow_inf_nan=False)
    """Seconds per token squared."""
    floor_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Never less: what launching the work takes, however little it is."""
    points: tuple[tuple[int, float], ...] = ()
    """Measured (tokens, seconds), fewest tokens first, each number of tokens once."""
    waves: Waves | None = None
    predicted: bool = False
    """Not measured on so many GPUs."""

    def seconds(self, num_tokens: int) -> float:
        return self.curve(num_tokens) * self._bend(num_tokens)

    def curve(self, num_tokens: int) -> float:
        """The polynomial and its floor, stretched."""
        even_s = max(self.floor_s, self.fixed_s + self.token_s * num_tokens + self.token2_s * num_tokens * num_tokens)
        return even_s * self.stretch(num_tokens)

    def stretch(self, num_tokens: int) -> float:
        return self.waves.stretch(num_tokens, self.degree) if self.waves else 1.0

    def share_s(self, num_tokens: int, several: ForwardCost) -> float:
        """Of this, on one GPU, the part of each of ``several``, in their waves."""
        return self.seconds(num_tokens) / several.degree * several.stretch(num_tokens) / self.stretch(num_tokens)

    def _bend(self, num_tokens: int) -> float:
        """Measured over the curve, between neighbours by the logarithms of both; beyond the ends as at them."""
        if not self.points:
            return 1.0
        after = bisect.bisect_left(self.points, num_tokens, key=lambda point: point[0])
        ends = self.points[max(after - 1, 0)], self.points[min(after, len(self.points) - 1)]
        (low, low_s), (high, high_s) = ends
        bends = math.log(low_s / self.curve(low)), math.log(high_s / self.curve(high))
        weight = math.log(num_tokens / low) / math.log(high / low) if low < num_tokens < high else float(num_tokens >= high)
        return math.exp(bends[0] + weight * (bends[1] - bends[0]))


def shared_s(one: ForwardCost, several: ForwardCost, num_tokens: int) -> float:
    """Seconds of ``several`` GPUs: their share of what ``one`` takes, and what sharing adds to it.

    What it adds was measured at ``several.points`` and changes little from one to the next, whichever kernels one GPU uses there.
    """
    if several.degree == 1 or not several.points:
        return several.seconds(num_tokens)
    added = [(tokens, seconds - one.share_s(tokens, several)) for tokens, seconds in several.points]
    return one.share_s(num_tokens, several) + _between(added, num_tokens)


def _between(points: Sequence[tuple[int, float]], num_tokens: int) -> float:
    """On the line between neighbours, as latency and bytes are; below the first as there, above the last in proportion."""
    (first, first_s), (last, last_s) = points[0], points[-1]
    if num_tokens <= first:
        return first_s
    if num_tokens >= last:
        return last_s * num_tokens / last
    after = bisect.bisect_right(points, num_tokens, key=lambda point: point[0])
    (low, low_s), (high, high_s) = points[after - 1 : after + 1]
    return low_s + (high_s - low_s) * (num_tokens - low) / (high - low)


class CostModel(BaseModel):
    """What one model costs on one kind of device, for one arm: resolved once, so that every process predicts alike."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    label: Label
    device: str
    """The device's own name, for example ``NVIDIA H200``."""
    forwards: tuple[ForwardCost, ...] = Field(min_length=1)
    """One per degree and backend; degree 1 is always among them."""
    num_branches: int = Field(1, ge=1, le=2)
    """Forwards of one step: 2 with classifier-free guidance."""
    transition_token_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Seconds of a transition per token of the grid it enters."""
    decode_s: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Seconds to decode the arm's videos on one device; None when that was not measured."""
    split_decode_s: tuple[tuple[int, float], ...] = ()
    """(Ranks, seconds) to decode them on several."""

    @property
    def alone(self) -> CostModel:
        """What it costs on one device."""
        return self.model_copy(update={"forwards": tuple(f for f in self.forwards if f.degree == 1), "split_decode_s": ()})

    def forward_of(self, degree: int) -> ForwardCost:
        """Raises ValueError for a degree that was not measured."""
        for forward in self.forwards:
            if forward.degree == degree:
                return forward
        known = ", ".join(str(forward.degree) for forward in self.forwards)
        raise ValueError(f"degree {degree} is not in the cost model of {self.device}; it has {known}")

    def forward_s(self, num_tokens: int, degree: int = 1) -> float:
        """Seconds of one branch on ranks that share its tokens. Raises ValueError for a degree that was not measured."""
        return shared_s(self.forward_of(1), self.forward_of(degree), num_tokens)

    def step_s(self, num_tokens: int, width: int = 1) -> float:
        """Seconds of one step, every branch of it, on a slice; raises as :meth:`forward_s`.

        Two branches run side by side on half of the ranks each, and only their velocities are exchanged.
        """
        side_by_side, degree = split(width, self.num_branches)
        return self.num_branches / side_by_side * self.forward_s(num_tokens, degree)

    def is_predicted(self, width: int) -> bool:
        """Whether seconds on so many ranks rest on no measurement of them."""
        return self.label == "uncalibrated" or self.forward_of(split(width, self.num_branches)[1]).predicted


def split(width: int, num_branches: int) -> tuple[int, int]:
    """Branches of guidance that a slice forwards side by side, and the ranks of each."""
    side_by_side = num_branches if width > 1 else 1
    return side_by_side, width // side_by_side


def num_branches(geometry: ModelGeometry, guidance: float) -> int:
    """Forwards of one step. HunyuanVideo takes its guidance as an input of the network, so it never needs the second."""
    return 2 if guidance > 1 and geometry.family != "hunyuan" else 1


def denoise_s(geometry: ModelGeometry, action: Action, cost: CostModel) -> float:
    """Seconds of denoising on one device: the forwards that really run, every branch of them, and the transitions."""
    forwards = forwards_per_stage([stage.steps for stage in action.stages])
    pairs = zip(forwards, action.stages, strict=True)
    steps_s = sum(num * stage.passes * stage.work * cost.forward_s(geometry.num_tokens(stage.seen)) for num, stage in pairs)
    return cost.num_branches * steps_s + cost.transition_token_s * sum(geometry.num_tokens(s.grid) for s in action.stages[1:])


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


@dataclass(frozen=True)
class Link:
    """What every GPU of a host can send all others at once: bytes/s, and seconds before the first byte."""

    bytes_per_s: float
    latency_s: float


NVLINK = Link(3.0e11, 4e-5)
"""H200: 8 MB in 61 and 64 MB in 228 microseconds."""
PCIE = Link(1.5e10, 6e-5)
LOOPBACK = Link(1.0e9, 1e-3)
WITHOUT_NVLINK = ("5090", "4090", "L40S")


def link(device: str) -> Link:
    """Between devices of this name on one host."""
    if device.upper().startswith("CPU"):
        return LOOPBACK
    return PCIE if any(part in device.upper() for part in WITHOUT_NVLINK) else NVLINK


def with_degrees(
    geometry: ModelGeometry, cost: CostModel, degrees: Iterable[int], backend: str = "native", instead: str | None = None
) -> CostModel:
    """The same for ``backend`` alone. Degrees that were not measured with it, or ``instead``, are predicted.

    From fewer GPUs where these were measured, otherwise from one.
    """
    one = cost.forward_of(1)
    measured = {forward.degree: forward for name in (instead, backend) for forward in cost.forwards if forward.backend == name}
    forwards = [
        measured.get(degree) or _widened(one, measured, degree) or _predicted(geometry, one, degree, backend, cost.device)
        for degree in degrees
        if degree > 1
    ]
    return cost.model_copy(update={"forwards": (one, *forwards)})


def _widened(one: ForwardCost, measured: Mapping[int, ForwardCost], degree: int) -> ForwardCost | None:
    """From the most GPUs that were measured, if fewer; None without.

    Of what sharing adds, the part of the smallest grid is latency and grows with each doubling; the rest goes by the bytes that a
    GPU sends, (d - 1) / d^2 of them all.
    """
    fewer = max((other for other, forward in measured.items() if 1 < other < degree and forward.points), default=None)
    if fewer is None:
        return None
    seen = measured[fewer]
    added = [(tokens, seconds - one.seconds(tokens) / fewer) for tokens, seconds in seen.points]
    latency_s = added[0][1] * math.log(degree) / math.log(fewer)
    sent = (degree - 1) / degree**2 * fewer**2 / (fewer - 1)
    bent = tuple((n, one.seconds(n) / degree + latency_s + max(0.0, extra_s - added[0][1]) * sent) for n, extra_s in added)
    return seen.model_copy(update={"degree": degree, "points": bent, "predicted": True})


def _predicted(geometry: ModelGeometry, one: ForwardCost, degree: int, backend: str, device: str) -> ForwardCost:
    """Every layer sends queries, keys, values and what attention found, in two exchanges, all but the share that stays."""
    between, hidden = link(device), geometry.heads * geometry.head_dim
    bytes_per_token = 4 * 2 * hidden * (degree - 1) / degree**2
    forward = ForwardCost(
        degree=degree,
        backend=backend,
        fixed_s=one.fixed_s + geometry.num_layers * 2 * between.latency_s,
        token_s=one.token_s / degree + geometry.num_layers * bytes_per_token / between.bytes_per_s,
        token2_s=one.token2_s / degree,
        waves=one.waves,
        predicted=True,
    )
    bent = tuple((tokens, seconds / one.curve(tokens) * forward.curve(tokens)) for tokens, seconds in one.points)
    return forward.model_copy(update={"points": bent})


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
