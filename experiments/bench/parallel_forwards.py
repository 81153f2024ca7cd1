"""Forwards at every width: their seconds, switching between widths, equality to one rank, and where the time goes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.bench.parallel_cases import (
    LOCAL,
    NATIVE,
    PEER,
    about_s,
    cases,
    degrees,
    odd_and_small,
    sent_bytes,
    settled,
    traced_grids,
)
from experiments.bench.parallel_models import Exchanges, Loaded
from experiments.bench.parallel_rig import Rig, Row
from experiments.bench.parallel_trace import traced
from stages import compiling

SWITCH_TOKENS = 4_000
"""About as many on the grid on which widths are changed: short, so that what a change costs is seen."""


def forwards(rig: Rig, found: Loaded, exchanges: Exchanges) -> None:
    """Every grid at every degree with every exchange, one branch."""
    for grid, degree, name in cases(found.subject, rig.num_ranks, exchanges.found):
        tokens = found.subject.tokens(grid)
        row = {"section": "forwards", **_what(found, grid, degree, name)}
        refusal = exchanges.refusal(name, found, grid, degree)
        if refusal is not None:
            rig.keep({**row, "refused": refusal})
            continue
        wait_s = about_s(found.subject.geometry, tokens, degree)
        rig.attempt(row, wait_s, lambda: _timed(rig, found, exchanges, row))  # noqa: B023 - called at once
    found.model.attach(None, None)


def _what(found: Loaded, grid: Any, degree: int, name: str) -> Row:
    tokens = found.subject.tokens(grid)
    return {"model": found.subject.name, "grid": grid, "tokens": tokens, "degree": degree, "backend": name}


def _timed(rig: Rig, found: Loaded, exchanges: Exchanges, row: Row, num_branches: int = 1) -> Row:
    layout = rig.layout(row["degree"], num_branches if row.get("split") else 1)
    found.model.attach(layout, None if layout is None else exchanges[row["backend"]])
    timed = rig.timed(found.forward(row["grid"], num_branches), row["degree"])
    return {**timed, "graphs": compiling.num_graphs()}


def guided(rig: Rig, found: Loaded, exchanges: Exchanges) -> None:
    """A step of two branches: one after the other on all ranks, or each on half of them."""
    name = settled(exchanges.found)
    for grid in found.subject.grids[:2]:
        for degree in degrees(rig.num_ranks):
            for split in (False,) if degree == 1 else (True, False) if degree == rig.num_ranks else (True,):
                row = {"section": "guided", **_what(found, grid, degree, name), "split": split}
                wait_s = 2 * about_s(found.subject.geometry, row["tokens"], degree)
                rig.attempt(row, wait_s, lambda: _timed(rig, found, exchanges, row, 2))  # noqa: B023 - called at once
    found.model.attach(None, None)


def switch(rig: Rig, found: Loaded, exchanges: Exchanges) -> None:
    """Up and down through all widths on the model as it is: what each change costs before and in its first forward."""
    grid = min(found.subject.grids, key=lambda grid: abs(found.subject.tokens(grid) - SWITCH_TOKENS))
    row = {"section": "switch", **_what(found, grid, 0, settled(exchanges.found))}
    rig.attempt(row, 20.0, lambda: {"changes": list(_changes(rig, found, exchanges, grid)), "graphs": compiling.num_graphs()})
    found.model.attach(None, None)


def _changes(rig: Rig, found: Loaded, exchanges: Exchanges, grid: Any) -> Iterator[Row]:
    widths, exchange = degrees(rig.num_ranks), exchanges[settled(exchanges.found)]
    forward = found.forward(grid)
    for degree in widths:  # so that each has been used before: compiled, recorded
        found.model.attach(rig.layout(degree), exchange if degree > 1 else None)
        for _ in range(3):
            forward()
    before = widths[-1]
    for degree in (*widths, *reversed(widths[:-1])):
        rig.settle()
        started_s = time.perf_counter()
        found.model.attach(None, None)
        layout = rig.layout(degree)
        found.model.attach(layout, exchange if layout is not None else None)
        attached_s = time.perf_counter()
        if layout is not None:
            layout.whole.agree(f"{degree} ranks on {grid}")
        agreed_s = time.perf_counter()
        rig.settle()
        (first_s,), steady_s = rig.series(forward, 1), statistics.median(rig.series(forward, 5))
        figures = {"attach_ms": attached_s - started_s, "agree_ms": agreed_s - attached_s, "first_more_ms": first_s - steady_s}
        worst = {key: 1e3 * max(rig.gather(value)) for key, value in figures.items()}
        yield {"from": before, "to": degree, **worst, "steady_s": max(rig.gather(steady_s))}
        before = degree


def equality(rig: Rig, found: Loaded, exchanges: Exchanges) -> None:
    """Relative distance to one rank's velocity at every degree with every exchange, and of attention that stays local."""
    for grid in odd_and_small(found.subject):
        row = {"section": "equality", **_what(found, grid, 1, NATIVE)}
        expected: list[Tensor] = []
        wait_s = about_s(found.subject.geometry, row["tokens"], 1)
        rig.attempt(row, wait_s, lambda: _kept(rig, found, grid, expected))  # noqa: B023 - called at once
        if not expected:
            continue
        for degree in degrees(rig.num_ranks)[1:]:
            for name in (*exchanges.found, LOCAL):
                row = {"section": "equality", **_what(found, grid, degree, name)}
                if exchanges.refusal(name, found, grid, degree) is None:
                    rig.attempt(row, wait_s, lambda: _distance(rig, found, exchanges, row, expected[0]))  # noqa: B023
    found.model.attach(None, None)


def _kept(rig: Rig, found: Loaded, grid: Any, into: list[Tensor]) -> Row:
    """One rank's velocity, and how far from it the others, each by itself, found theirs."""
    found.model.attach(None, None)
    mine = found.forward(grid)().contiguous().clone()
    first = mine.clone()
    dist.broadcast(first, src=0)
    into.append(mine)
    apart = float((mine - first).norm() / first.norm())
    return {"apart": max(rig.gather(apart)), "is_finite": bool(mine.isfinite().all())}


def _distance(rig: Rig, found: Loaded, exchanges: Exchanges, row: Row, expected: Tensor) -> Row:
    """Twice, as the second call of a short forward may be a recording's."""
    found.model.attach(rig.layout(row["degree"]), exchanges[row["backend"]])
    forward = found.forward(row["grid"])
    distances, sums = [], []
    for _ in range(3):
        velocity = forward()
        distances.append(float((velocity - expected).norm() / expected.norm()))
        sums.append(rig.gather(velocity.double().sum().item()))
    slices = [sums[-1][start : start + row["degree"]] for start in range(0, rig.num_ranks, row["degree"])]
    same = all(len(set(part)) == 1 for part in slices)
    return {"distance": max(rig.gather(max(distances))), "ranks_agree": same}


def profile(rig: Rig, found: Loaded, exchanges: Exchanges) -> None:
    """One forward traced, alone and by all ranks: what the exchanges take, and how much of it attention hides."""
    ours = tuple(name for name in (PEER, NATIVE) if name in exchanges.found)
    for grid in traced_grids(found.subject):
        for degree, name in ((1, NATIVE), *((rig.num_ranks, name) for name in ours)):
            row = {"section": "profile", **_what(found, grid, degree, name)}
            geometry = found.subject.geometry
            row["sent_mb"] = sent_bytes(geometry, row["tokens"], degree, found.num_text, found.model.dtype.itemsize) / 1e6
            wait_s = about_s(geometry, row["tokens"], degree) + 5.0
            rig.attempt(row, wait_s, lambda: _traced(rig, found, exchanges, row))  # noqa: B023 - called at once
    found.model.attach(None, None)


def _traced(rig: Rig, found: Loaded, exchanges: Exchanges, row: Row) -> Row:
    layout = rig.layout(row["degree"])
    found.model.attach(layout, None if layout is None else exchanges[row["backend"]])
    forward = found.forward(row["grid"])
    for _ in range(3 if row["tokens"] < SWITCH_TOKENS else 1):
        forward()
    rig.settle()
    mine = traced(forward, rig.is_cuda)
    all_of_them = rig.gather(mine)
    return {**mine, "exchange_by_rank_s": [found["exchange_s"] for found in all_of_them]}


RUN = {"forwards": forwards, "guided": guided, "switch": switch, "equality": equality, "profile": profile}
"""By the name of the section."""


def model_sections(rig: Rig, kind: str, found: Loaded, exchanges: Exchanges, wanted: tuple[str, ...]) -> None:
    """The sections that share a model. Two branches and switching are measured of Wan alone."""
    with torch.inference_mode():
        for name, run in RUN.items():
            if name in wanted and (kind == "wan" or name not in ("guided", "switch")):
                run(rig, found, exchanges)
