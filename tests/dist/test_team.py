"""The ranks of a slice find out that they were given different work before any of them begins."""

from __future__ import annotations

from typing import Any

from parallel.errors import GroupMismatch
from parallel.groups import Groups
from parallel.layout import Layout
from parallel.native import Native
from stages.worker import Team, _shared
from tests.dist.gang import Gang


class Attached:
    """Of a model: to what it was attached."""

    def __init__(self) -> None:
        self.to: list[bool] = []

    def attach(self, layout: Layout | None, exchange: Any) -> None:
        self.to.append(layout is not None)


def begun(groups: Groups, works: list[str]) -> tuple[str, list[bool]]:
    """What a rank is told, and what became of its model."""
    model: Any = Attached()
    try:
        with _shared(model, Team(groups, Native(), 0, 4), 1, works[groups.rank]):
            return "", list(model.to)
    except GroupMismatch as problem:
        return str(problem), model.to


def test_different_work_is_refused_on_all_ranks_before_it_begins(gang: Gang) -> None:
    for told, attached in gang.run(begun, ["clip a", "clip a", "clip b", "clip a"]):
        assert "rank 2: clip b" in told
        assert attached == []


def test_equal_work_is_begun_by_all(gang: Gang) -> None:
    assert gang.run(begun, ["clip a"] * 4) == [("", [True])] * 4
