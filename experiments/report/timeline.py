"""GPU timeline as geometry: a lane per rank, a bar per turn of a slice, idle time shaded. Coordinates in SVG pixels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from experiments.report.charts import Tick, ticks
from experiments.report.spans import Lane, Log, Span

WIDTH, LEFT, RIGHT = 1180, 92, 54
TOP, BOTTOM = 6, 40
MOST_BARS = 6000
MOST_LANES = 160
LINE = 10.0
"""Least height of a lane with a name of its own."""
ORDER = {"sketch": 0, "pod": 1, "decode": 2}
UNITS = ((3 * 86400.0, 3600.0, "hours"), (5400.0, 3600.0, "hours"), (240.0, 60.0, "minutes"), (0.0, 1.0, "seconds"))
"""From so many seconds on, seconds in a unit, its name."""


@dataclass(frozen=True)
class Bar:
    """One turn, or several close together, in the colour of the arm that took most of the time."""

    x: float
    y: float
    width: float
    height: float
    kind: str
    colour: int
    title: str
    is_broken: bool = False


@dataclass(frozen=True)
class Row:
    """One rank: its name, the times when it was there, and its share of them at work."""

    label: str
    y: float
    height: float
    present: tuple[tuple[float, float], ...]
    """(x, width)."""
    busy: str


@dataclass(frozen=True)
class Timeline:
    title: str
    rows: tuple[Row, ...]
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    unit: str
    height: int
    note: str
    width: int = WIDTH
    left: int = LEFT
    right: int = WIDTH - RIGHT
    bottom: int = 0

    @property
    def has_broken(self) -> bool:
        return any(bar.is_broken for bar in self.bars)


@dataclass(frozen=True)
class _Frame:
    """Where lanes and seconds lie."""

    span_s: float
    y: Mapping[Lane, float]
    height: float

    def x(self, at_s: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * at_s / self.span_s, 2)


def timeline(title: str, log: Log, colours: Mapping[str, int]) -> Timeline | None:
    """None for a start in which nobody worked."""
    if not log.spans or not log.lanes or log.end_s <= 0:
        return None
    names = _ordered(log)
    height = 18.0 if len(names) <= 24 else 12.0 if len(names) <= 64 else 7.0
    unit_s, unit = next((size, name) for least, size, name in UNITS if log.end_s >= least)
    marks = [value for value in ticks([0.0, log.end_s / unit_s], about=8) if value * unit_s <= log.end_s * 1.02]
    frame = _Frame(max(log.end_s, marks[-1] * unit_s), _places(names[:MOST_LANES], height), height)
    bottom = max(frame.y.values()) + height + 4
    shown = [span for span in log.spans if any(lane in frame.y for lane in span.lanes)]
    bars = _bars(shown, frame, colours)
    return Timeline(
        title=title,
        rows=tuple(_row(lane, log, frame) for lane in names[:MOST_LANES]),
        bars=tuple(bars),
        ticks=tuple(Tick(frame.x(value * unit_s), f"{value:g}") for value in marks),
        unit=f"{unit} since the start",
        height=round(bottom) + BOTTOM,
        note=_note(log, names, len(shown), len(bars)),
        bottom=round(bottom),
    )


def _ordered(log: Log) -> list[Lane]:
    """Sketch workers, pods, decode workers; each kind in the order of joining."""
    return sorted(log.lanes, key=lambda lane: ORDER.get(log.kinds[lane[0]], 3))


def _places(names: Sequence[Lane], height: float) -> dict[Lane, float]:
    """Ranks of a pod lie close together, workers apart."""
    places: dict[Lane, float] = {}
    y, before = float(TOP), ""
    for lane in names:
        y += (height + (1 if lane[0] == before else 5)) if places else 0
        places[lane], before = round(y, 1), lane[0]
    return places


def _row(lane: Lane, log: Log, frame: _Frame) -> Row:
    """Of ranks too low for a line of text, the first speaks for its worker."""
    worker, rank = lane
    windows = log.lanes[lane]
    present = tuple((frame.x(start), round(frame.x(end) - frame.x(start), 2)) for start, end in windows)
    if frame.height >= LINE:
        label = f"{worker} · {rank}" if log.kinds[worker] == "pod" else worker
        return Row(label, frame.y[lane], frame.height, present, _busy([lane], log))
    mine = [other for other in log.lanes if other[0] == worker] if rank == 0 else []
    return Row(worker if mine else "", frame.y[lane], frame.height, present, _busy(mine, log) if mine else "")


def _busy(lanes: Sequence[Lane], log: Log) -> str:
    there_s = sum(end - start for lane in lanes for start, end in log.lanes[lane])
    spans = [span for span in log.spans if span.lanes[0][0] == lanes[0][0] and not span.trouble]
    busy_s = sum((span.to_s - span.from_s) * len(set(span.lanes) & set(lanes)) for span in spans)
    return f"{busy_s / there_s:.0%}" if there_s > 0 else "–"


def _bars(spans: Sequence[Span], frame: _Frame, colours: Mapping[str, int]) -> list[Bar]:
    """One per span; of more than ``MOST_BARS``, neighbours of one slice that no pixel separates become one."""
    groups = [[span] for span in sorted(spans, key=lambda span: (span.lanes, span.from_s))]
    gap_s = 0.25 * frame.span_s / (WIDTH - LEFT - RIGHT)
    while len(groups) > MOST_BARS:
        groups = _joined(groups, gap_s)
        gap_s *= 2
    return [_bar(group, frame, colours) for group in groups]


def _joined(groups: Iterable[list[Span]], gap_s: float) -> list[list[Span]]:
    joined: list[list[Span]] = []
    for group in groups:
        last = joined[-1] if joined else None
        if last and last[-1].lanes == group[0].lanes and group[0].from_s - last[-1].to_s <= gap_s:
            last += group
        else:
            joined.append([*group])
    return joined


def _bar(group: Sequence[Span], frame: _Frame, colours: Mapping[str, int]) -> Bar:
    first, last = group[0], group[-1]
    ys = [frame.y[lane] for lane in first.lanes if lane in frame.y]
    x = frame.x(first.from_s)
    spent_s = dict.fromkeys((span.arm for span in group), 0.0)
    for span in group:
        spent_s[span.arm] += span.to_s - span.from_s
    bar = Bar(
        x=x,
        y=min(ys),
        width=max(round(frame.x(last.to_s) - x, 2), 0.6),
        height=round(max(ys) - min(ys) + frame.height, 1),
        kind=first.kind,
        colour=colours.get(max(spent_s, key=lambda arm: spent_s[arm]), 0),
        title=_title(first),
        is_broken=any(span.trouble for span in group),
    )
    if len(group) == 1:
        return bar
    told = f"{len(group)} × {first.kind}, {first.from_s:.1f} to {last.to_s:.1f} s: {', '.join(sorted(spent_s))}"
    return replace(bar, title=told)


def _title(span: Span) -> str:
    on = f" on {len(span.lanes)} ranks" if len(span.lanes) > 1 else ""
    told = f"{span.kind}{on}: {span.arm}, {span.what}; {span.from_s:.1f} to {span.to_s:.1f} s ({span.to_s - span.from_s:.1f} s)"
    return told + (f"; {span.trouble}" if span.trouble else "")


def _note(log: Log, names: Sequence[Lane], num_spans: int, num_bars: int) -> str:
    pods = [lane for lane in names if log.kinds[lane[0]] == "pod"]
    heavy = [span for span in log.spans if log.kinds.get(span.lanes[0][0]) == "pod" and not span.trouble]
    told = []
    if heavy:
        window_s = max(span.to_s for span in heavy) - min(span.from_s for span in heavy)
        spent_s = sum(len(span.lanes) * (span.to_s - span.from_s) for span in heavy)
        share = spent_s / (window_s * len(pods)) if window_s > 0 else 0.0
        told.append(f"The pods' {len(pods)} ranks held clips for {share:.0%} of the time from their first phase to their last.")
    if num_bars < num_spans:
        told.append(f"{num_spans:,} turns are drawn as {num_bars:,} bars: of neighbours, in the colour of what took most time.")
    if len(names) > MOST_LANES:
        told.append(f"{len(names) - MOST_LANES} more workers are not drawn.")
    return " ".join(told)
