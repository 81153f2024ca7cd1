"""What ``dvg plan`` reports: a model's grid, tokens, actions and predicted seconds for a budget, with no model loaded.

For a pod also on how many ranks each stage would run, for how long, and why.
"""

from __future__ import annotations

from typing import Any

from orchestrator.actions import DvgConfig, decide, density_executed, steps_per_stage
from orchestrator.budgets import Target, actions_for, density_for
from orchestrator.cost import CostModel, denoise_s, full_s
from orchestrator.geometry import ModelGeometry, model
from orchestrator.policy import ArmSizing, Sizing, stage_choices
from orchestrator.types import Action, Demand, VideoShape

ARM = "plan"
"""Under which a plan's sizing holds its one arm."""


def plan_report(
    model_name: str,
    shape: VideoShape,
    num_steps: int,
    target: Target,
    config: DvgConfig,
    demand: Demand | None,
    cost: CostModel,
    sizing: Sizing | None = None,
) -> dict[str, Any]:
    """JSON-ready report; ``chosen`` is None without a demand. ``budget`` is the density that fixes stage 1.

    ``sizing`` has the pod as that of its arm ``ARM``; None: no pod.

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
        "pod": pod_row(sizing) if sizing else None,
        "actions": [action_row(geometry, action, cost, full_run_s, sizing) for action in actions],
        "demand": {"spatial": demand.spatial, "temporal": demand.temporal} if demand else None,
        "weights": list(decision.weights) if decision and decision.weights else None,
        "chosen": action_row(geometry, decision.action, cost, full_run_s, sizing) if decision else None,
    }


def pod_row(sizing: Sizing) -> dict[str, Any]:
    """The pod and the rule, as JSON."""
    limits = sizing.arms[ARM].limits
    return {"ranks": limits.max_width, "backend": limits.backend, "sizing": sizing.config.model_dump(mode="json")}


def action_row(
    geometry: ModelGeometry, action: Action, cost: CostModel, full_run_s: float, sizing: Sizing | None = None
) -> dict[str, Any]:
    """An action as JSON: its rates, densities, predicted denoising seconds and stages."""
    predicted_s = denoise_s(geometry, action, cost)
    stages = [
        {
            "grid": list(stage.grid),
            "tokens": geometry.num_tokens(stage.seen),
            "steps": stage.steps,
            "shift": stage.shift,
        }
        | ({} if stage.window is None else {"forwards_per_step": stage.passes})
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
    } | (slices_row(sizing, sizing.arms[ARM], action) if sizing else {})


def slices_row(sizing: Sizing, arm: ArmSizing, action: Action) -> dict[str, Any]:
    """Ranks and seconds of each stage after the sketch, and why each phase is as wide as it is."""
    stages, before = stage_choices(arm, action, arm.limits.max_width), action.num_sketched
    clip = sizing.clip(stages)
    return {
        "slices": [{"width": c.width, "step_s": c.step_s, "stage_s": c.stage_s, "efficiency": c.efficiency} for c in clip],
        "refine_s": sum(c.stage_s for c in clip),
        "phases": [{"stop": p.stop, "width": p.width, "why": p.why} for p in sizing.sized(arm, stages, before)],
    }
