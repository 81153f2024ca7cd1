"""What a run comes to: one CSV row per item with its quality joined, and one table row per arm."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from experiments.alike import task_of
from experiments.metrics.names import METRICS, SEMANTIC
from orchestrator.files import write_atomic
from orchestrator.paths import RunPaths
from orchestrator.types import Record, as_row

QUALITY_COLUMNS = ("reference_arm", *METRICS)
COLUMNS = (*(f.name for f in fields(Record)), *QUALITY_COLUMNS)
"""Columns of ``summary.csv``, in order: the record's fields, then what was measured of its video."""

NO_VALUE = "–"
RECONSTRUCTED = "†"
"""Behind the name of an arm with a method that follows no released code."""


@dataclass(frozen=True)
class ArmStats:
    """Means over an arm's videos; None where nothing was measured, NaN for an arm without a video. Seconds are per video."""

    arm: str
    num_videos: int
    num_failed: int
    density: float
    density_executed: float
    text_s: float
    sketch_s: float
    refine_s: float
    denoise_s: float
    decode_s: float
    encode_s: float
    busy_s: float
    """Text, denoising, decode, restoring merged frames and mp4: the seconds of work a video costs, waiting excluded."""
    latency_s: float
    latency_p50_s: float
    latency_p95_s: float
    device_s: float
    """GPU-seconds, every attempt's: each phase's seconds times the ranks it held."""
    videos_per_device_hour: float
    on_gpu: bool
    """Whether its devices are GPUs, and device seconds so GPU-seconds."""
    speedup: float | None
    """Denoising of the reference arm over this arm's, in device seconds, on the videos that both have of one task."""
    psnr: float | None
    ssim: float | None
    quality: Mapping[str, float] = field(default_factory=dict)
    """Every metric that was measured, psnr and ssim among them: its mean over the videos that have it."""
    tflops: float | None = None
    """10^12 operations that denoising a video executed; None where a record does not say."""
    accelerators: str = ""
    reconstructed: str = ""
    """Which of its methods follow no released code."""
    restore_s: float = 0.0
    """Making frames that the planner had merged, beside decoding."""
    sparsity: float | None = None
    """Of all pairs of tokens, what attention left out; None where nobody attended otherwise."""
    recall: float | None = None
    """Of dense attention's weights, what it kept; None where nobody measured it."""
    choose_s: float | None = None
    """Choosing what to keep, and attending within it: seconds of the first rank."""
    attend_s: float | None = None

    @property
    def ends_s(self) -> float:
        """From the last latent to the file: decode, restoring and mp4."""
        return self.decode_s + self.restore_s + self.encode_s

    @property
    def marked(self) -> str:
        """Its name, and whether a method of it is reconstructed."""
        return f"{self.arm} {RECONSTRUCTED}" if self.reconstructed else self.arm


def busy_s(record: Record) -> float:
    """Seconds of work on one video, waiting excluded."""
    return record.text_s + record.denoise_s + record.decode_s + record.restore_s + record.encode_s


def mean_tflops(records: Iterable[Record]) -> float | None:
    """None unless every record says."""
    found = [record.tflops for record in records]
    return _mean([tflops for tflops in found if tflops]) if found and all(found) else None


def reconstructed_told(stats: Iterable[ArmStats]) -> str:
    """What the mark means, with the methods that it stands for; empty without any."""
    found = {name: None for stat in stats for name in stat.reconstructed.split("+") if name}
    return f"{RECONSTRUCTED} reconstructed, follows no released code: {', '.join(found)}" if found else ""


def on_gpu(records: Iterable[Record]) -> bool:
    """Whether all of them were made on GPUs."""
    devices = {record.device.lower() for record in records}
    return bool(devices) and not any(device.startswith("cpu") for device in devices)


def work_unit(of_gpus: bool) -> str:
    """What device seconds and hours are of."""
    return "GPU" if of_gpus else "rank"


def denoise_device_s(record: Record) -> float:
    """Seconds of denoising times the ranks that each stage ran on, so that clips of different widths compare."""
    degrees, seconds = record.stage_degrees.split("|"), record.stage_s.split("|")
    if len(degrees) != len(seconds) or set(degrees) <= {"", "1"} or not all(seconds):
        return record.denoise_s
    return sum(int(degree) * float(spent_s) for degree, spent_s in zip(degrees, seconds, strict=True))


def summary_rows(records: Iterable[Record], quality: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One mapping with every key of ``COLUMNS`` per record, ordered by prompt, seed and arm; None where unknown."""
    joined = {row["item_key"]: row for row in quality}
    ordered = sorted(records, key=lambda r: (r.prompt_id, r.seed, r.arm))
    return [as_row(r) | {name: joined.get(r.item_key, {}).get(name) for name in QUALITY_COLUMNS} for r in ordered]


def write_summary(paths: RunPaths, records: Iterable[Record], quality: Iterable[Mapping[str, Any]]) -> Path:
    """Write ``summary.csv`` in one piece: a reader sees the old file or the whole new one."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(summary_rows(records, quality))
    write_atomic(paths.summary, buffer.getvalue())
    return paths.summary


def arm_stats(
    records: Iterable[Record],
    quality: Iterable[Mapping[str, Any]] = (),
    reference_arm: str | None = None,
    failures: Iterable[Mapping[str, Any]] = (),
) -> list[ArmStats]:
    """One entry per arm that has a video or a failure, the reference first, the others by name.

    ``reference_arm`` None takes the one that ``quality`` was measured against, and no speedup without either.
    """
    records, quality = list(records), list(quality)
    reference = reference_arm or next((row["reference_arm"] for row in quality if row["reference_arm"]), None)
    failed = [arm_of(failure) for failure in failures]
    names = sorted({r.arm for r in records} | set(failed), key=lambda name: (name != reference, name))
    baseline = {task_of(r): r for r in records if r.arm == reference}
    return [_stats(name, [r for r in records if r.arm == name], quality, baseline, failed.count(name)) for name in names]


def arm_of(failure: Mapping[str, Any]) -> str:
    """The arm of a failure, also of one that was not written whole."""
    return str(failure.get("arm") or "unknown")


def _stats(
    name: str,
    records: Sequence[Record],
    quality: Sequence[Mapping[str, Any]],
    baseline: Mapping[Hashable, Record],
    num_failed: int,
) -> ArmStats:
    def mean(field: str) -> float:
        return _mean([getattr(r, field) for r in records])

    measured = _metric_means([row for row in quality if row["arm"] == name])
    latency = [r.latency_s for r in records] or [math.nan]
    device_s = mean("device_s")
    return ArmStats(
        arm=name,
        num_videos=len(records),
        num_failed=num_failed,
        busy_s=_mean([busy_s(r) for r in records]),
        latency_p50_s=float(np.percentile(latency, 50)),
        latency_p95_s=float(np.percentile(latency, 95)),
        videos_per_device_hour=3600.0 / device_s if device_s > 0 else 0.0,
        on_gpu=on_gpu(records),
        speedup=_speedup(records, baseline),
        psnr=measured.get("psnr"),
        ssim=measured.get("ssim"),
        quality=measured,
        tflops=mean_tflops(records),
        accelerators=_joined(r.accelerators for r in records),
        reconstructed=_joined(r.reconstructed for r in records),
        **{name: mean(name) for name in _MEANS},
        **{name: _mean(known) if (known := _known(records, name)) else None for name in _ATTENTION},
    )


def _joined(values: Iterable[str]) -> str:
    """Names joined by ``+``, each once."""
    return "+".join(dict.fromkeys(name for value in values for name in value.split("+") if name))


_MEANS = (
    *("density", "density_executed", "text_s", "sketch_s", "refine_s", "denoise_s", "decode_s", "encode_s"),
    *("restore_s", "latency_s", "device_s"),
)
_ATTENTION = ("sparsity", "recall", "choose_s", "attend_s")


def _known(records: Iterable[Record], name: str) -> list[float]:
    return [value for record in records if (value := getattr(record, name)) is not None]


def _speedup(records: Sequence[Record], baseline: Mapping[Hashable, Record]) -> float | None:
    shared = [r for r in records if task_of(r) in baseline]
    ours = sum(denoise_device_s(r) for r in shared)
    return sum(denoise_device_s(baseline[task_of(r)]) for r in shared) / ours if ours > 0 else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _metric_means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    found = {name: [row[name] for row in rows if row.get(name) is not None] for name in METRICS}
    return {name: float(np.mean(values)) for name, values in found.items() if values}


def arm_table(stats: Iterable[ArmStats], title: str | None = None) -> Table:
    """The table a sweep ends with. Seconds are per video; speedup is of denoising (device seconds) against the reference arm."""
    stats = list(stats)
    columns, rows = table_rows(stats, with_metrics=False)
    table = Table(title=title and Text(title), header_style="bold", box=box.SIMPLE_HEAD, padding=0)
    for column in columns:
        table.add_column(Text(column.replace(" ", "\n")), justify="left" if column == "arm" else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    table.caption = Text(told) if (told := reconstructed_told(stats)) else None
    return table


def table_rows(stats: Iterable[ArmStats], with_metrics: bool = True) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Column names and one row of cells per arm, for the report and, narrower, for the terminal.

    "n" is finished, or finished/attempted where an item was given up; "decode s" includes restored frames and
    the mp4; "GPU s" (on CPUs "rank s") is per video, and "videos /GPU-h" per hour of one GPU at work. Before these two come the
    other metrics, if wanted.
    """
    stats = list(stats)
    with_videos = [stat for stat in stats if stat.num_videos]
    of = work_unit(bool(with_videos) and all(stat.on_gpu for stat in with_videos))
    extra = _extra_columns(stats) if with_metrics else {}
    rows = [_cells(stat) for stat in stats]
    at = len(TABLE_COLUMNS)
    rows = [(*row[:at], *(_metric(stat, name) for name in extra), *row[at:]) for stat, row in zip(stats, rows, strict=True)]
    return (*TABLE_COLUMNS, *extra.values(), f"{of} s", f"videos /{of}-h"), rows


def _extra_columns(stats: Sequence[ArmStats]) -> dict[str, str]:
    """Metrics beyond PSNR and SSIM that some arm has, with their heads. Those of the prompt's attributes share one."""
    measured = {name for stat in stats for name in stat.quality}
    found = {name: METRICS[name].label for name in METRICS if name in measured - {"psnr", "ssim", *SEMANTIC}}
    if all(stat.quality.get("frames_ok", 1.0) == 1.0 for stat in stats):
        found.pop("frames_ok", None)
    return found | ({"semantic": "semantic"} if measured & set(SEMANTIC) else {})


def _metric(stat: ArmStats, name: str) -> str:
    if name != "semantic":
        return number(stat.quality.get(name), METRICS[name].form)
    shares = [stat.quality[attribute] for attribute in SEMANTIC if attribute in stat.quality]
    return number(_mean(shares) if shares else None, "{:.2f}")


TABLE_COLUMNS = ("arm", "n", "density", "text s", "sketch s", "refine s", "decode s", "speedup", "PSNR dB", "SSIM")
"""Those that are the same on every device."""


def _cells(stat: ArmStats) -> tuple[str, ...]:
    count = f"{stat.num_videos}" + (f"/{stat.num_videos + stat.num_failed}" if stat.num_failed else "")
    if not stat.num_videos:
        return (stat.marked, count, *[NO_VALUE] * len(TABLE_COLUMNS))
    return (
        stat.marked,
        count,
        f"{stat.density:.3f}",
        *(f"{s:.2f}" for s in (stat.text_s, stat.sketch_s, stat.refine_s, stat.ends_s)),
        number(stat.speedup, "{:.2f}x"),
        number(stat.psnr, "{:.2f}"),
        number(stat.ssim, "{:.3f}"),
        f"{stat.device_s:.2f}" if stat.device_s < 1000 else f"{stat.device_s:.0f}",
        f"{stat.videos_per_device_hour:.3g}" if stat.videos_per_device_hour < 100 else f"{stat.videos_per_device_hour:.0f}",
    )


def number(value: float | None, form: str) -> str:
    return NO_VALUE if value is None else form.format(value)
