"""``preset:`` of a spec: a planner, a budget and accelerators under one word. This is the one place that says which.

What each was measured to give is told beside it; a setting that is given beside a preset stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.methods import named

PresetName = Literal["fast", "balanced", "careful"]


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


NOT_MEASURED = "not measured yet"
PRESETS: Mapping[PresetName, Preset] = {
    "fast": Preset("dvg", NOT_MEASURED, budget=0.5, accelerators=("taylorseer",)),
    "balanced": Preset("dvg", NOT_MEASURED, budget=0.5),
    "careful": Preset("dvg", NOT_MEASURED, budget=0.7),
}
"""The fastest first."""


def _form(method: str | Mapping[str, Any]) -> str:
    name, settings = named(method)
    return f"{name} ({', '.join(f'{key} {value}' for key, value in settings.items())})" if settings else name


def with_preset(settings: Mapping[str, Any]) -> dict[str, Any]:
    """An arm's settings with those of its ``preset`` where it says nothing itself.

    Under another planner than the preset's nothing of the preset is left: its budget and accelerators were chosen for that one.
    """
    filled = {key: value for key, value in settings.items() if key != "preset"}
    if settings.get("preset") is None:
        return filled
    preset = PRESETS[settings["preset"]]
    given = filled.get("planner")
    if given is not None and named(given)[0] != named(preset.planner)[0]:
        return filled
    return filled | {key: value for key, value in preset.settings.items() if filled.get(key) is None}
