"""The metrics of a video by name: unit, which way is better, what is compared with what. Pure; nothing heavy is imported."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

ATTRIBUTES = ("colour", "shape", "size", "direction", "speed", "background", "camera")
"""As ``experiments.embedded.checker`` judges them."""


@dataclass(frozen=True)
class Metric:
    """One number of a video, as a row of ``quality.jsonl`` holds it under the metric's name."""

    unit: str
    """Empty for a plain number."""
    better: Literal["higher", "lower", ""]
    """Empty: neither, a property of the video."""
    of_reference: bool
    """Whether it compares with the reference arm's video of the same prompt and seed."""
    what: str
    label: str
    """Head of a column."""
    form: str = "{:.3f}"
    """How a mean over videos is written."""


METRICS: dict[str, Metric] = {
    "psnr": Metric("dB", "higher", True, "mean over frames of PSNR, at most 100 dB", "PSNR dB", "{:.2f}"),
    "ssim": Metric("", "higher", True, "mean over frames of SSIM (11 x 11 Gaussian window, sigma 1.5)", "SSIM"),
    "lpips": Metric("", "lower", True, "mean over frames of LPIPS with AlexNet features", "LPIPS"),
    "latent_cosine": Metric("", "higher", True, "cosine of both videos' latents, by the arm's own VAE", "latent cos"),
    "flicker": Metric("", "higher", False, "VBench's temporal flickering, not normalised: 1 is no change", "flicker", "{:.4f}"),
    "motion": Metric("heights/s", "", False, "change over gradient: frame heights a second that the picture moves", "motion"),
    "static": Metric("", "", False, "1 where no frame differs visibly from the first (not VBench's filter)", "static", "{:.2f}"),
    "frames_ok": Metric("", "higher", False, "1 where all frames on record decode, at their size", "frames ok", "{:.2f}"),
    **{
        f"semantic_{name}": Metric("", "higher", False, f"1 where the prompt's {name} is seen (wan-mini)", name, "{:.2f}")
        for name in ATTRIBUTES
    },
}  # fmt: skip
"""In the order in which tables have them."""

SEMANTIC = tuple(name for name in METRICS if name.startswith("semantic_"))
GROUPS: dict[str, tuple[str, ...]] = {
    "all": tuple(METRICS),
    "reference": tuple(name for name, metric in METRICS.items() if metric.of_reference),
    "free": tuple(name for name, metric in METRICS.items() if not metric.of_reference),
    "semantic": SEMANTIC,
}
"""Names that stand for several."""


def resolve(names: Iterable[str]) -> tuple[str, ...]:
    """Metrics by name or group, each once, in the order of ``METRICS``. Raises ValueError for a name that is neither."""
    wanted: set[str] = set()
    for name in names:
        if name not in METRICS and name not in GROUPS:
            choices = ", ".join((*GROUPS, *(m for m in METRICS if m not in SEMANTIC), *SEMANTIC))
            raise ValueError(f"metric {name!r} is not known; choices: {choices}")
        wanted |= set(GROUPS.get(name, (name,)))
    return tuple(name for name in METRICS if name in wanted)


def missing(names: Iterable[str], values: Iterable[str]) -> tuple[str, ...]:
    """Those of ``names`` that are not among ``values``."""
    held = set(values)
    return tuple(name for name in names if name not in held)
