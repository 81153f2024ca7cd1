"""From a sketch's demands to one action of the list: DVG's equations 5, 9 and 10 (arXiv 2605.21042)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Action, Decision, Demand

FITTED_RANGE = 2.5
"""A demand farther from the mean, in deviations, counts as this far: nothing was fitted there."""


def weights(demand: Demand, sharpness: float) -> tuple[float, float]:
    """Softmax of the two demands (eq. 5): (w_s, w_t), summing to one."""
    spatial = 1.0 / (1.0 + math.exp(sharpness * (demand.temporal - demand.spatial)))
    return spatial, 1.0 - spatial


def decide(actions: Sequence[Action], demand: Demand, config: DvgConfig) -> Decision:
    """The action whose split between space and time fits the demand best, and why."""
    pair = weights(demand, config.sharpness)
    targets = (demand.spatial, demand.temporal) if config.matching in ("linear", "fitted") else pair
    action = choose(actions, targets, config)
    measured = "demand not measurable" if demand.neutral else f"detail {demand.spatial:.3f}, motion {demand.temporal:.3f}"
    why = f"{measured}: weights {pair[0]:.2f} space, {pair[1]:.2f} time; {action.name} fits best of {len(actions)}"
    return Decision(action, why, demand, pair)


def choose(actions: Sequence[Action], targets: tuple[float, float], config: DvgConfig) -> Action:
    """The best-scoring action; the earlier one of equals. ``targets`` are the weights (``linear``, ``fitted``: the demands)."""
    if not actions:
        raise ValueError("there is no action to choose from")
    scores = [_score(action, actions, targets, config) for action in actions]
    return actions[scores.index(max(scores))]


def _score(action: Action, actions: Sequence[Action], targets: tuple[float, float], config: DvgConfig) -> float:
    if config.matching == "minmax":
        return _nearness(_minmax_split(action, actions), targets, config.balance)
    if config.matching == "stage_mean":
        return _nearness(_stage_mean_split(action, config), targets, config.balance)
    if config.matching == "fitted" and config.fitted is not None:
        return _fitted_score(_minmax_split(action, actions), targets[0], config.fitted)
    gains = _gains(action, config)
    if config.matching == "linear":
        pull_s, pull_t = (target * math.sqrt(gain) for target, gain in zip(targets, gains, strict=True))
        return config.balance * pull_s + (1 - config.balance) * pull_t
    shortlist = [other for other in actions if (other.s2 or 1.0) >= 0.6][:10]
    if shortlist and action not in shortlist:
        return -math.inf
    return _nearness(gains, targets, config.balance) + config.demand_match_prior * _log_prior(action.s2 or 1.0)


def _nearness(split: tuple[float, float], targets: tuple[float, float], balance: float) -> float:
    return -balance * (split[0] - targets[0]) ** 2 - (1 - balance) * (split[1] - targets[1]) ** 2


def _fitted_score(split: tuple[float, float], demand: float, rule: Sequence[float]) -> float:
    """A quadratic in the split, whose weights are linear in the standardised demand."""
    mean, deviation, *weights_of = rule
    excess = min(max((demand - mean) / deviation, -FITTED_RANGE), FITTED_RANGE)
    terms = (*split, *(part * part for part in split))
    return sum((base + slope * excess) * term for base, slope, term in zip(weights_of[:4], weights_of[4:], terms, strict=True))


def _choice(action: Action) -> tuple[float, int]:
    """(s2, F2); a schedule without the choice keeps everything."""
    return action.s2 or 1.0, action.f2 or action.stages[-1].grid[0]


def _minmax_split(action: Action, actions: Sequence[Action]) -> tuple[float, float]:
    """s2^2 and F2 rescaled to [0, 1] over the list: along a constant budget they then sum to about 1, as weights do."""
    areas, frames = zip(*((s2 * s2, f2) for s2, f2 in map(_choice, actions)), strict=True)
    s2, f2 = _choice(action)
    space = (s2 * s2 - min(areas)) / max(max(areas) - min(areas), 1e-8)
    return space, (f2 - min(frames)) / max(max(frames) - min(frames), 1)


def _stage_mean_split(action: Action, config: DvgConfig) -> tuple[float, float]:
    """The paper's equation 9: mean keep rates over the stages. They exceed the weights, so it favours list corners."""
    num_stages, full_frames = len(action.stages), action.stages[-1].grid[0]
    spatial = (config.stage1_spatial, _choice(action)[0], *[1.0] * num_stages)[:num_stages]
    return sum(spatial) / num_stages, sum(stage.grid[0] for stage in action.stages) / (full_frames * num_stages)


def _gains(action: Action, config: DvgConfig) -> tuple[float, float]:
    """Step-weighted keep shares of the middle stages, as gains over the sketch's, at least 0."""
    first, *middle, last = action.stages if len(action.stages) > 1 else (*action.stages, *action.stages)
    areas = (_choice(action)[0] ** 2, *[1.0] * len(middle))
    num = sum(stage.steps for stage in middle) or 1
    space = sum(area * stage.steps for area, stage in zip(areas, middle, strict=False)) / num
    time = sum(stage.grid[0] * stage.steps for stage in middle) / (last.grid[0] * num)
    return _gain(space, config.stage1_spatial**2), _gain(time, first.grid[0] / last.grid[0])


def _gain(keep: float, sketch_keep: float) -> float:
    return max(keep - sketch_keep, 0.0) / max(1.0 - sketch_keep, 1e-8)


def _log_prior(s2: float) -> float:
    """Log density of Beta(5, 2) without its constant."""
    s2 = min(max(s2, 1e-6), 1 - 1e-6)
    return 4 * math.log(s2) + math.log(1 - s2)
