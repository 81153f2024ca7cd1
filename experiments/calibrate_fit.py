"""From measured rows to a calibration: the curve of every number of GPUs, and how well it predicts a row it has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from scipy.optimize import nnls

from orchestrator.calibration import Calibration, DecodeRow, StepRow, points
from orchestrator.cost import ForwardCost, shared_s
from orchestrator.geometry import model as geometry
from orchestrator.manifest import commit
from orchestrator.waves import Waves, waves_of

MIN_ROWS = 4
"""Different numbers of tokens from which on one can be held out: a curve needs three."""
WORTH_A_FLOOR = 0.03
"""Relative error from which on a floor is looked for."""


@dataclass(frozen=True)
class About:
    """What was measured, where: see the fields of ``orchestrator.calibration.Calibration``."""

    model: str
    device: str
    dtype: str
    attention: str
    torch: str
    compiled: bool = False
    weights: Literal["given", "random"] = "given"
    num_threads: int | None = None
    transition_token_s: float = 0.0
    num_sms: int | None = None
    """Multiprocessors of the GPU."""
    num_text: int = 0
    """Tokens of the condition."""


def compose(rows: Sequence[StepRow], about: About, decodes: Iterable[DecodeRow] = ()) -> Calibration:
    """One file from rows of any degrees and backends. Raises ValueError without two sizes on one GPU, which all else rests on."""
    groups: dict[tuple[int, str], list[StepRow]] = {}
    for row in rows:
        groups.setdefault((row.degree, row.backend), []).append(row)
    enough = {key: group for key, group in sorted(groups.items()) if len({row.tokens for row in group}) > 1}
    if not any(degree == 1 for degree, _ in enough):
        raise ValueError("a calibration needs rows of degree 1 with at least two numbers of tokens")
    waves = waves_of(geometry(about.model), about.num_sms, about.num_text)
    fits = [fit_forward(group, waves) for group in enough.values()]
    return Calibration(
        model=about.model,
        weights=about.weights,
        device=about.device,
        dtype=about.dtype,
        attention=about.attention,
        compiled=about.compiled,
        num_threads=about.num_threads,
        torch=about.torch,
        commit=commit(),
        measured_at=datetime.now(UTC).replace(microsecond=0),
        steps=tuple(row for group in enough.values() for row in group),
        fits=tuple(fit for fit, _ in fits),
        fit_error=max(error for _, error in fits),
        held_out_error=held_out_error(enough, waves),
        transition_token_s=about.transition_token_s,
        decodes=tuple(decodes),
    )


def held_out_error(groups: Mapping[tuple[int, str], Sequence[StepRow]], waves: Waves | None) -> float | None:
    """The largest of all rows' errors, by degree and backend; None when there are too few sizes."""
    alone = next(group for (degree, _), group in groups.items() if degree == 1)
    errors = [abs(e) for (degree, _), group in groups.items() for _, e in held_out(group, alone if degree > 1 else (), waves)]
    return max(errors, default=None)


def fit_forward(rows: Sequence[StepRow], waves: Waves | None = None) -> tuple[ForwardCost, float]:
    """The curve nearest to rows of one degree, and the largest relative error that remains.

    A floor under the polynomial, the mean of the smallest grids, must bring the error down by a third: there, launches decide.
    """
    ordered = sorted(rows, key=lambda row: row.tokens)
    plain = _polynomial(ordered, waves)
    error = _error(plain, ordered)
    floors = (_with_floor(ordered, num, waves) for num in range(1, len(ordered) - 1) if error > WORTH_A_FLOOR)
    best = min(floors, key=lambda fit: _error(fit, ordered), default=plain)
    fit = best if _error(best, ordered) < error * 2 / 3 else plain
    return fit, _error(fit, ordered)


def _with_floor(rows: Sequence[StepRow], num: int, waves: Waves | None) -> ForwardCost:
    """The ``num`` smallest lie on the floor, the others on the polynomial."""
    floor_s = sum(_even_s(row, waves) for row in rows[:num]) / num
    return _polynomial(rows[num:], waves).model_copy(update={"floor_s": floor_s})


def _even_s(row: StepRow, waves: Waves | None) -> float:
    """Without what its waves add."""
    return row.median_s / (waves.stretch(row.tokens, row.degree) if waves else 1.0)


def _polynomial(rows: Sequence[StepRow], waves: Waves | None) -> ForwardCost:
    """Non-negative least squares of the relative error."""
    tokens, seconds = np.array([row.tokens for row in rows]), np.array([_even_s(row, waves) for row in rows])
    top = float(tokens.max())
    scaled = np.stack([np.ones_like(seconds), tokens / top, (tokens / top) ** 2], axis=1)
    (fixed_s, token_s, token2_s), _ = nnls(scaled / seconds[:, None], np.ones_like(seconds))
    return ForwardCost(
        degree=rows[0].degree,
        backend=rows[0].backend,
        fixed_s=float(fixed_s),
        token_s=float(token_s) / top,
        token2_s=float(token2_s) / top**2,
        waves=waves,
    )


def _error(fit: ForwardCost, rows: Sequence[StepRow]) -> float:
    return max(abs(fit.curve(row.tokens) / row.median_s - 1) for row in rows)


def held_out(rows: Sequence[StepRow], alone: Sequence[StepRow] = (), waves: Waves | None = None) -> list[tuple[StepRow, float]]:
    """Each row with the relative error of its prediction from the rows of other sizes. Rows of one degree and backend.

    ``alone`` are the rows of one GPU, where ``rows`` are of several. The smallest and the largest are never held out: what is
    planned lies between them.
    """
    sizes = sorted({row.tokens for row in rows})
    inner = [row for row in rows if sizes[0] < row.tokens < sizes[-1]] if len(sizes) >= MIN_ROWS else []
    one = bent(alone, waves) if alone else None
    return [(row, _prediction_s(bent(_others(rows, row), waves), one, row.tokens) / row.median_s - 1) for row in inner]


def _others(rows: Sequence[StepRow], held: StepRow) -> list[StepRow]:
    return [row for row in rows if row.tokens != held.tokens]


def _prediction_s(seen: ForwardCost, one: ForwardCost | None, num_tokens: int) -> float:
    return seen.seconds(num_tokens) if one is None else shared_s(one, seen, num_tokens)


def bent(rows: Sequence[StepRow], waves: Waves | None = None) -> ForwardCost:
    """The curve of rows of one degree and backend, through all of them."""
    fit, _ = fit_forward(rows, waves)
    return fit.model_copy(update={"points": points(rows)})
