"""What ``dvg plan`` reports: a model's grid, tokens and actions for a budget, with no model loaded."""

from __future__ import annotations

from typing import Any

from orchestrator.actions import DvgConfig, action_list, decide, steps_per_stage
from orchestrator.geometry import ModelGeometry, model
from orchestrator.types import Action, Demand, VideoShape


def plan_report(
    model_name: str, shape: VideoShape, num_steps: int, budget: float, config: DvgConfig, demand: Demand | None
) -> dict[str, Any]:
    """JSON-ready report; ``chosen`` is None without a demand.

    Raises ValueError for an unknown model, an illegal shape or budget; InfeasibleBudget when no action fits.
    """
    geometry = model(model_name)
    grid = geometry.latent_grid(shape)
    actions = action_list(geometry, shape, num_steps, budget, config)
    decision = decide(actions, demand, config) if demand else None
    return {
        "model": geometry.name,
        "grid": list(grid),
        "tokens": geometry.num_tokens(grid),
        "steps_per_stage": list(steps_per_stage(num_steps, config.transition_rates)),
        "budget": budget,
        "actions": [action_row(geometry, action) for action in actions],
        "demand": {"spatial": demand.spatial, "temporal": demand.temporal} if demand else None,
        "weights": list(decision.weights) if decision and decision.weights else None,
        "chosen": action_row(geometry, decision.action) if decision else None,
    }


def action_row(geometry: ModelGeometry, action: Action) -> dict[str, Any]:
    """An action as JSON: its rates, density and stages."""
    stages = [
        {
            "grid": list(stage.grid),
            "tokens": geometry.num_tokens(stage.grid),
            "steps": stage.steps,
            "shift": stage.shift,
        }
        for stage in action.stages
    ]
    return {"s2": action.s2, "f2": action.f2, "density": action.density, "stages": stages}
