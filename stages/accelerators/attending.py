"""What takes the place of dense attention for a stage: it sees a layer's queries, keys and values, of some heads but all tokens.

A rank has all tokens of some heads then, so whatever decides by head decides alike at every width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from orchestrator.types import Attended, Grid
from parallel.groups import Group
from parallel.seam import Attention
from stages.compiling import compile_seconds

if TYPE_CHECKING:
    from stages.accelerators.base import Now


@dataclass(frozen=True)
class Here:
    """One layer's attention in one forward, for some of its heads."""

    now: Now
    layer: int
    """From 0, in the order in which a forward comes by them."""
    num_layers: int
    heads: range
    """Of the model's, those that are here."""
    tokens: Grid
    """Image tokens along (time, height, width); they come row by row, frame by frame, and text tokens after them."""
    num_image: int
    """Of the tokens here: fewer than the grid has where a method leaves some out."""
    log: Log
    sequence: Group | None = None
    """The ranks that share the tokens, each of which has as many other heads; None: all are here."""


@runtime_checkable
class Attending(Protocol):
    """Used for one stage of one clip by one expert. Keeps what it keeps by branch, layer and heads.

    A layer's heads come in chunks, of the same heads each time as long as the number of tokens stays what it is
    (``heads.start`` tells them apart then): with other numbers of tokens an exchange may cut them otherwise.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        """``[1, heads, tokens, head_dim]`` to the same. ``dense`` is the kernel that would have run.

        It tells ``here.log`` what it kept, or nothing: then it counts as dense. To decide alike on all ranks it goes by the step,
        the layer, and what each head shows for itself.
        """
        ...


class Stopwatch:
    """Seconds of a device between entering and leaving, all times together, read later: nothing waits meanwhile.

    What the host compiled in between is left out.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._entered: Any = None
        self._spans: list[tuple[Any, Any, float]] = []
        """Began, ended, seconds of compiling."""

    def __enter__(self) -> Stopwatch:
        self._entered = self._now(), compile_seconds()
        return self

    def __exit__(self, *problem: object) -> None:
        began, compiled_s = self._entered
        self._spans.append((began, self._now(), compile_seconds() - compiled_s))

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        """Waits for the device."""
        return sum((max(0.0, self._between(began, ended) - compiled_s) for began, ended, compiled_s in self._spans), 0.0)

    def _between(self, began: Any, ended: Any) -> float:
        if not self._cuda:
            return float(ended - began)
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1e3


@dataclass(frozen=True)
class _Call:
    step: int
    heads: range
    density: float | Tensor
    executed: float | Tensor
    recall: Tensor | None
    choosing: Stopwatch | None
    attending: Stopwatch | None


@dataclass
class Log:
    """What attention kept in one stage, call by call. Numbers stay on the device until :meth:`settle`."""

    num_layers: int
    calls: list[_Call] = field(default_factory=list)

    def add(
        self,
        here: Here,
        density: float | Tensor,
        recall: Tensor | None = None,
        choosing: Stopwatch | None = None,
        attending: Stopwatch | None = None,
        executed: float | Tensor | None = None,
    ) -> None:
        """``density``: pairs of tokens attended, of all; above 1 where some are attended twice.

        ``recall``: of the weights that dense attention gives, what falls on the pairs kept, a mean over some queries.
        ``executed``: operations, of dense attention's, with those of choosing where they are many; None: as ``density``.
        """
        done = density if executed is None else executed
        self.calls.append(_Call(here.now.step, here.heads, density, done, recall, choosing, attending))

    def settle(self, group: Group | None, steps: Iterable[int] | None = None) -> tuple[float, tuple[Attended, ...]]:
        """The share of all attention that was left out, summed over a rank's forwards, and the means of every step.

        Over the heads, and the branches of guidance, of all ranks of ``group``, which call this alike for the same ``steps``, as
        not all may have attended in each of them. Waits for the device.
        """
        steps = sorted({call.step for call in self.calls}) if steps is None else list(steps)
        table = _shared(self._table(steps), group)
        found = (self._step(step, row) for step, row in zip(steps, table.tolist(), strict=True) if row[0] > 0)
        return float(table[:, -1].sum()), tuple(found)

    def _table(self, steps: Sequence[int]) -> Tensor:
        """Of each step, summed: share of a forward's attention, and that of it that was kept, measured, recalled, saved."""
        table = torch.zeros(len(steps), 5, dtype=torch.float64)
        if not self.calls:
            return table
        share, density, recall, executed = self._rows().unbind(1)
        columns = [share, share * density, share * ~recall.isnan(), share * recall.nan_to_num(0), share * (1 - executed)]
        places = torch.tensor([steps.index(call.step) for call in self.calls])
        return table.index_add_(0, places, torch.stack(columns, dim=1))

    def _rows(self) -> Tensor:
        """Of each call: share of a forward's attention, density, recall (nan: not measured), executed, in float64 on the CPU."""
        heads = [call.heads for call in self.calls]
        num_heads = max(some.stop for some in heads) - min(some.start for some in heads)
        shares = [len(some) / (num_heads * self.num_layers) for some in heads]
        return torch.stack(
            [
                torch.tensor(shares, dtype=torch.float64),
                _values([call.density for call in self.calls]),
                _values([float("nan") if call.recall is None else call.recall for call in self.calls]),
                _values([call.executed for call in self.calls]),
            ],
            dim=1,
        )

    def _step(self, step: int, row: Sequence[float]) -> Attended:
        share, kept, measured, recalled, _ = row
        calls = [call for call in self.calls if call.step == step]
        return Attended(
            step,
            1 - kept / share,
            recalled / measured if measured else None,
            sum(call.choosing.seconds() for call in calls if call.choosing is not None),
            sum(call.attending.seconds() for call in calls if call.attending is not None),
        )


def _values(values: Sequence[float | Tensor]) -> Tensor:
    """As float64 on the CPU, with one wait for all that is on a device."""
    tensors = [value.double() for value in values if isinstance(value, Tensor)]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return torch.tensor([next(read) if isinstance(value, Tensor) else value for value in values], dtype=torch.float64)


def _shared(rows: Tensor, group: Group | None) -> Tensor:
    """The mean over ranks of ``rows``, equal on all of them."""
    if group is None:
        return rows
    every = group.gather_rows(rows.to(group.device).unsqueeze(0), (1,) * group.size)
    return every.cpu().mean(dim=0)


class ByLayer:
    """An attending method as a seam calls it: it knows which layer comes next."""

    def __init__(
        self, attending: Callable[[], Attending | None], here: Callable[[range, int, int], Here], dense: Attention
    ) -> None:
        self._attending, self._here, self._dense = attending, here, dense
        self._layer, self._next = 0, 0

    def go_to(self, layer: int) -> None:
        """The next attention is of this layer; those after it follow in turn."""
        self._next = layer

    def begin(self) -> None:
        self._layer, self._next = self._next, self._next + 1

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: range, num_image: int) -> Tensor:
        attending = self._attending()
        if attending is None:
            return self._dense(q, k, v)
        return attending.attend(q, k, v, self._here(heads, num_image, self._layer), self._dense)
