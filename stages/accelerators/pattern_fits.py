"""Fits of patterns: what each head's attention would lose by each pattern, measured by ``dvg calibrate-sparse``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from stages.accelerators.shelf import Fit, Shelf
from stages.sparse.choosing import BlockSize
from stages.sparse.relative import Name

CANDIDATES: tuple[str, ...] = (
    *("full", "diagonal:0.25", "diagonal:0.5", "diagonal:1", "multi-diagonal:0.05", "multi-diagonal:0.15"),
    *("stripe:0.1", "stripe:0.3", "skip"),
)
"""What is measured."""
Share = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Heads = tuple[tuple[Name, ...], ...]
"""By layer and head: its pattern."""


class PatternFit(Fit):
    """One file."""

    block: BlockSize
    """Tokens of a block."""
    steps: tuple[int, ...] = Field(min_length=1)
    """Of each clip, those that were measured, in both branches of guidance."""
    candidates: tuple[Name, ...] = Field(min_length=1)
    costs: tuple[Share, ...]
    """Of all pairs of tokens, those that each candidate keeps: a mean over grids."""
    errors: tuple[tuple[tuple[Share, ...], ...], ...]
    """By layer, head and candidate: mean square of what its output loses, as a share of the layer's mean square."""

    @model_validator(mode="after")
    def _whole(self) -> PatternFit:
        rows = [self.costs, *(head for layer in self.errors for head in layer)]
        if {len(row) for row in rows} != {len(self.candidates)}:
            raise ValueError(f"costs and each head's errors need a number for each of {len(self.candidates)} candidates")
        return self

    def chosen(self, balance: float) -> Heads:
        """Each head's pattern of least error + ``balance`` * cost; of equal ones the one that keeps most."""

        def best(errors: tuple[float, ...]) -> str:
            rows = zip(errors, self.costs, self.candidates, strict=True)
            return min(rows, key=lambda row: (row[0] + balance * row[1], -row[1]))[2]

        return tuple(tuple(best(head) for head in layer) for layer in self.errors)

    def told(self, heads: Heads) -> tuple[float, float]:
        """Of a choice: its mean cost and its mean error."""
        places = {name: place for place, name in enumerate(self.candidates)}
        rows = [
            (self.costs[places[name]], errors[places[name]])
            for own, layer in zip(heads, self.errors, strict=True)
            for name, errors in zip(own, layer, strict=True)
        ]
        costs, losses = zip(*rows, strict=True)
        return sum(costs) / len(rows), sum(losses) / len(rows)


FOLDER_VARIABLE = "DVG_PATTERN_FITS_DIR"
SHIPPED = Path(__file__).parent / "fits" / "patterns"
SHELF = Shelf(PatternFit, SHIPPED, FOLDER_VARIABLE, "pattern-fits", "dvg calibrate-sparse")
