"""Sparse-vDiT (arXiv 2506.03065): each head's pattern hardly depends on the prompt, so it is chosen once, off line.

Error of the head's output against cost decides, by a fit of ``dvg calibrate-sparse``. Patterns are told by the size of a frame,
and laid anew on every stage's grid, each once for all layers. Heads of one layer run together: those that attend to everything in
one launch, those whose patterns take the tokens row by row in another, those that take them place by place in a third.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.methods import Method, Request
from orchestrator.model_geometry import ModelGeometry
from parallel.seam import Attention
from stages.accelerators.attending import Here, Stopwatch
from stages.accelerators.block_sparse import RECALL_EVERY, Sparse, SparseSettings
from stages.accelerators.pattern_fits import SHELF, Heads
from stages.sparse.choosing import BlockSize, sent
from stages.sparse.kernel import attend, recall
from stages.sparse.pattern import Pattern
from stages.sparse.relative import WHOLE, Kind, patterned, read

ORDERS: tuple[tuple[Kind, ...], ...] = (("diagonal", "stripe"), ("multi-diagonal",))
"""Patterns that take the tokens row by row, and place by place."""


class SparseVDiTSettings(SparseSettings):
    """What is None is of the model's fit. How error and cost are weighed is ours."""

    balance: float = Field(0.1, ge=0, allow_inf_nan=False)
    """What attending to all pairs may cost, in error: a head takes the pattern of least error + balance * cost; 0: dense."""
    heads: Heads | None = None
    """By layer and head: full, skip, or diagonal, multi-diagonal or stripe with a width, as diagonal:0.5. None: of the fit."""
    block: BlockSize | None = None
    """Tokens of a block. None: of the fit, which holds for no other; 128 where heads are given."""
    fit: str | None = None
    """A file of ``dvg calibrate-sparse``; None: the model's fit."""
    dense_steps: float = Field(0.0, ge=0, le=1)
    """Share of the clip's steps, the first ones, that attend to everything."""
    dense_layers: float = Field(0.0, ge=0, le=1)
    """Share of the layers, the first ones, that always attend to everything; rounded up. A fit says so of itself."""


@dataclass(frozen=True, eq=False)
class Table:
    """Patterns that take the tokens in the same order, with text."""

    patterns: Pattern
    """A row of ``keep`` for each of them."""
    densities: Tensor
    """Of each, of pairs of tokens and of what blocks compute, ``[patterns, 2]``."""

    def of(self, rows: Tensor) -> Pattern:
        return Pattern(self.patterns.queries, self.patterns.keys, self.patterns.keep[rows])


@dataclass(frozen=True, eq=False)
class Some:
    """Heads of a layer whose patterns are of the same table."""

    table: int
    heads: Tensor
    rows: Tensor
    """Of the table, for each of the heads."""


@dataclass(frozen=True, eq=False)
class Launches:
    """Some heads of a layer, by index, in what runs together."""

    full: Tensor
    skipped: Tensor
    sparse: tuple[Some, ...]


class SparseVDiT(Sparse):
    """Of one stage. Where all heads are ``full`` (balance 0) it is dense attention, bit for bit."""

    sparse: SparseVDiTSettings

    def __init__(self, settings: SparseVDiTSettings, geometry: ModelGeometry) -> None:
        if settings.heads is None or settings.block is None:
            raise ValueError("sparse-vdit: patterns are filled in when a spec is resolved")
        super().__init__(settings, geometry)
        self.heads, self.block = settings.heads, settings.block
        names = sorted({name for layer in self.heads for name in layer} - set(WHOLE))
        parts = ([name for name in names if read(name).kind in kinds] for kinds in ORDERS)
        self._names = [part for part in parts if part]
        self._tables: dict[int, list[Table]] = {}
        """By the number of text tokens, which may be another in each branch of guidance."""
        self._launches: dict[tuple[int, int], Launches] = {}

    def pattern(self, q: Tensor, k: Tensor, v: Tensor, here: Here) -> Pattern | None:
        """No one pattern holds for all heads: :meth:`attend` runs one for each order of tokens."""
        return None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        names = self.heads[here.layer][here.heads.start : here.heads.stop]
        if self.is_dense(here) or all(name == "full" for name in names):
            return self.attend_to_all(q, k, v, here, dense)
        with Stopwatch(q.device) as choosing:
            launches = self._launched(names, here, q.device)
            tables = self._laid(here, q.shape[2] - here.num_image, q.device)
            patterns = [tables[some.table].of(some.rows) for some in launches.sparse]
        with Stopwatch(q.device) as attending:
            found = _found(q, k, v, launches, patterns, here.num_image, dense)
        whole = (len(launches.full) + len(launches.skipped) * (1 - here.num_image / q.shape[2])) / q.shape[1]
        density, executed = _densities(launches, tables, whole, q).unbind()
        here.log.add(here, density, self._recall(q, k, launches, patterns, whole, here), choosing, attending, executed)
        return found

    def _launched(self, names: Sequence[str], here: Here, device: torch.device) -> Launches:
        place = here.layer, here.heads.start
        if place not in self._launches:
            full, skipped = (_indices([head for head, name in enumerate(names) if name == kind], device) for kind in WHOLE)
            sparse = []
            for table, own in enumerate(self._names):
                if heads := [head for head, name in enumerate(names) if name in own]:
                    rows = [own.index(names[head]) for head in heads]
                    sparse.append(Some(table, _indices(heads, device), _indices(rows, device)))
            self._launches[place] = Launches(full, skipped, tuple(sparse))
        return self._launches[place]

    def _laid(self, here: Here, num_text: int, device: torch.device) -> list[Table]:
        if num_text not in self._tables:
            laid = [patterned([read(name) for name in own], here.tokens, self.block, device) for own in self._names]
            self._tables[num_text] = [_table(pattern.with_text(num_text)) for pattern in laid]
        return self._tables[num_text]

    def _recall(
        self, q: Tensor, k: Tensor, launches: Launches, patterns: Sequence[Pattern], whole: float, here: Here
    ) -> Tensor | None:
        """A mean over heads, of which ``whole`` is of those without a pattern: a skipped one keeps what text attends to."""
        if not self.sparse.measure_recall or (here.layer - here.now.step) % RECALL_EVERY != 0:
            return None
        found = q.new_full((), whole, dtype=torch.float32)
        for some, pattern in zip(launches.sparse, patterns, strict=True):
            found = found + len(some.heads) / q.shape[1] * recall(q[:, some.heads], k[:, some.heads], pattern)
        return found


def _indices(heads: Sequence[int], device: torch.device) -> Tensor:
    return sent(torch.tensor(heads, dtype=torch.long), device)


def _table(patterns: Pattern) -> Table:
    each = [Pattern(patterns.queries, patterns.keys, keep) for keep in torch.split(patterns.keep, 1)]
    return Table(patterns, torch.stack([torch.stack([pattern.density, pattern.executed]) for pattern in each]))


def _densities(launches: Launches, tables: Sequence[Table], whole: float, q: Tensor) -> Tensor:
    """Means over heads, of which ``whole`` is of those without a pattern: ``[2]``."""
    found = torch.full((2,), whole, dtype=torch.float64, device=q.device)
    return found + sum(tables[some.table].densities[some.rows].sum(0) for some in launches.sparse) / q.shape[1]


def _found(
    q: Tensor, k: Tensor, v: Tensor, launches: Launches, patterns: Sequence[Pattern], num_image: int, dense: Attention
) -> Tensor:
    out = torch.zeros_like(q)
    if len(full := launches.full):
        out[:, full] = dense(q[:, full], k[:, full], v[:, full])
    for some, pattern in zip(launches.sparse, patterns, strict=True):
        own = some.heads
        out[:, own] = attend(q[:, own], k[:, own], v[:, own], pattern)
    if len(skipped := launches.skipped) and num_image < q.shape[2]:
        out[:, skipped, num_image:] = dense(q[:, skipped, num_image:], k[:, skipped], v[:, skipped])
    return out


def resolve(settings: SparseVDiTSettings, request: Request) -> SparseVDiTSettings:
    """Raises ValueError for settings that do not go together, and where the model has no fit, naming what serves instead."""
    if settings.heads is not None:
        if unread := sorted(settings.model_fields_set & {"balance", "fit"}):
            raise ValueError(
                f"heads are given, and {' and '.join(unread)}, by which a fit would choose them: leave one or the other out"
            )
        return settings.model_copy(update={"block": settings.block or 128})
    fit = SHELF.find(request, settings.fit)
    if fit is None:
        raise ValueError(
            f"sparse-vdit: {request.geometry.name} has no fit of its heads' patterns: measure one with "
            f"{SHELF.command(request.geometry)}, or take svg or spargeattn, which need none"
        )
    if settings.block not in (None, fit.block):
        raise ValueError(
            f"block is {settings.block}: what patterns lose was measured with blocks of {fit.block}; leave it out, or measure "
            f"by {SHELF.command(request.geometry)} --block {settings.block}"
        )
    return settings.model_copy(update={"heads": fit.chosen(settings.balance), "block": fit.block, "fit": None})


def mistakes(settings: SparseVDiTSettings, request: Request) -> list[str]:
    geometry, heads = request.geometry, settings.heads or ()
    if len(heads) == geometry.num_layers and all(len(layer) == geometry.heads for layer in heads):
        return []
    sizes = " and ".join(map(str, sorted({len(layer) for layer in heads})))
    given = f"heads has {len(heads)} layers of {sizes or 0} patterns"
    return [f"{given}: {geometry.name} has {geometry.num_layers} layers of {geometry.heads} heads; leave it out to take the fit"]


METHODS = {
    "sparse-vdit": Method(
        "sparse-vdit", "accelerator", "attention", "Sparse-vDiT, arXiv 2506.03065",
        "each head's pattern (all, a diagonal, many, a stripe, none) is chosen once, by error against cost", "reconstructed",
        make=SparseVDiT,
        settings=SparseVDiTSettings,
        resolve=resolve,
        mistakes=mistakes,
        needs="a fit of the model's heads, by dvg calibrate-sparse",
        kept_tensors=lambda settings, geometry: 0.0,
    )
}  # fmt: skip
