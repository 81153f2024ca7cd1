"""Fits of caches: how a model's signals and outputs change from step to step, measured by ``dvg calibrate-cache``.

A file holds a polynomial per signal for TeaCache (arXiv 2411.19108) and the magnitude ratios of MagCache (arXiv 2506.09045).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

import numpy as np
from pydantic import AfterValidator, Field

from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Request
from stages.accelerators.shelf import Fit, Row, Shelf

Signal = Literal["input", "time", "modulation"]
SIGNALS: tuple[Signal, ...] = get_args(Signal)
FOLDER_VARIABLE = "DVG_CACHE_FITS_DIR"
DEGREE = 4


def _rising(span: tuple[float, float]) -> tuple[float, float]:
    if span[0] > span[1]:
        raise ValueError(f"{list(span)} goes from more to less; write the smaller change first")
    return span


def _alike(ratios: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
    lengths = [len(row) for row in ratios]
    if len(set(lengths)) != 1:
        raise ValueError(f"the branches have {' and '.join(map(str, lengths))} ratios; each needs one for every step")
    return ratios


Coefficient = Annotated[float, Field(allow_inf_nan=False)]
Coefficients = Annotated[tuple[Coefficient, ...], Field(min_length=1)]
"""Of a polynomial, the highest power first."""
Change = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Span = Annotated[tuple[Change, Change], AfterValidator(_rising)]
"""The least and the most of some changes."""
Ratio = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Ratios = Annotated[
    tuple[Annotated[tuple[Ratio, ...], Field(min_length=2)], ...], Field(min_length=1, max_length=2), AfterValidator(_alike)
]
"""By branch of guidance, one or both: a ratio for each step."""


class SignalFit(Row):
    """The output residual's relative change as a polynomial of the signal's."""

    coefficients: Coefficients
    """Of the highest power first."""
    span: Span
    """Changes of the signal that were seen. Outside, the polynomial means nothing: the nearest of the two counts."""
    error: float = Field(ge=0, allow_inf_nan=False)
    """Root mean square of what is left, as a share of the mean change."""


class CacheFit(Fit):
    """One file."""

    num_steps: int = Field(ge=3)
    warmup: int = Field(ge=1)
    """Steps at the beginning that the polynomials do not tell: outputs change far more there than any signal does."""
    signals: dict[Signal, SignalFit]
    ratios: Ratios
    """By branch of guidance: mean over tokens of the residual's norm as a share of the step's before, 1 for the first step."""

    @property
    def best(self) -> Signal:
        """The signal that tells the change best."""
        return min(self.signals, key=lambda signal: self.signals[signal].error)


def warmup_of(num_steps: int) -> int:
    """Steps at the beginning that a fit leaves out, and TeaCache by it computes: 5 of 30."""
    return max(1, num_steps // 6)


def fit_signal(changes: Sequence[float], outputs: Sequence[float]) -> SignalFit:
    """Least squares over all steps and clips. Raises ValueError for fewer different changes than coefficients."""
    x, y = np.asarray(changes, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    if len(np.unique(x)) <= DEGREE:
        raise ValueError(f"{len(np.unique(x))} different changes of a signal are too few for a polynomial of degree {DEGREE}")
    series = np.polynomial.Polynomial.fit(x, y, DEGREE).convert()  # fitted on a scaled axis, which is well conditioned
    left = float(np.sqrt(np.mean((series(x) - y) ** 2)))
    falling = tuple(float(value) for value in reversed(np.pad(series.coef, (0, DEGREE + 1 - len(series.coef)))))
    return SignalFit(coefficients=falling, span=(float(x.min()), float(x.max())), error=left / float(y.mean()))


def stretched(ratios: tuple[tuple[float, ...], ...], num_steps: int) -> tuple[tuple[float, ...], ...]:
    """Ratios of clips of another number of steps: of the step nearest in time, to the power of the steps that it spans."""
    power = (len(ratios[0]) - 1) / max(num_steps - 1, 1)
    if power == 1:
        return ratios
    nearest = [round(step * power) for step in range(num_steps)]
    return tuple(tuple(row[index] ** power for index in nearest) for row in ratios)


SHELF = Shelf(CacheFit, Path(__file__).parent / "fits", FOLDER_VARIABLE, "cache-fits", "dvg calibrate-cache")


def user_folder() -> Path:
    """Where ``dvg calibrate-cache`` writes: DVG_CACHE_FITS_DIR if set, otherwise in the user's cache."""
    return SHELF.user_folder


def load(path: Path) -> CacheFit:
    """Raises ValueError, naming the file and what to do, when it is missing or no fit."""
    return SHELF.load(path)


def find(request: Request, file: str | None = None) -> CacheFit | None:
    """As :meth:`Shelf.find`."""
    return SHELF.find(request, file)


def command(geometry: ModelGeometry) -> str:
    """What measures a fit of this model."""
    return SHELF.command(geometry)
