"""What the report shows, as plain values for the template: facts, arms, prompts with their clips, charts, failures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from experiments.report.charts import Point, Scatter, scatter
from experiments.summary import ArmStats, arm_of, arm_stats, busy_s, denoise_device_s, number, on_gpu, work_unit
from orchestrator.types import Record

NUM_COLOURS, NUM_SHAPES = 7, 4
"""Palette entries of the style sheet (entry 0 is the reference arm's), and marker shapes of the template."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Card:
    """One headline figure."""

    value: str
    label: str
    note: str = ""


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


@dataclass(frozen=True)
class Prompt:
    prompt_id: str
    text: str
    seed: int
    clips: tuple[Clip, ...]

    @property
    def lowest_ssim(self) -> float:
        """For sorting; prompts without quality come last."""
        return min((clip.quality["ssim"] for clip in self.clips if clip.quality), default=2.0)

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


@dataclass(frozen=True)
class Page:
    name: str
    facts: tuple[tuple[str, str], ...]
    cards: tuple[Card, ...]
    arms: tuple[ArmStats, ...]
    colours: Mapping[str, int]
    reference: str | None
    actions: tuple[tuple[str, int, int, int], ...]
    """(action, videos that use it, colour, marker shape) of the demand chart."""
    charts: tuple[Scatter, ...]
    demand_chart: Scatter | None
    prompts: tuple[Prompt, ...]
    failures: tuple[Row, ...]


def build_page(
    records: Sequence[Record], quality: Sequence[Row], failures: Sequence[Row], spec: Row, commits: Sequence[str] = ()
) -> Page:
    """Everything the template needs. ``spec`` gives the name, the reference arm and the order of prompts, if it knows them;
    ``commits`` are those of the run's starts."""
    reference = spec.get("reference") or next((row["reference_arm"] for row in quality), None)
    arms = arm_stats(records, quality, reference, failures)
    with_videos = [stats for stats in arms if stats.num_videos]
    names = [stats.arm for stats in arms]
    colours = _colours(names, reference)
    actions = _actions(records)
    return Page(
        name=str(spec.get("name") or "sweep"),
        facts=tuple(_facts(records, commits)),
        cards=tuple(_cards(with_videos, len(arms), reference, records, failures)),
        arms=tuple(arms),
        colours=colours,
        reference=reference,
        actions=actions,
        charts=tuple(_quality_charts(with_videos, records, quality, colours, reference)),
        demand_chart=_demand_chart(records, {name: (colour, shape) for name, _, colour, shape in actions}),
        prompts=tuple(_prompts(records, quality, failures, spec, names, colours, reference)),
        failures=tuple(failures),
    )


def _colours(names: Iterable[str], reference: str | None) -> dict[str, int]:
    others = [name for name in names if name != reference]
    return ({reference: 0} if reference else {}) | {n: 1 + i % (NUM_COLOURS - 1) for i, n in enumerate(others)}


def _facts(records: Sequence[Record], commits: Sequence[str]) -> Iterable[tuple[str, str]]:
    if not records:
        return
    yield "model", _several(r.model for r in records)
    yield "video", _several(f"{r.num_frames} frames, {r.width} × {r.height}, {r.fps} fps" for r in records)
    yield "steps", _several(str(r.num_steps) for r in records)
    yield "tokens (full grid)", _several(f"{r.tokens_full:,}" for r in records)
    yield "device", _several(f"{r.device}" for r in records)
    yield "hosts", str(len({r.host for r in records}))
    yield "finished", max(r.finished_at for r in records)[:16].replace("T", " ") + " UTC"
    if commits:
        yield "commit", _several(commit[:10] + "+" * commit.endswith("+") for commit in commits)


def _several(values: Iterable[str], limit: int = 3) -> str:
    distinct = list(dict.fromkeys(values))
    return "; ".join(distinct[:limit]) + (f" and {len(distinct) - limit} more" if len(distinct) > limit else "")


def _cards(
    arms: Sequence[ArmStats], num_arms: int, reference: str | None, records: Sequence[Record], failures: Sequence[Row]
) -> Iterable[Card]:
    """``arms`` are those of the ``num_arms`` that have a video."""
    prompts = len({(r.prompt_id, r.seed) for r in records})
    note = f"{prompts} prompts and seeds, {num_arms} arms"
    yield Card(str(len(records)), "videos", note + (f", {len(failures)} given up" if failures else ""))
    others = [stats for stats in arms if stats.arm != reference]
    if fast := max((s for s in others if s.speedup), key=lambda s: s.speedup or 0.0, default=None):
        yield Card(f"{fast.speedup:.2f}×", "denoising speedup", f"{fast.arm} against {reference}")
    if close := max((s for s in others if s.ssim is not None), key=lambda s: s.ssim or 0.0, default=None):
        yield Card(f"{close.ssim:.3f}", "SSIM", f"{close.arm}, {number(close.psnr, '{:.1f} dB')} PSNR")
    if lean := min(others, key=lambda s: s.density_executed, default=None):
        yield Card(f"{lean.density_executed:.0%}", "of the token-steps", f"{lean.arm}, as executed")
    if (spent_s := sum(r.device_s for r in records)) > 0:
        of = work_unit(on_gpu(records))
        yield Card(duration(spent_s), f"{of} time", "at work, all videos together")
        yield Card(f"{3600.0 * len(records) / spent_s:.3g}", f"videos per {of}-hour", "all arms together")


def duration(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _quality_charts(
    arms: Sequence[ArmStats],
    records: Sequence[Record],
    quality: Sequence[Row],
    colours: Mapping[str, int],
    reference: str | None,
) -> Iterable[Scatter]:
    joined = {row["item_key"]: row for row in quality}
    rules = [(stats.busy_s, stats.arm) for stats in arms if stats.arm == reference]
    for column, label, form, span in (("ssim", "SSIM", "{:.4f}", 0.05), ("psnr", "PSNR, dB", "{:.2f} dB", 2.0)):
        measured = [(r, joined[r.item_key][column]) for r in records if r.item_key in joined]
        points = [
            Point(busy_s(r), y, f"{r.arm}, {r.prompt_id}: {busy_s(r):.2f} s, {form.format(y)}", colours[r.arm])
            for r, y in measured
        ]
        for stats in arms:
            y = getattr(stats, column)
            if y is not None:
                title = f"{stats.arm}, mean: {stats.busy_s:.2f} s, {form.format(y)}"
                points.append(Point(stats.busy_s, y, title, colours[stats.arm], label=stats.arm))
        if points:
            title = f"{label.split(',')[0]} against time"
            yield scatter(title, "seconds of work per video", f"{label} against {reference}", points, rules, True, (0.0, span))


def _actions(records: Sequence[Record]) -> tuple[tuple[str, int, int, int], ...]:
    measured = [r.action for r in records if r.spatial_demand is not None]
    return tuple(
        (name, measured.count(name), 1 + index % (NUM_COLOURS - 1), index % NUM_SHAPES)
        for index, name in enumerate(sorted(set(measured)))
    )


def _demand_chart(records: Sequence[Record], style: Mapping[str, tuple[int, int]]) -> Scatter | None:
    points = [
        Point(
            r.spatial_demand,
            r.temporal_demand,
            f"{r.arm}, {r.prompt_id}: spatial {r.spatial_demand:.3f}, temporal {r.temporal_demand:.3f}, {r.action}",
            *style[r.action],
        )
        for r in records
        if r.spatial_demand is not None and r.temporal_demand is not None
    ]
    if not points:
        return None
    return scatter("Demand and action", "spatial demand", "temporal demand", points, min_span=(0.2, 0.2))


def _prompts(
    records: Sequence[Record],
    quality: Sequence[Row],
    failures: Sequence[Row],
    spec: Row,
    names: Sequence[str],
    colours: Mapping[str, int],
    reference: str | None,
) -> Iterable[Prompt]:
    joined = {row["item_key"]: row for row in quality}
    order = {(p["id"], p["seed"]): index for index, p in enumerate(spec.get("prompts") or ())}
    errors = {(f.get("prompt_id"), f.get("seed"), arm_of(f)): str(f.get("error", "")) for f in failures}

    def key(r: Record) -> tuple[int, str, int]:
        return order.get((r.prompt_id, r.seed), len(order)), r.prompt_id, r.seed

    for (_, prompt_id, seed), group in groupby(sorted(records, key=key), key=key):
        found = {r.arm: r for r in group}
        slowest_s = max(r.denoise_s for r in found.values())
        clips = [
            _clip(found[name], found.get(reference or ""), joined, colours[name], slowest_s)
            if name in found
            else Clip(name, colours[name], None, error=errors.get((prompt_id, seed, name), ""))
            for name in names
        ]
        yield Prompt(prompt_id, next(iter(found.values())).prompt, seed, tuple(clips))


def _clip(record: Record, reference: Record | None, joined: Mapping[str, Row], colour: int, slowest_s: float) -> Clip:
    other = reference is not None and reference.arm != record.arm and record.denoise_s > 0
    return Clip(
        record.arm,
        colour,
        record,
        busy_s=busy_s(record),
        speedup=denoise_device_s(reference) / denoise_device_s(record) if other and reference else None,
        quality=joined.get(record.item_key),
        stages=tuple(_stage_bars(record, slowest_s)),
    )


def _stage_bars(record: Record, slowest_s: float) -> Iterable[StageBar]:
    grids, seconds = record.stage_grids.split("|"), record.stage_s.split("|")
    if len(grids) != len(seconds) or not all(seconds):
        return
    degrees = record.stage_degrees.split("|") if record.stage_degrees else ["1"] * len(grids)
    for grid, spent, degree in zip(grids, map(float, seconds), map(int, degrees), strict=True):
        yield StageBar(grid.replace("x", "×"), spent, 100.0 * spent / slowest_s if slowest_s > 0 else 0.0, degree)
