"""The gallery: prompts, each with one clip per arm, and what a reader may sort and choose them by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from experiments.alike import difference
from experiments.metrics.names import METRICS, SEMANTIC
from experiments.summary import arm_of, busy_s, denoise_device_s
from orchestrator.types import Record

Row = Mapping[str, Any]


@dataclass(frozen=True)
class StageBar:
    """One stage of a clip: its latent grid, its seconds, its share (percent) of the prompt's slowest clip, its ranks."""

    grid: str
    seconds: float
    percent: float
    degree: int = 1

    @property
    def on_ranks(self) -> str:
        return f" on {self.degree} ranks" if self.degree > 1 else ""


@dataclass(frozen=True)
class Clip:
    """One arm's answer to one prompt; ``record`` None when it has none, with the ``error`` if it was given up."""

    arm: str
    colour: int
    record: Record | None
    busy_s: float = 0.0
    speedup: float | None = None
    quality: Row | None = None
    stages: tuple[StageBar, ...] = ()
    error: str = ""
    unlike: str = ""
    """What sets it apart from the others of the prompt, and from the reference arm's, so that it has no speedup."""

    @property
    def asked(self) -> str:
        """What the arm was to meet where that is a cost, what it was predicted to take, and the first frame."""
        if self.record is None:
            return ""
        parts = [f"from {Path(self.record.image).name}"] if self.record.image else []
        if self.record.predicted_s is not None and self.record.target and not self.record.target.startswith("density"):
            parts.append(f"{self.record.target}: {self.record.predicted_s:.3g} s predicted ({self.record.cost_label})")
        return "; ".join(parts)

    @property
    def shared(self) -> str:
        """The ranks of each stage, and why its widest has as many; empty for a clip that one rank made."""
        if self.record is None or self.record.degree == 1:
            return ""
        degrees = self.record.stage_degrees.replace("|", ", ") or str(self.record.degree)
        return f"ranks of the stages: {degrees}" + (f". {self.record.sizing}" if self.record.sizing else "")

    @property
    def figures(self) -> tuple[tuple[str, str], ...]:
        """(name, value) of what was measured of it."""
        row = self.quality or {}
        plain = [(name, METRICS[name]) for name in row if name in METRICS and name not in SEMANTIC and name != "frames_ok"]
        told = [(m.label.removesuffix(" dB"), m.form.format(row[name]) + f" {m.unit}".rstrip()) for name, m in plain]
        seen = [row[name] for name in SEMANTIC if row.get(name) is not None]
        return (*told, ("as asked", f"{sum(seen):.0f} of {len(seen)}")) if seen else tuple(told)

    @property
    def trait(self) -> tuple[str, str, float | None, float | None]:
        """(arm, action, detail, motion), which filters ask for."""
        if self.record is None:
            return self.arm, GIVEN_UP if self.error else "", None, None
        return self.arm, self.record.action, self.record.spatial_demand, self.record.temporal_demand


GIVEN_UP = "given up"


@dataclass(frozen=True)
class Prompt:
    prompt_id: str
    text: str
    seed: int
    clips: tuple[Clip, ...]

    @property
    def key(self) -> str:
        return prompt_key(self.prompt_id, self.seed)

    @property
    def lowest_ssim(self) -> float:
        """For sorting; prompts without quality come last."""
        return min(
            (clip.quality["ssim"] for clip in self.clips if clip.quality and clip.quality.get("ssim") is not None), default=2.0
        )

    @property
    def highest_speedup(self) -> float:
        return max((clip.speedup or 0.0 for clip in self.clips), default=0.0)

    @property
    def highest_demand(self) -> tuple[float, float]:
        """(spatial, temporal) over the arms that measured it; zeros where none did."""
        found = [clip.record for clip in self.clips if clip.record and clip.record.spatial_demand is not None]
        return (
            max((record.spatial_demand or 0.0 for record in found), default=0.0),
            max((record.temporal_demand or 0.0 for record in found), default=0.0),
        )

    @property
    def words(self) -> str:
        """What a search looks through."""
        found = [self.text, self.key, *(word for clip in self.clips for word in (*clip.trait[:2], clip.error))]
        return " ".join(dict.fromkeys(found)).lower()


def prompt_key(prompt_id: str, seed: object) -> str:
    """As it is shown and linked to."""
    return f"{prompt_id} · seed {seed}"


def prompts_of(
    records: Sequence[Record],
    quality: Sequence[Row],
    failures: Sequence[Row],
    spec: Row,
    colours: Mapping[str, int],
    names: Sequence[str],
    reference: str | None,
) -> Iterable[Prompt]:
    """Every prompt and seed with a video or given up, as the spec orders them; one clip for each arm of ``names``."""
    joined = {row["item_key"]: row for row in quality}
    order = {key: index for index, key in enumerate(dict.fromkeys((p["id"], p["seed"]) for p in spec.get("prompts") or ()))}
    errors = {_failed(f): str(f.get("error") or "no error was recorded") for f in failures}
    texts = {
        (str(f["prompt_id"]), int(f["seed"])): str(f.get("prompt", "")) for f in failures if {"prompt_id", "seed"} <= f.keys()
    }
    made: dict[tuple[str, int], dict[str, Record]] = {key: {} for key in texts}
    for record in records:
        made.setdefault((record.prompt_id, record.seed), {})[record.arm] = record
    for key in sorted(made, key=lambda key: (order.get(key, len(order)), str(key[0]), str(key[1]))):
        found = made[key]
        slowest_s = max((r.denoise_s for r in found.values()), default=0.0)
        base = found.get(reference or "")
        text = base.prompt if base else next((r.prompt for r in found.values()), texts.get(key, ""))
        clips = [
            _clip(found[name], text, base, joined, colours[name], slowest_s)
            if name in found
            else Clip(name, colours[name], None, error=errors.get((*key, name), ""))
            for name in names
        ]
        yield Prompt(key[0], text, key[1], tuple(clips))


def _failed(failure: Row) -> tuple[object, object, str]:
    return failure.get("prompt_id"), failure.get("seed"), arm_of(failure)


def _clip(record: Record, text: str, reference: Record | None, joined: Mapping[str, Row], colour: int, slowest_s: float) -> Clip:
    unlike = difference(record, reference, f"{reference.arm}'s") if reference else ""
    other = reference is not None and reference.arm != record.arm and record.denoise_s > 0 and not unlike
    return Clip(
        record.arm,
        colour,
        record,
        busy_s=busy_s(record),
        speedup=denoise_device_s(reference) / denoise_device_s(record) if other and reference else None,
        quality=joined.get(record.item_key),
        stages=tuple(_stage_bars(record, slowest_s)),
        unlike=unlike if record.prompt == text else f"made of another text: {record.prompt}",
    )


def _stage_bars(record: Record, slowest_s: float) -> Iterable[StageBar]:
    grids, seconds = record.stage_grids.split("|"), record.stage_s.split("|")
    if len(grids) != len(seconds) or not all(seconds):
        return
    degrees = record.stage_degrees.split("|") if record.stage_degrees else ["1"] * len(grids)
    for grid, spent, degree in zip(grids, map(float, seconds), map(int, degrees), strict=True):
        yield StageBar(grid.replace("x", "×"), spent, 100.0 * spent / slowest_s if slowest_s > 0 else 0.0, degree)


def chosen_actions(prompts: Sequence[Prompt]) -> list[tuple[str, int]]:
    """(action, clips) of everything that a filter can ask for, by name; what was given up comes last."""
    names = sorted(clip.trait[1] for prompt in prompts for clip in prompt.clips if clip.trait[1])
    found = [(name, len(list(group))) for name, group in groupby(names)]
    return sorted(found, key=lambda pair: pair[0] == GIVEN_UP)
