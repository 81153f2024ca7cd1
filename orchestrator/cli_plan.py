"""``dvg plan`` and ``dvg doctor``: questions answered without loading a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.actions import DvgConfig
from orchestrator.cli import print_json
from orchestrator.config import ArmOptions
from orchestrator.mistakes import ConfigError, from_validation
from orchestrator.plan import plan_report
from orchestrator.resolve import model_of, shape_of
from orchestrator.resolve_budget import DEFAULT, Run, cost_of
from orchestrator.types import Demand

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
    mistakes: list[str] = []
    model = model_of(settings["model"], mistakes)
    options = _options(settings, mistakes)
    if model is None or options is None:
        raise ConfigError(mistakes)
    shape = shape_of(options.model_dump(), model)
    if wrong := model.shape_mistakes(shape):
        raise ConfigError(wrong)
    steps = options.steps or model.default_steps
    guidance = model.default_guidance if options.guidance is None else options.guidance
    config = DvgConfig.for_model(model)
    run = Run("dvg", model, shape, steps, guidance, config)
    try:
        return plan_report(model.name, shape, steps, options.budget or DEFAULT, config, demand, cost_of(run, settings))
    except ValueError as error:
        raise ConfigError([" ".join(str(error).split())]) from error


def _options(settings: Mapping[str, Any], mistakes: list[str]) -> ArmOptions | None:
    try:
        return ArmOptions.model_validate(settings)
    except ValidationError as error:
        mistakes.extend(from_validation(error, ArmOptions))
        return None


def _print_plan(report: Mapping[str, Any]) -> None:
    console = Console()
    grid = "x".join(str(side) for side in report["grid"])
    steps = "+".join(str(n) for n in report["steps_per_stage"])
    console.print(f"[bold]{report['model']}[/]  grid {grid}  {report['tokens']:,} tokens  steps {steps}")
    console.print(_cost_line(report["cost"]), highlight=False)
    ends = report["actions"][0]["stages"]
    console.print("first and last stage: " + _stages([ends[0], *ends[1:][-1:]]), highlight=False)
    table = Table(header_style="bold")
    for heading in ("", "s2", "f2", "density", "predicted", "speedup", "between (grid x steps @ shift)"):
        table.add_column(heading)
    for action in report["actions"]:
        mark = "*" if report["chosen"] and _same(action, report["chosen"]) else ""
        rates = ("-", "-") if action["s2"] is None else (f"{action['s2']:.2f}", str(action["f2"]))
        figures = (f"{action['density']:.4f}", seconds(action["predicted_s"]), f"{action['speedup']:.2f}")
        table.add_row(mark, *rates, *figures, _stages(action["stages"][1:-1]))
    console.print(table)
    if report["chosen"]:
        console.print("* chosen for the given demand")


def seconds(value_s: float) -> str:
    """Seconds for people, three digits."""
    return f"{value_s:,.0f} s" if value_s >= 100 else f"{value_s:.3g} s"


def _cost_line(cost: Mapping[str, Any]) -> str:
    branches = "one branch" if cost["branches"] == 1 else f"{cost['branches']} branches"
    decode = "" if cost["decode_s"] is None else f", decode {seconds(cost['decode_s'])}"
    label = "green" if cost["label"] == "calibrated" else "yellow"
    full_run = f"{seconds(cost['full_s'])} of denoising, {branches}{decode}"
    return f"[{label}]{cost['label']}[/] on {escape(cost['device'])}: full run {full_run}"


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return (one["s2"], one["f2"]) == (other["s2"], other["f2"])


def _stages(stages: Sequence[Mapping[str, Any]]) -> str:
    return "  ".join(f"{'x'.join(str(n) for n in stage['grid'])}x{stage['steps']}@{stage['shift']:g}" for stage in stages)


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
