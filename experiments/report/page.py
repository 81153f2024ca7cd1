"""What the report shows, as plain values for the template: facts, arms, prompts with their clips, charts, failures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.report.action_map import NUM_COLOURS, NUM_SHAPES, ActionMap, action_maps
from experiments.report.clips import Prompt, Row, chosen_actions, prompts_of
from experiments.report.material import Material
from experiments.report.quality import Chart, Cost, measured, pareto_charts, quality_table
from experiments.report.radar import Board, boards, totals_of
from experiments.report.timeline import Timeline, timeline
from experiments.summary import ArmStats, arm_stats, number, on_gpu, reconstructed_told, table_rows, work_unit
from orchestrator.types import Record

__all__ = ["NUM_COLOURS", "NUM_SHAPES", "Page", "build_page", "duration"]
MOST_STARTS = 6
"""Timelines of a report: those of the last starts."""


@dataclass(frozen=True)
class Card:
    """One headline figure."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class Page:
    name: str
    facts: tuple[tuple[str, str], ...]
    cards: tuple[Card, ...]
    arms: tuple[ArmStats, ...]
    colours: Mapping[str, int]
    reference: str | None
    charts: tuple[tuple[Cost, list[Chart]], ...]
    table: tuple[tuple[str, ...], list[tuple[str, ...]]]
    """Heads and rows, as the terminal shows them."""
    reconstructed: str
    """What the mark behind an arm's name means; empty without one."""
    quality: tuple[list[str], list[list[str]]]
    """Of what ``table`` has no column for."""
    has_ssim: bool
    maps: tuple[ActionMap, ...]
    actions: tuple[tuple[str, int], ...]
    """What clips can be chosen by, and how many there are."""
    timelines: tuple[Timeline, ...]
    num_starts: int
    boards: tuple[Board, ...]
    prompts: tuple[Prompt, ...]
    failures: tuple[Row, ...]


def build_page(material: Material) -> Page:
    """Everything the template needs."""
    records, quality, failures, spec = material.records, material.quality, material.failures, material.spec
    reference = spec.get("reference") or next((row["reference_arm"] for row in quality if row.get("reference_arm")), None)
    arms = arm_stats(records, quality, reference, failures)
    with_videos = [stats for stats in arms if stats.num_videos]
    names = [stats.arm for stats in arms]
    colours = _colours(names, reference)
    scores = totals_of(material.scores)
    found, table = measured(records, quality, scores), table_rows(arms)
    prompts = tuple(prompts_of(records, quality, failures, spec, colours, names, reference))
    return Page(
        name=str(spec.get("name") or "sweep"),
        facts=tuple(_facts(records, material.commits)),
        cards=tuple(_cards(with_videos, len(arms), reference, records, failures)),
        arms=tuple(arms),
        colours=colours,
        reference=reference,
        charts=tuple(pareto_charts(arms, records, found, colours)) if found else (),
        table=table,
        reconstructed=reconstructed_told(arms),
        has_ssim=any(one.name == "ssim" for one in found),
        quality=quality_table([stats.arm for stats in with_videos], found, table[0]),
        maps=tuple(action_maps(records, spec)),
        actions=tuple(chosen_actions(prompts)),
        timelines=tuple(_timelines(material, colours)),
        num_starts=len(material.logs),
        boards=tuple(boards(scores, material.remarks, colours)),
        prompts=prompts,
        failures=tuple(failures),
    )


def _timelines(material: Material, colours: Mapping[str, int]) -> Iterable[Timeline]:
    found = [timeline(title, log, colours) for title, log in material.logs[-MOST_STARTS:]]
    return (one for one in found if one is not None)


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
    note = f"{prompts:,} prompts and seeds, {num_arms} arms"
    yield Card(f"{len(records):,}", "videos", note + (f", {len(failures)} given up" if failures else ""))
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
