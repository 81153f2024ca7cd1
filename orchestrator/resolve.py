"""From what an arm says to what it means: model defaults filled in, every rule checked before any device is touched."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from orchestrator import geometry
from orchestrator.actions import DvgConfig, steps_per_stage
from orchestrator.arms import Arm, LoraSpec
from orchestrator.methods import BUDGETED, Request, named
from orchestrator.mistakes import from_validation
from orchestrator.presets import contradiction, with_preset
from orchestrator.resolve_budget import Budgeting, Run, idle_budget, resolve_budget
from orchestrator.resolve_methods import idle_knobs_told, resolve_methods, without_idle_knobs
from orchestrator.types import VideoShape
from stages.models import checkpoint, embedded
from stages.models.lora import check_lora
from stages.models.weights import cached, check_weights, fingerprint, repository


def resolve_arm(name: str, settings: Mapping[str, Any], mistakes: list[str], with_weights: bool = True) -> Arm | None:
    """The arm, or None with what is wrong appended to ``mistakes``. ``with_weights`` False: they are not looked for."""
    found: list[str] = []
    arm = _resolve(name, with_preset(settings), found, with_weights)
    mistakes.extend(f"arm {name}: {line}" for line in found)
    return None if found else arm


def own_mistakes(own: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """What an arm itself gives and would not get. ``settings``: with all that it inherits, which may be idle."""
    planner, _ = named(with_preset(settings).get("planner") or "dvg")
    model = model_of(settings.get("model"), [])
    config = _dvg(settings, model, []) if model else None
    knobs = idle_knobs_told(planner, own.get("dvg") or (), config, model) if model and config else ""
    return [line for line in (contradiction(own), idle_budget(planner, own.get("budget")), knobs) if line]


def _resolve(name: str, settings: Mapping[str, Any], mistakes: list[str], with_weights: bool) -> Arm | None:
    model = model_of(settings.get("model"), mistakes)
    planner, _ = named(settings.get("planner") or "dvg")
    config = _dvg(settings, model, mistakes)
    if model is None or config is None:
        return None
    config = without_idle_knobs(planner, config, model)
    shape = shape_of(settings, model)
    mistakes.extend(model.shape_mistakes(shape))
    steps = settings.get("steps") or model.default_steps
    guidance, guidance_low = _guidance(model, settings)
    legal = not mistakes
    given = settings.get("weights")
    weights, revision = _weights(model, given, mistakes) if with_weights else (given or model.hub or None, "")
    folder = _folder(weights)
    shipped = checkpoint.schedule(folder)
    shift = settings.get("shift") or shipped.shift or model.full_shift
    run = Run(planner, model.with_shift(shift), shape, steps, guidance, config)
    solver = settings.get("solver") or shipped.solver or model.solver
    request = Request(run.geometry, shape, steps, guidance, planner, config, solver, revision)
    chosen = resolve_methods(request, settings, mistakes) if legal else None
    budgeting = _budgeting(run, settings, mistakes) if chosen else None
    if chosen and chosen.accelerators and budgeting and budgeting.target:
        names = "+".join(use.name for use in chosen.accelerators)
        mistakes.append(
            f"budget is {budgeting.target}: what accelerators leave out is not predicted, so a budget beside {names} is a share "
            "of the token-steps; give one, or drop accelerators"
        )
    loras, lora_revision = _loras(settings.get("lora") or (), folder / "transformer", mistakes)
    mistakes.extend(_guidance_mistakes(model, settings))
    if budgeting is None or chosen is None:
        return None
    return Arm(
        name=name,
        model=model.name,
        weights=weights,
        revision=revision + lora_revision,
        lora=loras,
        planner=planner,
        planner_settings=chosen.planner_settings,
        accelerators=chosen.accelerators,
        reconstructed=chosen.reconstructed,
        budget=budgeting.budget,
        target=budgeting.target,
        cost=budgeting.cost,
        num_steps=steps,
        solver=solver,
        shift=shift,
        guidance=guidance,
        guidance_low=guidance_low,
        negative_prompt=settings.get("negative") or "",
        num_frames=shape.num_frames,
        height=shape.height,
        width=shape.width,
        fps=shape.fps,
        dvg=DvgConfig.for_model(model) if planner == "full" else config,  # a plain run is the stock pipeline's, whatever DVG does
    )


def model_of(name: str | None, mistakes: list[str]) -> geometry.ModelGeometry | None:
    """The model of that name, the embedded one without a name; None, and a line in ``mistakes``, if there is none."""
    try:
        return geometry.model(name or embedded.NAME)
    except ValueError as error:
        mistakes.append(str(error))
        return None


def _dvg(settings: Mapping[str, Any], model: geometry.ModelGeometry | None, mistakes: list[str]) -> DvgConfig | None:
    overrides = settings.get("dvg") or {}
    try:
        return DvgConfig.for_model(model, overrides) if model else DvgConfig.model_validate(overrides)
    except ValidationError as error:
        mistakes.extend(from_validation(error, DvgConfig, "dvg"))
        return None


def shape_of(settings: Mapping[str, Any], model: geometry.ModelGeometry) -> VideoShape:
    """The video that is asked for; what is not said is the model's default."""
    default = model.default_shape
    usual = {"frames": default.num_frames, "height": default.height, "width": default.width, "fps": default.fps}
    return VideoShape(*(usual[key] if settings.get(key) is None else settings[key] for key in usual))


def _budgeting(run: Run, settings: Mapping[str, Any], mistakes: list[str]) -> Budgeting | None:
    """Too few steps, or a budget that no action meets: refused here, not after the sketch."""
    if few := _too_few_steps(run):
        mistakes.append(few)
        return None
    try:
        return resolve_budget(run, settings)
    except ValueError as error:
        mistakes.append(str(error))
        return None


def _too_few_steps(run: Run) -> str:
    rates = run.config.transition_rates
    if (run.planner not in BUDGETED and run.planner != "fixed") or len(steps_per_stage(run.num_steps, rates)) > 1:
        return ""
    least = next((n for n in range(2, 1000) if len(steps_per_stage(n, rates)) > 1), None)
    return (
        f"steps is {run.num_steps}: planner {run.planner} needs at least {least} (one on a small grid, the transition, one on "
        "the full grid); take more steps or planner full"
    )


def _weights(model: geometry.ModelGeometry, weights: str | None, mistakes: list[str]) -> tuple[str | None, str]:
    """Where the weights are, exactly, and their fingerprint: a commit, or one of the files that are loaded."""
    if weights is None and model.name == embedded.NAME:
        return None, fingerprint(embedded.FOLDER)
    pinned, wrong = check_weights(model, weights)
    mistakes.extend(wrong)
    if pinned is None or wrong:
        return pinned, ""
    source = repository(pinned)
    return pinned, (source.revision or "") if source else fingerprint(
        pathlib.Path(pinned), (*checkpoint.patterns(model), "*/*.bin")
    )


def _folder(weights: str | None) -> pathlib.Path:
    """Where the weights are on this disk; what is not there yet says nothing."""
    return pathlib.Path(embedded.FOLDER) if weights is None else cached(weights) or pathlib.Path(weights)


def _loras(options: Any, transformer: pathlib.Path, mistakes: list[str]) -> tuple[tuple[LoraSpec, ...], str]:
    """The adapters, each pinned, and a fingerprint of them all; "" without any."""
    found, prints = [], []
    for option in options:
        spec = LoraSpec.model_validate(option)
        try:
            path, revision = check_lora(spec.path, transformer)
        except ValueError as error:
            mistakes.append(str(error))
            continue
        found.append(spec.model_copy(update={"path": path}))
        prints.append(revision)
    return tuple(found), "+" + hashlib.sha256("".join(prints).encode()).hexdigest()[:12] if prints else ""


def _guidance_mistakes(model: geometry.ModelGeometry, settings: Mapping[str, Any]) -> list[str]:
    mistakes = []
    if settings.get("guidance_low") is not None and model.boundary is None:
        mistakes.append(f"guidance_low is {settings['guidance_low']}: {model.name} has one expert; set guidance alone")
    elif (low := settings.get("guidance_low") or 0) > 1 >= (high := _guidance(model, settings)[0]):
        mistakes.append(
            f"guidance_low is {low:g} and guidance {high:g}: without guidance above 1 there is no second branch for the "
            "low-noise expert either; raise guidance or drop guidance_low"
        )
    if settings.get("negative") and model.family == "hunyuan":
        mistakes.append(f"negative: {model.name} was distilled with its guidance built in, so it takes no negative prompt")
    elif settings.get("negative") and max(guidances := [g for g in _guidance(model, settings) if g is not None]) <= 1:
        mistakes.append(
            f"negative: guidance is {guidances[0]:g}, and a negative prompt counts only above 1; raise it or drop one"
        )
    if model.boundary is None and any(lora["expert"] == "low" for lora in settings.get("lora") or ()):
        mistakes.append(f"lora: {model.name} has one expert, so none of its adapters can be for 'low'")
    return mistakes


def _guidance(model: geometry.ModelGeometry, settings: Mapping[str, Any]) -> tuple[float, float | None]:
    """A guidance that is given counts for both experts, unless each has its own."""
    given, low = settings.get("guidance"), settings.get("guidance_low")
    if given is None:
        return model.default_guidance, model.default_guidance_low if low is None else low
    return given, low
