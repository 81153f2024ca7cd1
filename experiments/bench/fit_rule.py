"""A rule for choosing actions, fitted on the training captions of the oracle study: ``matching: fitted``.

The score of an action is a quadratic in its split between space and time, whose weights are linear in one spatial demand. Ridge
regression on how much PSNR each action gains over the mean action, all settings pooled; the measure is the one that gains most in
cross-validation on the training captions. The held-out captions are looked at once, for the figures.
``python -m experiments.bench.fit_rule experiments/results/oracle_wan_mini_202611.json``
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from experiments.bench.oracle_report import feasible
from experiments.bench.studies_common import GEOMETRY, Row
from orchestrator.actions import DvgConfig, action_list
from orchestrator.matching import FITTED_RANGE
from stages.demand import SPATIAL

RIDGE, NUM_FOLDS = 3.0, 4
Array = NDArray[np.float64]


def terms(rows: Sequence[Row], budget: float, num_steps: int) -> Array:
    """E, T, E^2 and T^2 of each action [A, 4]."""
    actions = action_list(GEOMETRY, GEOMETRY.default_shape, num_steps, budget, DvgConfig.for_model(GEOMETRY))
    by_name = {action.name: action for action in actions}
    areas, frames = np.array([((by_name[n].s2 or 1) ** 2, by_name[n].f2 or 1) for n in feasible(rows[0])]).T
    space, time = ((v - v.min()) / (v.max() - v.min()) for v in (areas, frames))
    return np.stack([space, time, space**2, time**2], 1)


def gains(rows: Sequence[Row]) -> Array:
    """PSNR of each action over the mean action's [N, A], in units of its spread within the row's setting."""
    found = np.array([[row["actions"][name]["psnr"] for name in feasible(row)] for row in rows])
    found -= found.mean(1, keepdims=True)
    settings = np.array([row["setting"] for row in rows])
    for setting in set(settings):
        found[settings == setting] /= found[settings == setting].std()
    return found


def design(demand: Array, parts: Array) -> Array:
    """Features [N, A, 8] of every action of every clip: the terms, and the terms times the standardised demand."""
    return np.concatenate([np.broadcast_to(parts, (len(demand), *parts.shape)), demand[:, None, None] * parts], 2)


def fit(demand: Array, gained: Array, parts: Array) -> Array:
    x = design(demand, parts)
    x = (x - x.mean(1, keepdims=True)).reshape(-1, x.shape[2])
    solved: Array = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ gained.reshape(-1))
    return solved


def achieved(demand: Array, gained: Array, parts: Array, rule: Array) -> Array:
    """What the rule's choices gain over the mean action."""
    taken: Array = gained[np.arange(len(gained)), (design(demand, parts) @ rule).argmax(1)]
    return taken


def standardised(rows: Sequence[Row], measure: str, like: Sequence[Row]) -> tuple[Array, float, float]:
    """The demand of each row in deviations from the mean over ``like``, and those two."""
    known = np.array([row["demands"][measure] for row in like])
    mean, deviation = float(known.mean()), float(known.std())
    demand = np.array([row["demands"][measure] for row in rows])
    return ((demand - mean) / deviation).clip(-FITTED_RANGE, FITTED_RANGE), mean, deviation


def cross_validated(rows: Sequence[Row], measure: str, parts: Array) -> float:
    """Mean gain on clips left out; the same prompt under every setting is left out together."""
    demand, gained = standardised(rows, measure, rows)[0], gains(rows)
    fold = np.array([row["prompt"] for row in rows]) % NUM_FOLDS
    taken = [
        achieved(demand[fold == k], gained[fold == k], parts, fit(demand[fold != k], gained[fold != k], parts))
        for k in range(NUM_FOLDS)
    ]
    return float(np.concatenate(taken).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("oracle", type=pathlib.Path)
    study = json.loads(parser.parse_args().oracle.read_text())
    training = [row for row in study["rows"] if row["split"] == "training"]
    held_out = [row for row in study["rows"] if row["split"] == "held-out"]
    parts = terms(training, study["budget"], study["steps"])
    names = [f"{space} {name}" for space in ("latent", "pixels") for name in SPATIAL]
    ranked = sorted(((cross_validated(training, name, parts), name) for name in names), reverse=True)
    for gain, name in ranked[:5]:
        print(f"{name:28} cross-validated gain {gain:.3f} deviations")
    measure = ranked[0][1]
    demand, mean, deviation = standardised(training, measure, training)
    rule = fit(demand, gains(training), parts)
    print(measure, "fitted =", tuple(round(float(value), 4) for value in (mean, deviation, *rule)))
    seen = standardised(held_out, measure, training)[0]
    print(f"held-out captions: gain {achieved(seen, gains(held_out), parts, rule).mean():.3f} deviations")


if __name__ == "__main__":
    main()
