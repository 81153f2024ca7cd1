"""Which actions a sweep can expect: every action of an arm, and how often demands that were once measured choose each.

A demand is what a sketch of one model showed. Under another model the same prompt shows about as much, not exactly as much, so
what is expected of it is an estimate, which :attr:`Demands.source` names.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.actions import decide, full_action, uniform_action
from orchestrator.arms import Arm
from orchestrator.budgets import Target, actions_for
from orchestrator.geometry import model
from orchestrator.methods import WITHOUT_SETTINGS, Request, find, read_settings
from orchestrator.types import Action, Decision, Demand

MAX_DEMANDS = 500
"""More tell nothing new of how often an action is chosen."""


@dataclass(frozen=True)
class Recorded:
    """One clip that was made: what its sketch showed, and what else its record says. None: not recorded."""

    demand: Demand
    prompt_id: str = ""
    seed: int = 0
    model: str = ""
    bits_per_pixel: float | None = None
    """Of the video file."""
    text_s: float | None = None
    """Encoding its prompt."""


@dataclass(frozen=True)
class Demands:
    """Recorded clips, and where they come from, for people. Without any, every action is as likely as another."""

    rows: tuple[Recorded, ...] = ()
    source: str = "equally often, as no demand was recorded"

    def bits_per_pixel(self) -> float | None:
        """The mean over the clips that say; None without any."""
        return _mean(row.bits_per_pixel for row in self.rows)

    def text_s(self, model_name: str) -> float | None:
        return _mean(row.text_s for row in self.rows if row.model == model_name)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def read_demands(path: Path, source: str = "") -> Demands:
    """From a JSONL file: ``{"prompt_id", "seed", "spatial", "temporal", "neutral"}`` a line, or a run's ``records.jsonl``.

    Clips of planners that measure nothing are left out. Raises ValueError, naming the line, for what is neither, and when no
    line holds a demand.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"demands {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    rows = tuple(row for number, line in enumerate(lines, 1) if line.strip() and (row := _row(line, f"{path}:{number}")))
    if not rows:
        raise ValueError(f"demands {str(path)!r} hold no demand: no clip of it was made by a planner that measures one")
    return Demands(rows, source or f"as {len(rows)} sketches of {path} showed")


def _row(line: str, where: str) -> Recorded | None:
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"demands {where} is not valid JSON: {error.msg}") from error
    try:
        return _recorded(data)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"demands {where} needs 'spatial' and 'temporal', numbers in [0, 1]: {data}") from error


def _recorded(data: Mapping[str, Any]) -> Recorded | None:
    """Raises KeyError, TypeError or ValueError for a row of another kind."""
    suffix = "_demand" if "spatial_demand" in data else ""
    spatial, temporal = data[f"spatial{suffix}"], data[f"temporal{suffix}"]
    if spatial is None or temporal is None:
        return None
    neutral = bool(data.get("neutral_demand" if suffix else "neutral", False))
    return Recorded(
        Demand(float(spatial), float(temporal), neutral),
        str(data.get("prompt_id", "")),
        int(data.get("seed", 0)),
        str(data.get("model", "")),
        data.get("bits_per_pixel", _bits_per_pixel(data)),
        data.get("text_s"),
    )


def _bits_per_pixel(data: Mapping[str, Any]) -> float | None:
    sizes = [data.get(name) for name in ("num_bytes", "num_frames", "height", "width")]
    num_bytes, frames, height, width = (size or 0 for size in sizes)
    return 8 * num_bytes / (frames * height * width) if all(sizes) else None


def request_of(arm: Arm) -> Request:
    """What an arm's methods were asked for."""
    geometry = arm.under_its_shift(model(arm.model))
    return Request(geometry, arm.shape, arm.num_steps, arm.guidance, arm.planner, arm.dvg, arm.solver)


def actions_of(arm: Arm) -> tuple[Action, ...]:
    """Every action that an item of the arm may come to, as its planner lists them. Raises ValueError as the planner does."""
    geometry = arm.under_its_shift(model(arm.model))
    task = (geometry, arm.shape, arm.num_steps)
    if arm.planner == "full":
        return (full_action(*task),)
    if arm.planner not in WITHOUT_SETTINGS:
        method = find(arm.planner, "planner")
        return method.actions(read_settings(method, arm.planner_settings), request_of(arm))
    if arm.planner != "dvg":
        return (uniform_action(arm.planner, *task, arm.budget, arm.dvg),)
    target = arm.target or Target(value=arm.budget if arm.budget is not None else 1.0)
    return actions_for(*task, target, arm.dvg, arm.cost)[1]


def decision_for(arm: Arm, actions: tuple[Action, ...], demand: Demand) -> Decision:
    """What the arm's planner would choose of its ``actions``; see :func:`actions_of`.

    Other planners than ``dvg`` do not go by demands; of those that look at the content the first action is expected.
    """
    if len(actions) == 1:
        return Decision(actions[0], "the only action")
    if arm.planner != "dvg":
        return Decision(actions[0], "the nearest to what was asked for")
    return decide(actions, demand, arm.dvg)


def saves_by_content_alone(arm: Arm) -> bool:
    """Whether its planner promises no saving before it has seen what it is to leave out."""
    actions = actions_of(arm) if arm.planner != "dvg" else ()
    return len(actions) > 1 and actions[0].density >= 1


def expected_actions(arm: Arm, demands: Demands) -> tuple[tuple[Action, float], ...]:
    """Actions with their shares, which sum to 1, the most frequent first."""
    actions = actions_of(arm)
    if len(actions) == 1 or arm.planner != "dvg":
        return ((actions[0], 1.0),)
    if not demands.rows:
        return tuple((action, 1.0 / len(actions)) for action in actions)
    every = -(-len(demands.rows) // MAX_DEMANDS)
    chosen = Counter(decision_for(arm, actions, row.demand).action for row in demands.rows[::every])
    return tuple((action, count / chosen.total()) for action, count in chosen.most_common())
