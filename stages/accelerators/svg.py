"""Sparse VideoGen (arXiv 2502.01776): a head attends inside frames or along time, and a few queries tell which at every step.

Both kinds keep the same pattern: a band about the diagonal, and as many keys as a frame has, the first ones, as a sink. A spatial
head has its tokens frame by frame; a temporal head position by position, so that its band runs along time, and its sink is the
first positions of all frames, as in the release, whose one mask serves all heads. A head is temporal where that gives the lower
squared error for some queries, drawn anew at every step, the same for all layers, heads and widths. Every block that holds a pair
of the band is kept whole.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.methods import Method, Request
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Grid
from stages.accelerators.attending import Here
from stages.accelerators.block_sparse import KEY_BLOCK, QUERY_BLOCK, Sparse, SparseSettings
from stages.sparse.choosing import sent
from stages.sparse.pattern import Pattern, in_order

Settled = dict[str, Any]


class SvgSettings(SparseSettings):
    """The defaults are the release's for HunyuanVideo; those of Wan are taken for Wan."""

    dense_steps: float = Field(0.1, ge=0, le=1)
    """Share of the clip's steps, the first ones, that attend to everything; 0.2 on Wan, 0.35 where a first frame is needed."""
    density: float = Field(0.25, gt=0, le=1)
    """Share of all pairs that the band is made for, the sink apart; 0.3 on Wan; 1: everything."""
    samples: int = Field(64, ge=1)
    """Queries that tell the kinds of heads apart."""


def dense_steps(geometry: ModelGeometry) -> float:
    """As the release has it for a family of models, and for its models from a first frame."""
    if geometry.family != "wan":
        return 0.1
    return 0.35 if geometry.image == "required" else 0.2


def with_usual(settings: Any, usual: Settled) -> Any:
    """``settings`` with a model's ``usual`` values where none was given."""
    return settings.model_copy(update={name: value for name, value in usual.items() if name not in settings.model_fields_set})


def resolve(settings: SvgSettings, request: Request) -> SvgSettings:
    geometry = request.geometry
    usual = {"dense_steps": dense_steps(geometry), "density": 0.3 if geometry.family == "wan" else 0.25}
    found: SvgSettings = with_usual(settings, usual)
    return found


class Svg(Sparse):
    """Of one stage."""

    def __init__(self, settings: SvgSettings, geometry: ModelGeometry) -> None:
        super().__init__(settings, geometry)
        self.settings = settings
        self._kinds: dict[int, tuple[Pattern, Pattern]] = {}
        """Spatial and temporal, of one head, by the number of text tokens: the branches of guidance may differ in it."""
        self._drawn: dict[int, Tensor] = {}
        """The tokens drawn, by step: of the last one asked for."""

    def pattern(self, q: Tensor, k: Tensor, v: Tensor, here: Here) -> Pattern | None:
        if self.settings.density == 1:
            return None
        kinds = self._of(q.shape[2] - here.num_image, here, q.device)
        rows = self._rows(here, q.device)
        spatial, temporal = errors(q[0], k[0], v[0], rows, kinds)
        orders = [kind.queries.slots[:, : here.num_image] for kind in kinds]
        order = torch.where((temporal < spatial).unsqueeze(1), orders[1], orders[0])
        keep = kinds[0].keep.expand(len(order), -1, -1)
        return Pattern(in_order(order, QUERY_BLOCK), in_order(order, KEY_BLOCK), keep)

    def _rows(self, here: Here, device: torch.device) -> Tensor:
        """The same for all layers and branches of a step."""
        step = here.now.step
        if step not in self._drawn:
            self._drawn = {step: sampled(here.num_image, self.settings.samples, step, device)}
        return self._drawn[step]

    def _of(self, num_text: int, here: Here, device: torch.device) -> tuple[Pattern, Pattern]:
        found = self._kinds.get(num_text)
        if found is None:
            width = half_width(here.num_image, num_text, self.settings.density)
            found = self._kinds[num_text] = kinds(here.tokens, width, device)
        return found


def sampled(num_tokens: int, num: int, step: int, device: torch.device) -> Tensor:
    """``num`` of the tokens, drawn for this step."""
    generator = torch.Generator().manual_seed(step)
    return sent(torch.randint(num_tokens, (num,), generator=generator), device)


def half_width(num_image: int, num_text: int, density: float) -> float:
    """Tokens to either side of the diagonal, for a band that with all pairs of text makes up ``density`` of all; 0 at least."""
    num = num_image + num_text
    return num * (1 - math.sqrt(1 - max(0.0, density - 2 * num_text / num)))


def kinds(grid: Grid, width: float, device: torch.device) -> tuple[Pattern, Pattern]:
    """Of one head, spatial and temporal: the same band and sink, in the order of frames and in that of positions."""
    frames, per_frame = grid[0], grid[1] * grid[2]
    by_frame = torch.arange(frames * per_frame, device=device)
    by_position = by_frame.view(frames, per_frame).T.reshape(-1)
    keep = band(frames * per_frame, width, per_frame, device).unsqueeze(0)
    spatial, temporal = (
        Pattern(in_order(order.unsqueeze(0), QUERY_BLOCK), in_order(order.unsqueeze(0), KEY_BLOCK), keep)
        for order in (by_frame, by_position)
    )
    return spatial, temporal


def band(num: int, width: float, sink: int, device: torch.device, sizes: tuple[int, int] = (QUERY_BLOCK, KEY_BLOCK)) -> Tensor:
    """Blocks of ``num`` tokens that hold a pair no further apart than ``width``, or a key of the first ``sink``: ``[n, m]``."""
    first_q, first_k = (torch.arange(0, num, size, device=device) for size in sizes)
    last_q, last_k = ((first + size - 1).clamp(max=num - 1) for first, size in zip((first_q, first_k), sizes, strict=True))
    apart = torch.maximum(first_k - last_q.unsqueeze(1), first_q.unsqueeze(1) - last_k)
    return (apart <= width) | (first_k < sink)


def errors(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, kinds: tuple[Pattern, Pattern]) -> tuple[Tensor, Tensor]:
    """Mean squared error ``[heads]`` of each kind, of what queries ``rows`` find among all tokens ``[heads, tokens, d]``."""
    scores = (q[:, rows] @ k.transpose(1, 2)).float() * q.shape[-1] ** -0.5
    weights = torch.softmax(scores, dim=-1)
    dense = (weights.to(v.dtype) @ v).float()

    def error(kind: Pattern) -> Tensor:
        seen = weights * kind.with_text(k.shape[1] - kind.keys.num_tokens).seen_by(rows)
        seen = seen / seen.sum(-1, keepdim=True).clamp(min=1e-30)
        return ((seen.to(v.dtype) @ v).float() - dense).square().mean((1, 2))

    return error(kinds[0]), error(kinds[1])


METHODS = {
    "svg": Method(
        "svg", "accelerator", "attention", "Sparse VideoGen, arXiv 2502.01776",
        "each head attends in a band inside frames or along time, as a few queries tell at every step", "release",
        make=Svg,
        settings=SvgSettings,
        resolve=resolve,
        kept_tensors=lambda settings, geometry: 0.0,
    )
}  # fmt: skip
