"""``dvg plan``, ``dvg models`` and ``dvg doctor``: questions answered without loading a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator import geometry
from orchestrator.actions import DvgConfig
from orchestrator.cli import print_json
from orchestrator.mistakes import ConfigError
from orchestrator.plan import plan_report
from orchestrator.types import Demand, VideoShape
from stages.models import embedded

STATE_STYLE = {"ok": "green", "missing": "yellow", "broken": "bold red"}


def run_plan(settings: Mapping[str, Any], spatial: float | None, temporal: float | None, as_json: bool) -> None:
    """Raises ConfigError for an unknown model, an illegal shape, half a demand or an infeasible budget."""
    report = _plan(settings, _demand(spatial, temporal))
    if as_json:
        print_json(report)
    else:
        _print_plan(report)


def _demand(spatial: float | None, temporal: float | None) -> Demand | None:
    if (spatial is None) != (temporal is None):
        raise ConfigError(["--spatial-demand and --temporal-demand go together: give both or neither"])
    return None if spatial is None or temporal is None else Demand(spatial, temporal)


def _plan(settings: Mapping[str, Any], demand: Demand | None) -> dict[str, Any]:
    try:
        model = geometry.model(settings["model"])
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    default = model.default_shape
    shape = VideoShape(
        settings.get("frames", default.num_frames),
        settings.get("height", default.height),
        settings.get("width", default.width),
        default.fps,
    )
    mistakes = model.shape_mistakes(shape)
    steps, budget = settings.get("steps", model.default_steps), settings["budget"]
    if not 0 < budget <= 1:
        mistakes.append(f"budget must be in (0, 1], got {budget}")
    if steps < 1:
        mistakes.append(f"steps must be at least 1, got {steps}")
    if mistakes:
        raise ConfigError(mistakes)
    try:
        return plan_report(model.name, shape, steps, budget, DvgConfig.for_model(model), demand)
    except ValueError as error:
        raise ConfigError([" ".join(str(error).split())]) from error


def _print_plan(report: Mapping[str, Any]) -> None:
    console = Console()
    grid = "x".join(str(side) for side in report["grid"])
    steps = "+".join(str(n) for n in report["steps_per_stage"])
    console.print(f"[bold]{report['model']}[/]  grid {grid}  {report['tokens']:,} tokens  steps {steps}")
    table = Table(header_style="bold")
    for heading in ("", "s2", "f2", "density", "stages (grid x steps @ shift)"):
        table.add_column(heading, no_wrap=heading != "stages (grid x steps @ shift)")
    for action in report["actions"]:
        mark = "*" if report["chosen"] and _same(action, report["chosen"]) else ""
        rates = ("-", "-") if action["s2"] is None else (f"{action['s2']:.2f}", str(action["f2"]))
        table.add_row(mark, *rates, f"{action['density']:.4f}", _stages(action))
    console.print(table)
    if report["chosen"]:
        console.print("* chosen for the given demand")


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (one["s2"], one["f2"]) == (other["s2"], other["f2"])


def _stages(action: Mapping[str, Any]) -> str:
    return "  ".join(
        f"{'x'.join(str(n) for n in stage['grid'])}x{stage['steps']}@{stage['shift']:g}" for stage in action["stages"]
    )


def run_models(as_json: bool) -> None:
    """Every model's geometry; for the embedded one also the words it knows and a prompt to try."""
    from experiments.embedded.captions import EXAMPLE
    from stages.vocabulary import vocabulary

    rows = [_model_row(model) for model in geometry.MODELS.values()]
    words, example = vocabulary(embedded.FOLDER), EXAMPLE
    if as_json:
        print_json({"models": rows, "wan-mini": {"vocabulary": list(words), "example": example}})
        return
    console = Console()
    table = Table(header_style="bold")
    for heading in rows[0]:
        table.add_column(heading)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    console.print(f"\n[bold]wan-mini[/] ships with the project and knows {len(words)} words:")
    console.print(", ".join(words), highlight=False)
    console.print(f"\nFor example: [italic]{example}[/]")


def _model_row(model: geometry.ModelGeometry) -> dict[str, Any]:
    shape = model.default_shape
    return {
        "model": model.name,
        "default shape": f"{shape.num_frames}x{shape.height}x{shape.width}",
        "tokens": model.num_tokens(model.latent_grid(shape)),
        "steps": model.default_steps,
        "guidance": model.default_guidance,
        "shift": model.full_shift,
        "heads": model.heads,
        "weights": "ships with the project"
        if model.name == "wan-mini"
        else "yours (weights: FOLDER)"
        if model.name in geometry.RUNNABLE
        else "planning only",
    }


def run_doctor(as_json: bool) -> int:
    """0 when a sweep can run here, 1 when something it needs is broken."""
    from orchestrator.doctor import examine

    findings = examine()
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        table = Table(header_style="bold")
        for heading in ("what", "state", "found", "gives"):
            table.add_column(heading)
        for f in findings:
            table.add_row(f.topic, f"[{STATE_STYLE[f.state]}]{f.state}[/]", escape(f.found), escape(f.gives))
        Console().print(table)
    return 1 if any(finding.state == "broken" for finding in findings) else 0
