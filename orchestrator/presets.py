"""``preset:`` of a spec: a planner, a budget and accelerators under one word. This is the one place that says which.

What each was measured to give is told beside it; a setting that is given beside a preset stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.methods import named

PresetName = Literal["fast", "balanced", "careful", "sparse", "long"]


@dataclass(frozen=True)
class Preset:
    """Settings under the keys of an arm, and their figures."""

    planner: str | Mapping[str, Any]
    measured: str
    """Speedup and quality, with what they were measured on."""
    budget: float | None = None
    accelerators: tuple[str | Mapping[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What an arm would have to say."""
        planner, accelerators = self.planner, list(self.accelerators)
        return {
            "planner": planner if isinstance(planner, str) else dict(planner),
            "budget": self.budget,
            "accelerators": accelerators,
        }

    @property
    def told(self) -> str:
        """``planner dvg, budget 0.5, taylorseer``."""
        budget = [] if self.budget is None else [f"budget {self.budget:g}"]
        return ", ".join([f"planner {_form(self.planner)}", *budget, *map(_form, self.accelerators)])


PRESETS: Mapping[PresetName, Preset] = {
    "fast": Preset("dvg", "4.3x on wan-mini, 99.1 % of the attributes (full 98.2 %)", 0.5, ("taylorseer",)),
    "balanced": Preset("dvg", "2.9x on wan-mini, 99.4 % of the attributes (full 98.2 %)", 0.5, ("adacache",)),
    "careful": Preset(
        "full",
        "2.0x on wan-mini, 98.2 % of the attributes, near the full run's own video: 33.8 dB",
        None,
        ({"taylorseer": {"interval": 2}},),
    ),
    "sparse": Preset(
        "dvg",
        "4.6x on HunyuanVideo-1.5 at 49,290 tokens, random weights, where dvg alone has 2.8x",
        0.5,
        ("attencarve",),
    ),
    "long": Preset("dualparal", "wan-mini at 8 times its length: frames change at borders 0.8 times as much as inside blocks"),
}
"""The first three, the fastest first, are on or near the fronts of speed against what the checker sees, and against likeness to
the full run (``experiments/results/methods_wan_mini_202611.md``). ``sparse`` is for clips of tens of thousands of tokens
(``sparse_h200_202611.md``), ``long`` for those beyond the trained length (``long_video_wan_mini_202611.md``). None needs anything
fitted to a model."""
DECIDED = ("planner", "budget", "accelerators")
"""Keys that a preset decides."""


def _form(method: str | Mapping[str, Any]) -> str:
    name, settings = named(method)
    return f"{name} ({', '.join(f'{key} {value}' for key, value in settings.items())})" if settings else name


def own_over_shared(shared: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an arm inherits of the spec: nothing that a preset decides, where the arm names one itself."""
    return shared if own.get("preset") is None else {**shared, **dict.fromkeys(DECIDED)}


def contradiction(own: Mapping[str, Any]) -> str:
    """Why the preset and the planner that are given beside each other cannot both be meant; empty if they can."""
    name, planner = own.get("preset"), own.get("planner")
    if name is None or planner is None or _same(PRESETS[name], planner):
        return ""
    return f"preset {name} is {PRESETS[name].told}, and planner is {named(planner)[0]}: drop one of the two"


def _same(preset: Preset, planner: Any) -> bool:
    return named(planner)[0] == named(preset.planner)[0]


def with_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's settings with those of its ``preset`` where it says nothing itself.

    Under another planner than that of an inherited preset nothing of it is left: its budget and accelerators were chosen for its
    own.
    """
    filled = {key: value for key, value in settings.items() if key != "preset"}
    if settings.get("preset") is None:
        return filled
    preset = PRESETS[settings["preset"]]
    given = filled.get("planner")
    if given is not None and not _same(preset, given):
        return filled
    return filled | {key: value for key, value in preset.settings.items() if filled.get(key) is None}
