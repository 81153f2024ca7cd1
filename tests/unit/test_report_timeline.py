"""Timelines of a report: what the event log says that every rank did, drawn without loss or overlap."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.report.spans import Log, Span, read_logs
from experiments.report.timeline import LEFT, MOST_BARS, RIGHT, WIDTH, timeline
from orchestrator import eventlog, events
from orchestrator.types import Action, Clip, Decision, Item, Slice, Stage

COLOURS = {"full": 0, "dvg": 1}
DECISION = Decision(Action("full", (Stage((1, 2, 2), 4, 3.0),), 1.0), "")


def line(event: events.Event, *commands: events.Command, start: int = 1) -> dict[str, object]:
    return {**eventlog.row(event, list(commands)), "start": start}


def item(key: str, arm: str = "dvg") -> Item:
    return Item(key, arm, f"prompt-{key}", "words", 3)


def whole_log() -> list[dict[str, object]]:
    """A pod of two ranks: one clip on both, whose first attempt is lost with rank 1; one that fails; one under way at the end."""
    both, first = Slice("pod-0", 0, 2), Slice("pod-0", 0, 1)
    return [
        line(events.Arrived(0.0, item("a"))),
        line(events.Arrived(0.0, item("b", "full"))),
        line(events.WorkerJoined(1.0, "sketch", "sketch-0"), events.StartSketch("a", 1, "sketch-0")),
        line(events.WorkerJoined(1.5, "pod", "pod-0", 2)),
        line(events.Sketched(3.0, "a", 1, DECISION, {}), events.StartPhase("a", 1, both, 1, 4)),
        line(events.WorkerLost(5.0, "pod-0", "SIGKILL", (1,)), events.StartPhase("a", 2, first, 1, 4)),
        line(events.PhaseDone(9.0, "a", 2, 4, {}), events.StartPhase("b", 1, first, 0, 1)),
        line(events.Failed(10.0, "b", 1, "refine", "out of memory"), events.StartPhase("b", 2, first, 0, 1)),
        line(events.WorkerJoined(10.5, "decode", "decode-0"), events.StartDecode("a", 2, "decode-0")),
        line(events.Decoded(12.0, "a", 2, Clip("v.mp4", 1, ""))),
    ]


def test_every_turn_is_told_with_its_ranks_times_and_end() -> None:
    (log,) = read_logs(whole_log())
    found = [(s.kind, s.lanes, s.from_s, s.to_s, s.arm, s.trouble) for s in log.spans]
    one, both = (("pod-0", 0),), (("pod-0", 0), ("pod-0", 1))
    assert found == [
        ("sketch", (("sketch-0", 0),), 1.0, 3.0, "dvg", ""),
        ("refine", both, 3.0, 5.0, "dvg", "pod-0 was lost: SIGKILL"),
        ("refine", one, 5.0, 9.0, "dvg", ""),
        ("refine", one, 9.0, 10.0, "full", "out of memory"),
        ("decode", (("decode-0", 0),), 10.5, 12.0, "dvg", ""),
        ("refine", one, 10.0, 12.0, "full", "not finished"),
    ]
    assert log.spans[2].what == "prompt-a seed 3, stages 2 to 4, attempt 2"
    assert log.lanes["pod-0", 1] == [(1.5, 5.0)], "a dead rank is not idle"
    assert log.lanes["pod-0", 0] == [(1.5, 12.0)]


def test_starts_of_a_run_are_timelines_of_their_own() -> None:
    again = [{**row, "start": 2} for row in whole_log()]
    first, second = read_logs([*whole_log(), *again])
    assert first == second


def test_a_bar_is_as_high_as_its_slice_and_what_came_to_nothing_is_marked() -> None:
    (log,) = read_logs(whole_log())
    chart = timeline("", log, COLOURS)
    assert chart is not None
    assert [row.label for row in chart.rows] == ["sketch-0", "pod-0 · 0", "pod-0 · 1", "decode-0"]
    y = {row.label: row.y for row in chart.rows}
    wide = next(bar for bar in chart.bars if "lost" in bar.title)
    assert (wide.y, wide.y + wide.height) == (y["pod-0 · 0"], y["pod-0 · 1"] + chart.rows[0].height)
    assert wide.is_broken
    assert [bar.is_broken for bar in chart.bars].count(True) == 3
    assert [row.busy for row in chart.rows] == ["18%", "38%", "0%", "100%"]


def test_nobody_at_work_is_no_timeline() -> None:
    assert timeline("", Log(), COLOURS) is None
    (log,) = read_logs([line(events.WorkerJoined(1.0, "pod", "pod-0", 2))])
    assert timeline("", log, COLOURS) is None


turns = st.lists(st.tuples(st.integers(0, 3), st.floats(0.1, 20), st.floats(0, 5), st.sampled_from(["full", "dvg"])), max_size=60)


def drawn_log(pieces: list[tuple[int, float, float, str]]) -> Log:
    """Turns of single ranks, each after the one before on its rank."""
    log, at = Log(kinds={"pod-0": "pod"}), [0.0] * 4
    for rank, length, pause, arm in pieces:
        start = at[rank] + pause
        at[rank] = start + length
        log.spans.append(Span("refine", (("pod-0", rank),), start, at[rank], arm, "x"))
    log.end_s = max(at)
    log.lanes = {("pod-0", rank): [(0.0, log.end_s)] for rank in range(4)}
    return log


@given(turns)
def test_bars_lie_within_the_frame_and_on_their_rank_and_never_overlap(pieces: list[tuple[int, float, float, str]]) -> None:
    chart = timeline("", drawn_log(pieces), COLOURS)
    bars = chart.bars if chart else ()
    assert len(bars) == len(pieces)
    for bar in bars:
        assert LEFT <= bar.x <= bar.x + bar.width <= WIDTH - RIGHT + 0.7
    for one, two in pairwise(bars):
        assert one.y != two.y or one.x + one.width <= two.x + 0.7


@pytest.mark.parametrize("num", [100, 3 * MOST_BARS])
def test_a_long_run_is_drawn_in_few_bars_that_cover_the_same_time(num: int) -> None:
    log = drawn_log([(index % 4, 1.0, 0.001, "dvg" if index % 3 else "full") for index in range(num)])
    chart = timeline("", log, COLOURS)
    assert chart is not None
    assert len(chart.bars) <= min(num, MOST_BARS)
    drawn = sum(bar.width for bar in chart.bars)
    present = sum(width for row in chart.rows for _, width in row.present)
    assert drawn == pytest.approx(present, rel=0.05)
    assert ("drawn as" in chart.note) == (num > MOST_BARS)
