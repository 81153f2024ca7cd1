"""Arms against a base: what differs, how surely, which are on the Pareto front, and what cannot be compared and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from experiments.compare import stats
from experiments.compare.arms import Arm, Key, arms_of, metric_of
from experiments.compare.notes import notes_on
from experiments.compare.pairing import Pairing, pair
from experiments.compare.sources import Run
from experiments.compare.stats import Estimate, Paired, Values
from experiments.metrics.names import GROUPS, METRICS, Metric
from experiments.summary import busy_s, denoise_device_s, mean_tflops
from orchestrator.mistakes import ConfigError, unknown
from orchestrator.types import Record

PREFERRED = ("vbench.total", "vbench.i2v.total", "lpips", "ssim", "psnr", "latent_cosine", "vbench.quality", "flicker")
"""Quality of the Pareto front, the first that there is, where no metric is named; totals of other suites go before all."""


@dataclass(frozen=True)
class Figure:
    """One metric of one arm: its mean, or VBench's score, and how it differs from the base's on what both have."""

    mean: float
    estimate: Estimate | None
    """Of the mean over videos; None for a score of the arm as a whole."""
    difference: Paired | None


@dataclass(frozen=True)
class Compared:
    """An arm as a row. Speedups are of seconds on the prompts and seeds that the base has too; None where it has none."""

    arm: Arm
    is_base: bool
    speedup: Estimate | None
    """Of denoising, in device seconds."""
    work_speedup: Estimate | None
    """Of all the work on a video: text, denoising, decoding and mp4."""
    operations: float | None
    """Of denoising, executed: a share of the base's."""
    figures: Mapping[str, Figure]
    comparable: bool
    """With the base; an arm of other prompts or another shape is not."""
    on_front: bool


@dataclass(frozen=True)
class Comparison:
    """``quality`` names the metric of the Pareto front against median latency; None: there was nothing to take."""

    base: Arm | None
    rows: tuple[Compared, ...]
    metrics: Mapping[str, Metric]
    quality: str | None
    notes: tuple[str, ...]
    """What the figures do not say by themselves, the gravest first."""

    @property
    def counts_operations(self) -> bool:
        """Whether any record says how many it executed."""
        return any(row.operations for row in self.rows)

    @property
    def tells_attention(self) -> bool:
        """Whether any arm left out some of it."""
        return any(row.arm.stats.sparsity is not None for row in self.rows)


def compare(runs: Sequence[Run], base: str | None = None, metrics: Sequence[str] = ()) -> Comparison:
    """The base first, then run by run. ``base``: an arm, or RUN/ARM; None: the runs' own reference, else the first full run.

    Raises ConfigError without any arm, and for a base or a metric that there is not, with the choices.
    """
    arms, troubles = arms_of(runs), [run.trouble for run in runs if run.trouble]
    if not arms:
        nothing = f"{', '.join(run.where for run in runs)}: nothing to compare, no item is finished or given up"
        raise ConfigError([nothing, *troubles])
    chosen = choose_base(arms, base)
    names = choose_metrics(arms, metrics)
    pairings = {arm.label: pair(arm, chosen) for arm in arms} if chosen else {}
    comparable = [arm for arm in arms if not chosen or pairings[arm.label].keys]
    quality = _quality(comparable, names, asked=bool(metrics))
    front = front_of(comparable, lambda arm: arm.stats.latency_p50_s, quality)
    on_front = {arm.label: kept for arm, kept in zip(comparable, front, strict=True)}
    ordered = sorted(arms, key=lambda arm: arm is not chosen)
    rows = tuple(_row(arm, chosen, pairings.get(arm.label), names, on_front.get(arm.label)) for arm in ordered)
    notes = (*troubles, *notes_on(arms, chosen, pairings))
    return Comparison(chosen, rows, {name: metric_of(name) for name in names}, quality, notes)


def choose_base(arms: Sequence[Arm], name: str | None) -> Arm | None:
    """A bare name is the first run's that has it. None for runs without a reference and without a full run."""
    named = [arm for arm in arms if name in (arm.label, arm.name)]
    if name is not None:
        if not named:
            raise ConfigError([unknown("--base", name, tuple(arm.label for arm in arms))])
        return next((arm for arm in named if arm.label == name), named[0])
    own = [arm for arm in arms if arm.name == arm.run.reference]
    full = [arm for arm in arms if any(record.planner == "full" for record in arm.records.values())]
    return next(iter((*own, *full)), None)


def choose_metrics(arms: Sequence[Arm], names: Sequence[str]) -> tuple[str, ...]:
    """Those that are named, by themselves or by group, or all that any arm has. Raises ConfigError with the choices."""
    own = [name for name in METRICS if any(name in arm.videos for arm in arms)]
    known = list(dict.fromkeys((*own, *(name for arm in arms for name in (*arm.scores, *arm.videos)))))
    groups = _groups(known)
    if wrong := [name for name in names if name not in known and name not in groups]:
        if not known:
            raise ConfigError([f"--metrics {','.join(names)}: no metric was measured; `dvg metrics RUN` measures some"])
        raise ConfigError([unknown("--metrics", name, (*groups, *known)) for name in wrong])
    return tuple(dict.fromkeys(each for name in names or known for each in groups.get(name, (name,))))


def _groups(known: Sequence[str]) -> dict[str, list[str]]:
    """Names that stand for several: those of the project's metrics, and each suite for its scores; none that stands for none."""
    found = {group: [name for name in known if name in members] for group, members in GROUPS.items() if group != "all"}
    for name in known:
        for group in {name.partition(".")[0], name.rpartition(".")[0]} - {name, ""}:
            found.setdefault(group, []).append(name)
    return {group: members for group, members in found.items() if members}


def _quality(arms: Sequence[Arm], names: Sequence[str], asked: bool) -> str | None:
    """A metric that tells better from worse, of at least two arms (a reference has its own quality)."""
    order = names if asked else sorted(names, key=_rank)
    usable = [n for n in order if metric_of(n).better and sum(not math.isnan(goodness(arm, n)) for arm in arms) > 1]
    return usable[0] if usable else None


def _rank(name: str) -> int:
    return PREFERRED.index(name) if name in PREFERRED else -1 if name.endswith(".total") else len(PREFERRED)


def goodness(arm: Arm, name: str) -> float:
    """The arm's metric with its sign turned so that higher is better; NaN where it was not measured.

    An arm that the others are measured against is as close to itself as can be: infinitely good.
    """
    metric = metric_of(name)
    value = _mean(arm, name)
    if value is None:
        is_reference = metric.of_reference and any(row.get("reference_arm") == arm.name for row in arm.run.quality)
        return math.inf if is_reference else math.nan
    return -value if metric.better == "lower" else value


def front_of(arms: Sequence[Arm], cost: Callable[[Arm], float], quality: str | None) -> list[bool]:
    """Which arms nobody beats in both a cost and the quality; none without a quality."""
    if quality is None:
        return [False] * len(arms)
    return stats.pareto([(cost(arm), goodness(arm, quality)) for arm in arms])


def _row(arm: Arm, base: Arm | None, pairing: Pairing | None, names: Iterable[str], on_front: bool | None) -> Compared:
    """``on_front`` None: the arm is not comparable."""
    figures = {name: figure for name in names if (figure := _figure(arm, base, pairing, name))}
    return Compared(
        arm=arm,
        is_base=arm is base,
        speedup=_speedup(arm, base, pairing, denoise_device_s),
        work_speedup=_speedup(arm, base, pairing, busy_s),
        operations=_operations(arm, base, pairing),
        figures=figures,
        comparable=on_front is not None,
        on_front=bool(on_front),
    )


def _speedup(arm: Arm, base: Arm | None, pairing: Pairing | None, seconds: Callable[[Record], float]) -> Estimate | None:
    if base is None or pairing is None:
        return None
    return stats.ratio(*({key: seconds(a.records[key]) for key in pairing.keys} for a in (base, arm)))


def _operations(arm: Arm, base: Arm | None, pairing: Pairing | None) -> float | None:
    """Over the videos that both have; None where a record does not say."""
    if base is None or pairing is None:
        return None
    ours, theirs = (mean_tflops(one.records[key] for key in pairing.keys) for one in (arm, base))
    return ours / theirs if ours and theirs else None


def _figure(arm: Arm, base: Arm | None, pairing: Pairing | None, name: str) -> Figure | None:
    mean = _mean(arm, name)
    if mean is None:
        return None
    values = arm.videos.get(name, {})
    estimate = stats.mean_of(values) if name not in arm.scores else None
    return Figure(mean, estimate, _difference(arm, base, pairing, name))


def _difference(arm: Arm, base: Arm | None, pairing: Pairing | None, name: str) -> Paired | None:
    if base is None or pairing is None or arm is base:
        return None
    ours, theirs = (_of(each.videos.get(name, {}), pairing.keys) for each in (arm, base))
    return stats.paired(ours, theirs, "lower" if metric_of(name).better == "lower" else "higher")


def _of(values: Values, keys: Iterable[Key]) -> Values:
    return {key: values[key] for key in keys if key in values}


def _mean(arm: Arm, name: str) -> float | None:
    if name in arm.scores:
        return arm.scores[name]
    values = arm.videos.get(name)
    return math.fsum(values.values()) / len(values) if values else None
