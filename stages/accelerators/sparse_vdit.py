"""Sparse-vDiT (arXiv 2506.03065): each head's pattern hardly depends on the prompt, so it is chosen once, off line.

Error of the head's output against cost decides, by a fit of ``dvg calibrate-sparse``. Patterns are told by the size of a frame,
and laid anew on every stage's grid. Heads of one layer run together: those that attend to everything in one launch, those with
a pattern in another.
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
from stages.sparse.choosing import BlockSize
from stages.sparse.kernel import attend, recall
from stages.sparse.pattern import Pattern
from stages.sparse.relative import WHOLE, patterned, read


class SparseVDiTSettings(SparseSettings):
    """What is None is of the model's fit. How error and cost are weighed is ours."""

    balance: float = Field(0.1, ge=0, allow_inf_nan=False)
    """What attending to all pairs may cost, in error: a head takes the pattern of least error + balance * cost; 0: dense."""
    heads: Heads | None = None
    """By layer and head: full, skip, or diagonal, multi-diagonal or stripe with a width, as diagonal:0.5. None: of the fit."""
    block: BlockSize | None = None
    """Tokens of a block. None: of the fit; 128 where heads are given."""
    fit: str | None = None
    """A file of ``dvg calibrate-sparse``; None: the model's fit."""
    dense_layers: float = Field(0.0, ge=0, le=1)
    """Share of the layers, the first ones, that always attend to everything; rounded up. A fit says so of itself."""


@dataclass(frozen=True, eq=False)
class Launches:
    """Some heads of a layer, by index, in what runs together."""

    full: Tensor
    sparse: Tensor
    skipped: Tensor
    pattern: Pattern | None
    """Of the sparse ones, with text."""


class SparseVDiT(Sparse):
    """Of one stage. Where all heads are ``full`` (balance 0) it is dense attention, bit for bit."""

    sparse: SparseVDiTSettings

    def __init__(self, settings: SparseVDiTSettings, geometry: ModelGeometry) -> None:
        if settings.heads is None or settings.block is None:
            raise ValueError("sparse-vdit: patterns are filled in when a spec is resolved")
        super().__init__(settings, geometry)
        self.heads, self.block = settings.heads, settings.block
        self._launches: dict[tuple[int, int], Launches] = {}

    def pattern(self, q: Tensor, k: Tensor, v: Tensor, here: Here) -> Pattern | None:
        return self._launched(q, here).pattern

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        if self.is_dense(here) or all(name == "full" for name in self._names(here)):
            return self.attend_to_all(q, k, v, here, dense)
        with Stopwatch(q.device) as choosing:
            launches = self._launched(q, here)
        with Stopwatch(q.device) as attending:
            found = _found(q, k, v, launches, here.num_image, dense)
        here.log.add(here, *self._kept(q, k, launches, here), choosing, attending)
        return found

    def _names(self, here: Here) -> Sequence[str]:
        return self.heads[here.layer][here.heads.start : here.heads.stop]

    def _launched(self, q: Tensor, here: Here) -> Launches:
        """The same for both branches of guidance, unless their texts differ in length."""
        place = here.layer, here.heads.start
        known = self._launches.get(place)
        if known is None or (known.pattern is not None and known.pattern.queries.num_tokens != q.shape[2]):
            known = self._launches[place] = self._laid(self._names(here), here, q)
        return known

    def _laid(self, names: Sequence[str], here: Here, q: Tensor) -> Launches:
        own = [head for head, name in enumerate(names) if name not in WHOLE]
        parts = ([head for head, name in enumerate(names) if name == kind] for kind in WHOLE)
        full, skipped, sparse = (torch.tensor(part, dtype=torch.long, device=q.device) for part in (*parts, own))
        if not own:
            return Launches(full, sparse, skipped, None)
        pattern = patterned([read(names[head]) for head in own], here.tokens, self.block, q.device)
        return Launches(full, sparse, skipped, pattern.with_text(q.shape[2] - here.num_image))

    def _kept(self, q: Tensor, k: Tensor, launches: Launches, here: Here) -> tuple[float | Tensor, Tensor | None]:
        """Density and recall, means over heads. A skipped head keeps what text attends to."""
        num, text = q.shape[1], 1 - here.num_image / q.shape[2]
        whole = (len(launches.full) + len(launches.skipped) * text) / num
        measures = self.sparse.measure_recall and (here.layer - here.now.step) % RECALL_EVERY == 0
        if launches.pattern is None:
            return whole, q.new_full((), whole) if measures else None
        share, own = len(launches.sparse) / num, launches.sparse
        kept = whole + share * recall(q[:, own], k[:, own], launches.pattern) if measures else None
        return whole + share * launches.pattern.density, kept


def _found(q: Tensor, k: Tensor, v: Tensor, launches: Launches, num_image: int, dense: Attention) -> Tensor:
    out = torch.zeros_like(q)
    if len(full := launches.full):
        out[:, full] = dense(q[:, full], k[:, full], v[:, full])
    if launches.pattern is not None:
        own = launches.sparse
        out[:, own] = attend(q[:, own], k[:, own], v[:, own], launches.pattern)
    if len(skipped := launches.skipped) and num_image < q.shape[2]:
        out[:, skipped, num_image:] = dense(q[:, skipped, num_image:], k[:, skipped], v[:, skipped])
    return out


def resolve(settings: SparseVDiTSettings, request: Request) -> SparseVDiTSettings:
    """Raises ValueError where the model has no fit, naming what serves instead."""
    if settings.heads is not None:
        return settings.model_copy(update={"block": settings.block or 128, "fit": None})
    fit = SHELF.find(request, settings.fit)
    if fit is None:
        raise ValueError(
            f"sparse-vdit: {request.geometry.name} has no fit of its heads' patterns: measure one with "
            f"{SHELF.command(request.geometry)}, or take svg or spargeattn, which need none"
        )
    known = {"heads": fit.chosen(settings.balance), "block": settings.block or fit.block, "fit": None}
    return settings.model_copy(update=known)


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
