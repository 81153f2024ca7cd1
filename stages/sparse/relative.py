"""Patterns told by a frame's size, so that they hold on every grid: a diagonal, one for each pair of frames, stripes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, cast, get_args

import torch
from pydantic import AfterValidator
from torch import Tensor

from orchestrator.types import Grid
from stages.sparse.pattern import Blocks, Pattern, in_order

Kind = Literal["full", "skip", "diagonal", "multi-diagonal", "stripe"]
KINDS: tuple[Kind, ...] = get_args(Kind)
WHOLE = ("full", "skip")
"""Without a width."""


@dataclass(frozen=True)
class Relative:
    """What a head attends to.

    ``diagonal``: tokens at most ``width`` frames before or after, row by row. ``multi-diagonal``: in every frame, tokens at most
    ``width`` of a frame before or after one's own place. ``stripe``: the first frames, ``width`` of all. ``skip``: nothing.
    """

    kind: Kind
    width: float = 0.0

    def keep(self, grid: Grid, blocks: Blocks) -> Tensor:
        """Blocks of keys that hold a token which some token of a block of queries attends to, ``[num, num]``."""
        per_frame, device = grid[1] * grid[2], blocks.slots.device
        starts = torch.arange(blocks.num, device=device) * blocks.size
        ends = (starts + blocks.size).clamp(max=blocks.num_tokens) - 1
        if self.kind == "stripe":
            return (starts < max(1, round(self.width * grid[0])) * per_frame).expand(blocks.num, -1)
        frames = grid[0] if self.kind == "multi-diagonal" else 1
        first, last = starts // frames, ends // frames
        reach = int(self.width * per_frame)
        return (first - last.unsqueeze(1) <= reach) & (first.unsqueeze(1) - last <= reach)


def read(text: str) -> Relative:
    """``full``, ``skip``, or ``diagonal:0.5``. Raises ValueError for other forms."""
    kind, colon, width = text.partition(":")
    if kind not in KINDS or bool(colon) == (kind in WHOLE):
        forms = "full, skip, or diagonal, multi-diagonal or stripe with a width, as diagonal:0.5"
        raise ValueError(f"{text!r} is no pattern: write {forms}")
    try:
        number = float(width or 0)
    except ValueError as error:
        raise ValueError(f"the width of {text!r} is no number") from error
    if not 0 <= number < 1e6:
        raise ValueError(f"the width of {text!r} must be 0 or more")
    return Relative(cast("Kind", kind), number)


def _checked(text: str) -> str:
    read(text)
    return text


Name = Annotated[str, AfterValidator(_checked)]
"""A pattern as files and settings write it."""


def patterned(heads: Sequence[Relative], grid: Grid, size: int, device: torch.device) -> Pattern:
    """The pattern of some heads, none of them ``full`` or ``skip``, on a ``grid`` of tokens, in blocks of ``size``.

    Heads with many diagonals take tokens place by place, all frames of a place in a row: so their diagonals are one band.
    """
    frames, num = grid[0], grid[0] * grid[1] * grid[2]
    by_row = torch.arange(num, device=device)
    by_place = by_row.view(frames, -1).T.flatten()
    orders = [by_place if head.kind == "multi-diagonal" else by_row for head in heads]
    same = all(order is orders[0] for order in orders)
    blocks = in_order(orders[0].unsqueeze(0) if same else torch.stack(orders), size)
    masks = {head: head.keep(grid, blocks) for head in dict.fromkeys(heads)}
    return Pattern(blocks, blocks, torch.stack([masks[head] for head in heads]))
