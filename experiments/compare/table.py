"""A comparison in the terminal: what arms cost, how good their videos are, VBench, and what to keep in mind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from experiments.compare import cells
from experiments.compare.cells import Verdict
from experiments.compare.comparison import Compared, Comparison
from experiments.summary import NO_VALUE, reconstructed_told, work_unit

WIDE = 120
"""Columns of a terminal that has room for more than what is asked for most."""
FRONT = "*"
STYLES: dict[Verdict, str] = {"better": "green", "worse": "red", "": ""}
MARKS: dict[Verdict, str] = {"better": "+", "worse": "-", "": " "}
_NAME_CHARS, _ARM_CHARS = 28, 13
"""Of a matrix of scores: its first column, and about what an arm's takes."""


def tables(comparison: Comparison, width: int) -> Iterable[Table | Text]:
    """For a terminal of ``width`` columns, in order."""
    yield cost_table(comparison, width >= WIDE)
    yield Text(legend(comparison), style="dim")
    if own := [name for name in comparison.metrics if "." not in name]:
        yield quality_table(comparison, own, width >= WIDE)
    if scores := [name for name in comparison.metrics if "." in name]:
        yield from score_tables(comparison, scores, width)
    for note in comparison.notes:
        yield Text(f"note: {note}", style="yellow")


def cost_table(comparison: Comparison, wide: bool) -> Table:
    """One row per arm. Seconds are per video."""
    of = work_unit(all(row.arm.stats.on_gpu for row in comparison.rows if row.arm.records))
    quality = [comparison.metrics[comparison.quality].label, "front"] if comparison.quality else []
    more = ["executed", "TFLOP", "work speedup", "work s"] if wide else []
    ops = ["ops"] if comparison.counts_operations else []
    if wide and comparison.tells_attention:
        more += ["sparsity", "recall"]
    names = ["n", "density", *ops, "speedup", "p50 s", "p95 s", f"{of} s", f"videos /{of}-h", *more, *quality]
    table = _table()
    table.add_column("arm", overflow="fold")
    for name in names:
        table.add_column(Text(name.replace(" ", "\n")), justify="right", no_wrap=True)
    for row in comparison.rows:
        extra = _more(row, comparison.tells_attention) if wide else []
        table.add_row(*_cost(row, wide, bool(ops)), *extra, *_front(row, comparison), style="bold" if row.is_base else None)
    return table


def _cost(row: Compared, wide: bool, with_ops: bool) -> list[str | Text]:
    stats = row.arm.stats
    if not stats.num_videos:
        return [Text(cells.label(row)), cells.count(row), *[NO_VALUE] * (6 + with_ops)]
    speedup = cells.plain(row.speedup.mean if row.speedup else None, "{:.2f}x")
    told = cells.with_interval(speedup, row.speedup, "{:.2f}") if wide and not row.is_base else speedup
    return [
        Text(cells.label(row)),
        cells.count(row),
        cells.plain(stats.density, "{:.3f}"),
        *([cells.plain(row.operations, "{:.3f}")] if with_ops else []),
        Text(told, STYLES[cells.speed_verdict(row.speedup)]),
        cells.seconds(stats.latency_p50_s),
        cells.seconds(stats.latency_p95_s),
        cells.seconds(stats.device_s),
        cells.rate(stats.videos_per_device_hour),
    ]


def _more(row: Compared, with_attention: bool) -> list[str]:
    speedup = row.work_speedup.mean if row.work_speedup else None
    executed = cells.plain(row.arm.stats.density_executed, "{:.3f}")
    told = [executed, cells.operations(row), cells.plain(speedup, "{:.2f}x"), cells.seconds(row.arm.stats.busy_s)]
    return [*told, *([cells.sparsity(row), cells.recall(row)] if with_attention else [])]


def _front(row: Compared, comparison: Comparison) -> list[str]:
    """The quality of the front, and whether the arm is on it; nothing where there is no front."""
    if comparison.quality is None:
        return []
    figure = row.figures.get(comparison.quality)
    return [
        cells.plain(figure.mean if figure else None, comparison.metrics[comparison.quality].form),
        FRONT if row.on_front else "",
    ]


def legend(comparison: Comparison, mark: str = FRONT) -> str:
    base = f"against {comparison.base.label}: " if comparison.base else ""
    told = f"{base}speedup of denoising on the prompts and seeds that both have; [95 % intervals] resample prompts"
    if comparison.counts_operations:
        told += f"; ops: executed operations of denoising, as a share{' of that' if comparison.base else ''}"
    if comparison.tells_attention:
        told += "; sparsity: pairs of tokens that attention left out; recall: dense attention's weight on those kept"
    if reconstructed := reconstructed_told(row.arm.stats for row in comparison.rows):
        told += f"; {reconstructed}"
    if comparison.quality:
        told += f"; front {mark}: no arm beats it in both p50 and {comparison.metrics[comparison.quality].label}"
    return told


def quality_table(comparison: Comparison, names: Sequence[str], wide: bool) -> Table:
    """One row per metric and arm, metric by metric."""
    table = _table()
    table.add_column("metric", overflow="fold")
    table.add_column("arm", overflow="fold")
    base = comparison.base.label if comparison.base else "base"
    for name in ("mean", f"less {base}" if wide else "difference", "wins", *(["pairs", "better"] if wide else [])):
        table.add_column(Text(name), justify="right", no_wrap=True)
    for name in names:
        for index, row in enumerate(row for row in comparison.rows if name in row.figures):
            label = Text(comparison.metrics[name].label if index == 0 else "")
            told = _quality(row, comparison, name, wide)
            table.add_row(label, Text(row.arm.label), *told, style="bold" if row.is_base else None)
        table.add_section()
    return table


def _quality(row: Compared, comparison: Comparison, name: str, wide: bool) -> list[str | Text]:
    metric, figure = comparison.metrics[name], row.figures[name]
    found = figure.difference
    told = Text(cells.difference(found, metric), STYLES[cells.verdict(found, metric)])
    more = [str(found.n) if found else "", metric.better or "–"] if wide else []
    return [cells.mean(figure, metric), told, cells.wins(found, metric), *more]


def score_tables(comparison: Comparison, names: Sequence[str], width: int) -> Iterable[Table | Text]:
    """One row per score, one column per arm, as many arms at once as there is room for."""
    rows = [row for row in comparison.rows if any(name in row.figures for name in names)]
    room = max(1, (width - _NAME_CHARS) // _ARM_CHARS)
    for start in range(0, len(rows), room):
        yield _matrix(comparison, names, rows[start : start + room])
    if any(figure.difference for row in rows for name in names if (figure := row.figures.get(name))):
        yield Text("+ better, - worse than the base: the 95 % interval of the paired difference leaves out 0", style="dim")


def _matrix(comparison: Comparison, names: Sequence[str], rows: Sequence[Compared]) -> Table:
    table = _table()
    table.add_column("score", overflow="fold")
    for row in rows:
        table.add_column(Text(row.arm.label), justify="right", overflow="fold")
    for name in names:
        table.add_row(Text(comparison.metrics[name].label), *(_score(row, comparison, name) for row in rows))
    return table


def _score(row: Compared, comparison: Comparison, name: str) -> Text:
    metric, figure = comparison.metrics[name], row.figures.get(name)
    if figure is None:
        return Text(f"{NO_VALUE} ")
    found = cells.verdict(figure.difference, metric)
    return Text(f"{metric.form.format(figure.mean)}{MARKS[found]}", STYLES[found])


def _table() -> Table:
    return Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
