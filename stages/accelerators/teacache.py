"""TeaCache (arXiv 2411.19108): a polynomial of how far the blocks' input moved says when what they add is computed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Method, Request, Settings
from stages.accelerators import fitting
from stages.accelerators.base import Now
from stages.accelerators.fitting import Coefficients, Signal, Span
from stages.accelerators.pace import Pace
from stages.accelerators.trunk import Trunk, relative_change

Variant = Literal["plain", "ret"]
WARM_UP: Mapping[Variant, int] = {"plain": 1, "ret": 5}
"""Steps at a clip's beginning that each variant computes."""
FITTED_THRESHOLD = 0.15
"""Of fits of our own, whose polynomials tell the residual's relative change itself."""


@dataclass(frozen=True)
class Published:
    """Coefficients of TeaCache's release, or of LightX2V's."""

    signal: Signal
    coefficients: tuple[float, ...]
    threshold: float


def _hunyuan15(*coefficients: float) -> Mapping[Variant, Published]:
    return {"plain": Published("input", coefficients, 0.15)}


def _wan(threshold: float, plain: tuple[float, ...], ret: tuple[float, ...]) -> Mapping[Variant, Published]:
    return {"plain": Published("time", plain, threshold), "ret": Published("modulation", ret, threshold)}


PUBLISHED: Mapping[str, Mapping[Variant, Published]] = {
    "hunyuanvideo": {"plain": Published("input", (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896), 0.1)},
    "wan2.1-1.3b": _wan(
        0.08,
        (2.39676752e3, -1.31110545e3, 2.01331979e2, -8.29855975, 1.37887774e-1),
        (-5.21862437e4, 9.23041404e3, -5.28275948e2, 1.36987616e1, -4.99875664e-2),
    ),
    "wan2.1-14b": _wan(
        0.14,
        (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        (-3.03318725e5, 4.90537029e4, -2.65530556e3, 58.7365115, -3.15583525e-1),
    ),
    "wan2.1-i2v-14b": _wan(
        0.13,
        (-3.02331670e2, 2.23948934e2, -52.5463970, 5.87348440, -2.01973289e-1),
        (2.57151496e5, -3.54229917e4, 1.40286849e3, -13.5890334, 1.32517977e-1),
    ),
    "wan2.1-i2v-14b-720p": _wan(
        0.18,
        (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
        (8.10705460e3, 2.13393892e3, -3.72934672e2, 16.6073103, -4.17769401e-2),
    ),
    "wan2.2-ti2v-5b": {
        "plain": Published("time", (1.57472669e5, -1.15702395e5, 3.10761669e4, -3.83116651e3, 2.21608777e2, -4.81179567), 0.26)
    },
    "hunyuanvideo-1.5": _hunyuan15(-2.97190924e4, 2.22834983e4, -4.37418360e3, 3.39340251e2, -10.1365855, 0.129101768),
    "hunyuanvideo-1.5-i2v": _hunyuan15(8.08528429e3, -2.44607178e3, 2.49489589e2, -9.10697865, 0.120261379),
    "hunyuanvideo-1.5-720p": _hunyuan15(-3.08907507e4, 1.67786188e4, -3.19178643e3, 2.60740519e2, -8.19205881, 0.107913775),
}
"""By model. Wan's plain variant looks at the time embedding, its ``ret`` variant at the modulation that comes of it; the others
at the modulated input of the first block. The row of TI2V-5B is LightX2V's; that its signal is the time embedding is taken from
the other rows of the plain variant, and not verified."""
BY_SIZE: Mapping[str, tuple[int, str]] = {"wan2.1-i2v-14b": (480 * 832, "wan2.1-i2v-14b-720p")}
"""Above so many pixels a frame, these weights are those of another row."""


class TeaCacheSettings(Settings):
    """What is None is filled in for the model: published coefficients, or a fit by ``dvg calibrate-cache``."""

    threshold: float | None = Field(None, ge=0, allow_inf_nan=False)
    """All blocks are computed when the reckoned change since they last were comes to this; 0: at every step."""
    variant: Variant | None = None
    """``ret`` looks at another signal of Wan and computes the first 5 steps; None: ``plain``."""
    coefficients: Coefficients | None = None
    """Of the polynomial, the highest power first."""
    signal: Signal | None = None
    """Whose relative change the polynomial is of: the first block's modulated input, the time embedding, the modulation."""
    span: Span | None = None
    """Changes that the polynomial was fitted to; others are taken for the nearest of the two."""
    fit: str | None = None
    """A file of ``dvg calibrate-cache``; None: published coefficients, otherwise the model's fit if there is one."""
    warmup: int | None = Field(None, ge=1)
    """Steps at the beginning that are computed, and of every stage (2 at most) where the clip changes its grid on the way."""
    max_skips: int | None = Field(None, ge=0)
    """Steps in a row that may be reused. None: any number, and 3 where the clip changes its grid on the way."""

    @model_validator(mode="after")
    def _has_one_source(self) -> TeaCacheSettings:
        given = [name for name in ("coefficients", "variant") if getattr(self, name) is not None]
        if self.fit is not None and given:
            raise ValueError(f"a fit has a polynomial of its own: leave out fit or {' and '.join(given)}")
        return self


@dataclass
class Kept:
    """Of one branch of guidance."""

    signal: Tensor
    residual: Tensor
    """What all blocks added when they were last computed."""
    due: float = 0.0
    """The change reckoned since."""
    in_a_row: int = 0


class TeaCache:
    """Of one stage. Its settings are resolved."""

    def __init__(self, settings: TeaCacheSettings, geometry: ModelGeometry) -> None:
        if settings.coefficients is None or settings.threshold is None or settings.signal is None:
            raise ValueError("teacache: coefficients, signal and threshold are filled in when a spec is resolved")
        self.threshold, self.signal, self.coefficients = settings.threshold, settings.signal, settings.coefficients
        self.span = settings.span
        self.pace = Pace(settings.warmup or WARM_UP[settings.variant or "plain"], settings.max_skips)
        self._kept: dict[int, Kept] = {}

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        signal, kept = trunk.signals[self.signal](), self._kept.get(now.branch)
        if kept is not None and self._is_close(trunk, now, kept, signal):
            kept.in_a_row, kept.signal = kept.in_a_row + 1, signal
            return trunk.inputs[0] + kept.residual
        out = trunk.compute()
        self._kept[now.branch] = Kept(signal, out - trunk.inputs[0])
        return out

    def _is_close(self, trunk: Trunk, now: Now, kept: Kept, signal: Tensor) -> bool:
        """The host waits for the device only where the step alone does not decide.

        Published polynomials fall below 0 outside what they were fitted to, some to -13. Ours: no change makes up for another.
        """
        if self.threshold == 0 or not self.pace.allows(now, kept.in_a_row):
            return False
        kept.due += max(0.0, self.reckoned(relative_change(trunk, signal, kept.signal)))
        return kept.due < self.threshold

    def reckoned(self, change: float) -> float:
        """The polynomial."""
        if self.span is not None:
            change = min(max(change, self.span[0]), self.span[1])
        total = 0.0
        for coefficient in self.coefficients:
            total = total * change + coefficient
        return total


def resolve(settings: TeaCacheSettings, request: Request) -> TeaCacheSettings:
    """Raises ValueError where nothing is known of the model, naming what serves instead."""
    filled = settings if settings.coefficients is not None else settings.model_copy(update=_known(settings, request))
    if filled.signal is None:
        raise ValueError("teacache: coefficients need the signal that they are of: input, time or modulation")
    default = {"threshold": FITTED_THRESHOLD if filled.threshold is None else filled.threshold}
    warmup = filled.warmup or WARM_UP[filled.variant or "plain"]
    return filled.model_copy(update={**default, "variant": filled.variant or "plain", "warmup": warmup, "fit": None})


def _known(settings: TeaCacheSettings, request: Request) -> dict[str, object]:
    """Of published coefficients unless a fit is asked for, then of a fit."""
    rows = published(request) if settings.fit is None else {}
    known = rows.get(settings.variant or "plain")
    if known is not None and settings.signal in (None, known.signal):
        threshold = known.threshold if settings.threshold is None else settings.threshold
        return {"coefficients": known.coefficients, "signal": known.signal, "threshold": threshold}
    geometry = request.geometry
    if settings.variant is not None and known is None:
        theirs = f"coefficients for variant {', '.join(rows)} only" if rows else "no published coefficients, of which it is"
        told = f"variant is {settings.variant!r}, and {geometry.name} has {theirs}"
        raise ValueError(f"teacache: {told}; leave it out for a fit")
    fit = fitting.find(request, settings.fit)
    if fit is not None:
        return _by(fit, settings)
    if known is not None:
        raise ValueError(
            f"teacache: signal is {settings.signal!r}, and the published coefficients of {geometry.name} are of "
            f"{known.signal!r}: leave it out, or measure a fit with {fitting.command(geometry)}"
        )
    raise ValueError(
        f"teacache: there are no published coefficients for {geometry.name} and no fit: measure one with "
        f"{fitting.command(geometry)}, or take adacache or taylorseer, which need none"
    )


def _by(fit: fitting.CacheFit, settings: TeaCacheSettings) -> dict[str, object]:
    """What is given counts more than what the fit says."""
    signal = settings.signal or fit.best
    if signal not in fit.signals:
        raise ValueError(f"teacache: signal is {signal!r}, and the fit of {fit.model} tells {', '.join(fit.signals)} only")
    row = fit.signals[signal]
    return {
        "coefficients": row.coefficients,
        "signal": signal,
        "span": settings.span or row.span,
        "warmup": settings.warmup or fit.warmup,
    }


def published(request: Request) -> Mapping[Variant, Published]:
    """The rows for a model at a size; none for a model without."""
    name, shape = request.geometry.name, request.shape
    most, larger = BY_SIZE.get(name, (shape.height * shape.width, name))
    return PUBLISHED.get(larger if shape.height * shape.width > most else name, {})


METHODS = {
    "teacache": Method(
        "teacache", "accelerator", "cache", "TeaCache, arXiv 2411.19108",
        "whole forwards are left out while a polynomial of how far their input moved stays under a threshold", "release",
        make=TeaCache,
        settings=TeaCacheSettings,
        resolve=resolve,
        needs="coefficients of the model: published ones are built in, others come from dvg calibrate-cache",
    )
}  # fmt: skip
