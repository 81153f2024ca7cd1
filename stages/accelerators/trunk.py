"""The repeated blocks of a transformer in one forward, as a cache sees them: whole, some of them, or halves of one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from parallel.groups import Group

State = tuple[Tensor, ...]
"""What goes from block to block: image tokens ``[1, n, D]`` of this rank, then text tokens where a family has them."""


def ungated(index: int) -> Tensor:
    """Of blocks that add what attention finds as it is."""
    return torch.ones(())


def of_all_rows(index: int, state: State, rows: Tensor, counts: tuple[int, ...]) -> State:
    """Of blocks that attend to all tokens or none. Raises RuntimeError."""
    raise RuntimeError(f"block {index} cannot attend to {len(rows)} of its rows")


@dataclass(frozen=True, eq=False)
class Trunk:
    """One forward of one branch of guidance on this rank. ``run`` over all blocks is what ``whole`` computes, up to rounding."""

    inputs: State
    num_blocks: int
    whole: Callable[[], Tensor]
    """All blocks on the fastest path: the image tokens that come out."""
    block: Callable[[int, State], State]
    """One block by its index."""
    attend: Callable[[int, State], State]
    """Its self-attention only, after the output projection and before the gate, a tensor for each of the state's."""
    finish: Callable[[int, State, State], State]
    """The rest of it, given its input and what ``attend`` found."""
    image: Callable[[State], Tensor]
    """The image tokens of a state, wherever in the trunk it is."""
    signals: Mapping[str, Callable[[], Tensor]]
    """``input``: the modulated input of block 0 ``[1, n, D]``; ``time``: the time embedding; ``modulation``: what comes of it."""
    attention_share: float
    """Of a block's operations: what ``attend`` takes."""
    owner: Hashable
    """Tells transformers apart: another expert's residuals are of no use."""
    sequence: Group | None = None
    """The ranks that share the tokens, and must decide alike; with layers spread over ranks, all of the slice."""
    branches_apart: bool = False
    """Of guidance: whether some of the ranks that must decide alike do the other one."""
    tokens_per_frame: int = 0
    gate: Callable[[int], Tensor] = ungated
    """By a block's index: what the image's part of what ``attend`` finds is multiplied by and added, ``[D]`` or ``[n, D]``."""
    attend_on: Callable[[int, State, Tensor, tuple[int, ...]], State] = of_all_rows
    """As ``attend``, for image tokens that have the places of some ``rows`` of this rank's; ``counts`` are those of all ranks."""
    work: list[float] = field(default_factory=list)
    """Shares of the whole that were computed, noted by the methods below."""

    def compute(self) -> Tensor:
        """Everything: the image tokens after all blocks. The next call may overwrite them, so keep what is made of them only."""
        self.work.append(1.0)
        return self.whole()

    def run(self, state: State, start: int, stop: int) -> State:
        """Blocks ``start`` to ``stop``."""
        for index in range(start, stop):
            state = self.block(index, state)
        self.work.append((stop - start) / self.num_blocks)
        return state

    def run_attend(self, index: int, state: State) -> State:
        self.work.append(self.attention_share / self.num_blocks)
        return self.attend(index, state)

    def run_attend_on(self, index: int, state: State, rows: Tensor, counts: tuple[int, ...], share: float) -> State:
        """``share``: of the operations of ``run_attend``."""
        self.work.append(share * self.attention_share / self.num_blocks)
        return self.attend_on(index, state, rows, counts)

    def run_finish(self, index: int, state: State, found: State) -> State:
        self.work.append((1 - self.attention_share) / self.num_blocks)
        return self.finish(index, state, found)

    def total(self, *values: Tensor) -> list[float]:
        """Sums over all ranks that share the tokens, equal on each of them. The host waits for the device."""
        mine = torch.stack([value.double() for value in values])
        if self.sequence is None:
            return [float(value) for value in mine.tolist()]
        rows = self.sequence.gather_rows(mine.unsqueeze(0), (1,) * self.sequence.size)
        return [float(value) for value in rows.cpu().sum(dim=0).tolist()]

    def agreed(self, value: float) -> float:
        """The mean over all ranks that must decide alike, where they do different branches; others have the same one."""
        if self.sequence is None or not self.branches_apart:
            return value
        return self.total(torch.full((), value, dtype=torch.float64, device=self.inputs[0].device))[0] / self.sequence.size

    def following(self, rows: Tensor, num: int) -> tuple[Tensor, int]:
        """The ``num`` image rows, or as many as there are, that come after this rank's ``rows`` ``[1, n, D]``; and all ranks' n.

        Only the first ``num`` rows of each rank are exchanged. The host waits for the device.
        """
        if self.sequence is None:
            return rows[:, :0], rows.shape[1]
        own = torch.full((1,), rows.shape[1], device=rows.device)
        counts = self.sequence.gather_rows(own, (1,) * self.sequence.size).tolist()
        heads = [min(count, num) for count in counts]
        found = self.sequence.gather_rows(rows[0, :num], tuple(heads))
        start = sum(heads[: self.sequence.rank + 1])
        return found[start : start + num].unsqueeze(0), sum(counts)


def absolute(values: Tensor) -> Tensor:
    """The sum of what they amount to, in no fewer bits than float32: a sum in bfloat16 is off by up to 0.4 %."""
    return values.abs().sum(dtype=torch.promote_types(values.dtype, torch.float32))


def relative_change(trunk: Trunk, now: Tensor, before: Tensor) -> float:
    """``mean |now - before| / mean |before|`` over the tokens of all ranks."""
    change, size = trunk.total(absolute(now - before), absolute(before))
    return change / max(size, 1e-12)
