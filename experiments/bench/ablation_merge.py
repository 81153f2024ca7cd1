"""Rows of several runs of the ablation as one, and those of the oracle study, which ran the same videos for every rule."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.bench.studies_common import GEOMETRY, Row, Variant
from orchestrator.actions import density_executed
from orchestrator.types import Action
from stages.planners.dvg import DvgPlanner
from stages.planners.uniform import UniformPlanner

PREFIXES = {"plain": "", "aligned": "aligned-", "image": "image-aligned-"}
"""The ablation's name of a setting of the oracle study."""


def merged(parts: Sequence[Mapping[str, Any]], variants: Sequence[Variant]) -> list[Row]:
    """Rows of JSON files, the earlier file's where a video was made twice."""
    found: dict[tuple[str, int, int], Row] = {}
    for part in parts:
        for row in from_oracle(part, variants) if part.get("benchmark") == "oracle" else part["rows"]:
            found.setdefault((row["variant"], row["prompt"], row["seed"]), row)
    return list(found.values())


def from_oracle(study: Mapping[str, Any], variants: Sequence[Variant]) -> list[Row]:
    """What each rule chose, and the fixed ratio, for the held-out captions; colour, size and speed were not kept apart there."""
    by_name = {variant.name: variant for variant in variants}
    rows = []
    for row, rule in itertools.product(study["rows"], (*study["rows"][0]["chosen"], "fixed")):
        name = PREFIXES[row["setting"]] + rule
        name += "-encode" if name == "image-aligned-dvg" else ""
        if row["split"] == "held-out" and name in by_name:
            taken = row["chosen"].get(rule, "fixed")
            action = _action(by_name[name], taken, study["budget"], study["steps"])
            known = {"variant": name, "prompt": row["prompt"], "seed": row["seed"], "says_direction": True, "action": action.name}
            rows.append(
                {**known, "density": action.density, "executed": density_executed(GEOMETRY, action), **row["actions"][taken]}
            )
    return rows


def _action(variant: Variant, name: str, budget: float, num_steps: int) -> Action:
    planner = variant.make(budget, num_steps)
    if isinstance(planner, UniformPlanner):
        return planner.action
    if not isinstance(planner, DvgPlanner):
        raise ValueError(f"variant {variant.name} chooses no action")
    return next(action for action in planner.actions if action.name == name)
