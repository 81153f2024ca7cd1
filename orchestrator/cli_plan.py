"""``dvg plan`` and ``dvg doctor``: questions answered without loading a model."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer import Context

from orchestrator.actions import DvgConfig
from orchestrator.cli import print_json
from orchestrator.config import ArmOptions
from orchestrator.cost import CostModel
from orchestrator.degrees import device_limits
from orchestrator.mistakes import ConfigError, from_validation, unknown
from orchestrator.model_geometry import ModelGeometry
from orchestrator.plan import ARM, plan_report
from orchestrator.policy import Sizing
from orchestrator.resolve import model_of, shape_of
from orchestrator.resolve_budget import DEFAULT, Run, cost_of
from orchestrator.resolve_sizing import ranks_mistake, sizing_on
from orchestrator.sizing import SizingConfig
from orchestrator.types import Demand, VideoShape
from parallel import backends

OF_A_SPEC = ("overrides", "demands", "cluster", "address")
ALONE = "efficient"
"""The rule for one clip on a pod of GPUs, where no backlog says how wide it had best be."""
OF_BOTH = ("spec", "as_json")
"""Parameters of ``dvg plan``; all others are of a plan of one model."""
STATE_STYLE = {"ok": "green", "missing": "yellow", "broken": "bold red"}


@dataclass(frozen=True)
class PodOptions:
    """The pod to plan for, as it was written; without ranks there is none."""

    ranks: int | None = None
    backend: str = "auto"
    rule: str | None = None
    """None: the usual one of the device."""
    deadline_s: float | None = None


def refuse_both(context: Context, spec: pathlib.Path | None) -> None:
    """Raises ConfigError for options of one kind of plan given with the other."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if spec is None:
        wrong, why = [name for name in given if name in OF_A_SPEC], "a SPEC, whose plan it is about"
    else:
        own = (*OF_A_SPEC, *OF_BOTH)
        wrong, why = [name for name in given if name not in own], "a plan without a SPEC; key=value changes a spec's settings"
    if wrong:
        names = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise ConfigError([f"{names}: for {why}"])


def run_plan(
    settings: Mapping[str, Any], spatial: float | None, temporal: float | None, as_json: bool, pod: PodOptions | None = None
) -> None:
    """Raises ConfigError for an unknown model, an illegal shape, half a demand, an infeasible budget or an impossible pod."""
    report = _plan(settings, _demand(spatial, temporal), pod or PodOptions())
    if as_json:
        print_json(report)
    else:
        _print_plan(report)


def _demand(spatial: float | None, temporal: float | None) -> Demand | None:
    if (spatial is None) != (temporal is None):
        raise ConfigError(["--spatial-demand and --temporal-demand go together: give both or neither"])
    return None if spatial is None or temporal is None else Demand(spatial, temporal)


def _plan(settings: Mapping[str, Any], demand: Demand | None, pod: PodOptions) -> dict[str, Any]:
    mistakes: list[str] = []
    model = model_of(settings["model"], mistakes)
    options = _options(settings, mistakes)
    mistakes.extend(_pod_mistakes(pod))
    if model is None or options is None or mistakes:
        raise ConfigError(mistakes)
    shape = shape_of(options.model_dump(), model)
    if wrong := model.shape_mistakes(shape):
        raise ConfigError(wrong)
    steps = options.steps or model.default_steps
    guidance = model.default_guidance if options.guidance is None else options.guidance
    config = DvgConfig.for_model(model)
    run = Run("dvg", model, shape, steps, guidance, config)
    try:
        cost = cost_of(run, settings)
        sizing = None if pod.ranks is None else pod_sizing(model, shape, cost, pod)
        return plan_report(model.name, shape, steps, options.budget or DEFAULT, config, demand, cost, sizing)
    except ValueError as error:
        raise ConfigError([" ".join(str(error).split())]) from error


def _pod_mistakes(pod: PodOptions) -> list[str]:
    found = []
    if pod.ranks and (wrong := ranks_mistake(pod.ranks)):
        found.append(f"--ranks {wrong}")
    if pod.backend not in backends.names():
        found.append(unknown("--backend", pod.backend, backends.names()))
    try:
        _rule(pod, on_gpu=True)
    except ValidationError as error:
        found.extend(from_validation(error, SizingConfig, "--sizing"))
    return found


def _rule(pod: PodOptions, on_gpu: bool) -> SizingConfig:
    return SizingConfig.model_validate(
        {"rule": pod.rule or (ALONE if on_gpu else SizingConfig().rule), "deadline_s": pod.deadline_s}
    )


def pod_sizing(model: ModelGeometry, shape: VideoShape, cost: CostModel, pod: PodOptions) -> Sizing:
    """Raises ValueError, with the arithmetic, when the pod cannot run the model."""
    limits = device_limits(cost.device, pod.ranks or 1, pod.backend)
    return Sizing(config=_rule(pod, limits.on_gpu), arms={ARM: sizing_on(limits, model, shape, cost)})


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
    if report["pod"]:
        console.print(_pod_line(report["pod"]), highlight=False)
    ends = report["actions"][0]["stages"]
    console.print("first and last stage: " + _stages([ends[0], *ends[1:][-1:]]), highlight=False)
    table = Table(header_style="bold")
    on_pod = ("ranks", "refining") if report["pod"] else ()
    for heading in ("", "s2", "f2", "density", "predicted", "speedup", *on_pod, "between (grid x steps @ shift)"):
        table.add_column(heading)
    for action in report["actions"]:
        mark = "*" if report["chosen"] and _same(action, report["chosen"]) else ""
        rates = ("-", "-") if action["s2"] is None else (f"{action['s2']:.2f}", str(action["f2"]))
        figures = (f"{action['density']:.4f}", seconds(action["predicted_s"]), f"{action['speedup']:.2f}")
        table.add_row(mark, *rates, *figures, *_slices(action), _stages(action["stages"][1:-1]))
    console.print(table)
    if report["chosen"]:
        console.print("* chosen for the given demand")
    if report["pod"]:
        _print_phases(console, report["chosen"] or report["actions"][0], "the chosen" if report["chosen"] else "the first")


def _print_phases(console: Console, action: Mapping[str, Any], which: str) -> None:
    """Which stages of an action run on how many ranks, and why."""
    console.print(f"refining, all stages after the sketch, on the pod; {which} row's:", highlight=False)
    first = len(action["stages"]) - len(action["slices"]) + 1
    for phase in action["phases"]:
        stages = f"stage {first}" if phase["stop"] == first else f"stages {first}-{phase['stop']}"
        console.print(f"  {stages}: {phase['why']}", highlight=False, soft_wrap=True)
        first = phase["stop"] + 1


def _pod_line(pod: Mapping[str, Any]) -> str:
    rule = pod["sizing"]
    limit = {"efficient": f" (at least {rule['min_efficiency']:.0%})", "deadline": f" ({rule['deadline_s']} s)"}.get(
        rule["rule"], ""
    )
    return f"a pod of {pod['ranks']} ranks, backend {pod['backend']}, sizing {rule['rule']}{limit}"


def _slices(action: Mapping[str, Any]) -> tuple[str, ...]:
    """Ranks of each stage after the sketch, and their seconds in all."""
    if "slices" not in action:
        return ()
    return "|".join(str(piece["width"]) for piece in action["slices"]), seconds(action["refine_s"])


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
    from orchestrator.cli_evaluate import vbench_findings
    from orchestrator.cli_metrics import metrics_findings
    from orchestrator.doctor import examine

    findings = [*examine(), *metrics_findings(), *vbench_findings()]
    if as_json:
        print_json([vars(finding) for finding in findings])
    else:
        table = Table(header_style="bold")
        for heading in ("what", "state", "found", "gives"):
            table.add_column(heading, overflow="fold")
        for f in findings:
            table.add_row(f.topic, f"[{STATE_STYLE[f.state]}]{f.state}[/]", escape(f.found), escape(f.gives))
        Console().print(table)
    return 1 if any(finding.state == "broken" for finding in findings) else 0
