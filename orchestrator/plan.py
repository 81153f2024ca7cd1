"""What ``dvg plan`` reports: a model's grid, tokens, actions and predicted seconds for a budget, with no model loaded."""

from __future__ import annotations

from typing import Any

from orchestrator.actions import DvgConfig, decide, density_executed, steps_per_stage
from orchestrator.budgets import Target, actions_for, density_for
from orchestrator.cost import CostModel, denoise_s, full_s
from orchestrator.geometry import ModelGeometry, model
from orchestrator.types import Action, Demand, VideoShape


def plan_report(
    model_name: str, shape: VideoShape, num_steps: int, target: Target, config: DvgConfig, demand: Demand | None, cost: CostModel
) -> dict[str, Any]:
    """JSON-ready report; ``chosen`` is None without a demand. ``budget`` is the density that fixes stage 1.

    Raises ValueError for an unknown model or an illegal shape; InfeasibleBudget or InfeasibleTarget when no action fits.
    """
    geometry = model(model_name)
    grid = geometry.latent_grid(shape)
    _, actions = actions_for(geometry, shape, num_steps, target, config, cost)
    decision = decide(actions, demand, config) if demand else None
    full_run_s = full_s(geometry, shape, num_steps, cost)
    return {
        "model": geometry.name,
        "grid": list(grid),
        "tokens": geometry.num_tokens(grid),
        "steps_per_stage": list(steps_per_stage(num_steps, config.transition_rates)),
        "target": target.model_dump(),
        "budget": density_for(geometry, shape, num_steps, target, config, cost),
        "cost": {
            "label": cost.label,
            "device": cost.device,
            "branches": cost.num_branches,
            "full_s": full_run_s,
            "decode_s": cost.decode_s,
        },
        "actions": [action_row(geometry, action, cost, full_run_s) for action in actions],
        "demand": {"spatial": demand.spatial, "temporal": demand.temporal} if demand else None,
        "weights": list(decision.weights) if decision and decision.weights else None,
        "chosen": action_row(geometry, decision.action, cost, full_run_s) if decision else None,
    }


def action_row(geometry: ModelGeometry, action: Action, cost: CostModel, full_run_s: float) -> dict[str, Any]:
    """An action as JSON: its rates, densities, predicted denoising seconds and stages."""
    predicted_s = denoise_s(geometry, action, cost)
    stages = [
        {
            "grid": list(stage.grid),
            "tokens": geometry.num_tokens(stage.grid),
            "steps": stage.steps,
            "shift": stage.shift,
        }
        for stage in action.stages
    ]
    return {
        "s2": action.s2,
        "f2": action.f2,
        "density": action.density,
        "density_executed": density_executed(geometry, action),
        "predicted_s": predicted_s,
        "speedup": full_run_s / predicted_s,
        "stages": stages,
    }
