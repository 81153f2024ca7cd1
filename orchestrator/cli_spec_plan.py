"""``dvg plan SPEC``: a sweep's items, time, cost, disk, split and feasibility, printed. Nothing is started."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.cli import print_json
from orchestrator.config import Sweep, load_sweep
from orchestrator.demands import Demands, actions_of, read_demands
from orchestrator.geometry import model
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from orchestrator.placement import Machines, most_pods, placement_mistakes
from orchestrator.policy import Sizing
from orchestrator.residency import memory_mistakes, rank_holds, sketcher_holds, smallest_gpu_gb
from orchestrator.resolve_sizing import sizing_of
from orchestrator.spec_plan import spec_plan
from orchestrator.split import POOLS

RECORDED = pathlib.Path(__file__).parents[1] / "experiments" / "specs" / "demands_wan_mini.jsonl"
"""What sketches of the embedded model showed for 200 captions. A file of that name beside a spec goes before it."""
SHOWN_ACTIONS = 4
LINE_CHARS = 18
"""Of a name in a table of seven columns, on 80 columns."""
MOST_SIMULATED = 4000
"""Items; more take seconds. ``dvg simulate`` has no limit."""
DECODERS = {"pod": "the pod decodes", "sketchers": "sketch workers decode"}
"""Where it is no pool of its own."""
T = TypeVar("T")


@dataclass(frozen=True)
class SpecOptions:
    """Where the demands come from, and which cluster the sweep must fit."""

    demands: pathlib.Path | None = None
    """A run folder or a JSONL file; None: those beside the spec, else the recorded ones that ship with the project."""
    address: str | None = None
    cluster: pathlib.Path | None = None


def run_spec_plan(spec: pathlib.Path, overrides: Sequence[str], options: SpecOptions, as_json: bool) -> None:
    """Raises ConfigError with every mistake of the input, and, after the report, with everything the cluster cannot give."""
    mistakes: list[str] = []
    sweep = _tried(lambda: load_sweep(spec, overrides, with_weights=False), mistakes)
    demands = _tried(lambda: find_demands(spec, options.demands), mistakes)
    machines = _tried(lambda: find_machines(options), mistakes)
    if sweep is None or demands is None or mistakes:
        raise ConfigError(mistakes)
    report = _planned(sweep, demands, machines)
    if as_json:
        print_json(report)
    else:
        print_spec_plan(report, Console())
    if report["feasibility"]["mistakes"]:
        raise ConfigError(report["feasibility"]["mistakes"])


def _tried(make: Callable[[], T], mistakes: list[str]) -> T | None:
    try:
        return make()
    except ConfigError as error:
        mistakes.extend(error.mistakes)
        return None


def find_demands(spec: pathlib.Path, given: pathlib.Path | None = None) -> Demands:
    """Of the run or file given, of the file beside the spec, or of the one that ships. Raises ConfigError for one without any."""
    beside = spec.resolve().parent / RECORDED.name
    path = given or next((path for path in (beside, RECORDED) if path.is_file()), None)
    if path is None:
        return Demands()
    try:
        found = read_demands(RunPaths(path).records if path.is_dir() else path)
    except ValueError as error:
        raise ConfigError([f"--{error}" if given else str(error)]) from error
    if path not in (RECORDED, RECORDED.resolve()):
        return found
    return Demands(found.rows, f"as {len(found.rows)} sketches of wan-mini showed ({RECORDED.name})")


def find_machines(options: SpecOptions) -> Machines | None:
    """The cluster to fit, if any was named. Raises ConfigError for a bad file or two clusters, RunError for one that is away."""
    from orchestrator.machines import live_machines, machines_of_file

    if options.address and options.cluster:
        raise ConfigError(["--address and --cluster each name a cluster to fit: give one"])
    if options.cluster:
        return machines_of_file(options.cluster)
    usual = os.environ.get("RAY_ADDRESS", "")
    if options.address or (usual and not usual.startswith(("http://", "https://"))):  # those are dashboards, for dvg submit
        return live_machines(options.address)
    return None


def _planned(sweep: Sweep, demands: Demands, machines: Machines | None) -> dict[str, Any]:
    try:
        sizing = sizing_of(sweep.arms, sweep.cluster)
        report = spec_plan(sweep, demands, sizing, simulated_s(sweep, demands, sizing))
    except ValueError as error:
        raise ConfigError([" ".join(str(error).split())]) from error
    suite = {} if sweep.suite is None else {"suite": dict(sweep.suite)}
    return report | suite | {"feasibility": feasibility(sweep, sizing, machines)}


def simulated_s(sweep: Sweep, demands: Demands, sizing: Sizing) -> float | None:
    """The sweep's makespan in the simulator, without noise and failures; None for one that would take long to simulate."""
    from orchestrator.cli_sweep import scheduler_config
    from orchestrator.simulator_parts import Fleet
    from orchestrator.simulator_report import Study
    from orchestrator.simulator_world import Realism, make_world

    if len(sweep.items) > MOST_SIMULATED:
        return None
    config = sweep.cluster
    num_decode = config.decode_workers if config.decode_on == "workers" else 0
    fleet = Fleet(config.pods, config.heavy_ranks, config.sketch_workers, num_decode, config.decode_on)
    world = make_world(sweep.items, sweep.arms, sizing, demands, Realism(noise=0.0))
    return Study(world, fleet, sizing, scheduler_config(sweep)).run().makespan_s


def feasibility(sweep: Sweep, sizing: Sizing, machines: Machines | None) -> dict[str, Any]:
    """What the sweep needs against what the cluster has; memory is checked without a cluster too. ``fits`` None: no cluster."""
    config = sweep.cluster
    first = {arm.name: model(arm.model).num_tokens(actions_of(arm)[0].stages[0].seen) for arm in sweep.arms}
    rank, sketcher = rank_holds(sweep.arms, sizing), sketcher_holds(sweep.arms, first)
    usual_gb = smallest_gpu_gb(sweep.arms, sizing)
    known = {kind: _least_gb(machines, kind) or usual_gb for kind in ("pod", "sketch")}
    mistakes = memory_mistakes(config, rank, sketcher, known["pod"], known["sketch"])
    mistakes += placement_mistakes(config, machines) if machines else []
    return {
        "cluster": machines.source if machines else None,
        "fits": not mistakes if machines else None,
        "pods": most_pods(config, machines) if machines else None,
        "rank_gb": {"weights": rank.weights_gb, "working": rank.working_gb, "of": known["pod"]},
        "sketcher_gb": {"weights": sketcher.weights_gb, "working": sketcher.working_gb, "of": known["sketch"]},
        "mistakes": mistakes,
    }


def _least_gb(machines: Machines | None, kind: str) -> float | None:
    known = [node.gpu_gb for node in machines.offering(kind) if node.gpu_gb] if machines else []
    return min(known, default=None)


# For people


def print_spec_plan(report: Mapping[str, Any], console: Console) -> None:
    unit = "GPU" if report["on_gpus"] else "rank"
    console.print(f"[bold]{escape(report['name'])}[/]  {report['items']:,} items  {len(report['arms'])} arms", highlight=False)
    if "suite" in report:
        console.print(_suite_line(report["suite"]), highlight=False, soft_wrap=True)
    console.print(_arms_table(report["arms"], unit))
    console.print(f"actions expected {escape(report['demands'])}:", highlight=False, soft_wrap=True)
    for row in report["arms"]:
        console.print(f"  {escape(row['arm'])}: {_actions(row['actions'])}", highlight=False, soft_wrap=True)
    console.print(_pools_table(report["split"], report["gpu_hours"], unit))
    for line in (*_time_lines(report, unit), *_cost_lines(report["held"]), _disk_line(report["disk"])):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(_cluster_line(report["feasibility"]), highlight=False, soft_wrap=True)
    for note in report["notes"]:
        console.print(f"[yellow]note:[/] {escape(note)}", highlight=False, soft_wrap=True)


def _suite_line(suite: Mapping[str, Any]) -> str:
    """A prompt of two entries needs its videos once."""
    return (
        f"prompts: suite {suite['name']} (its list: {suite['digest']}), "
        f"{suite['entries']:,} entries of {suite['prompts']:,} prompts; it asks for "
        f"{suite['asked_videos']:,} videos, {suite['videos']:,} files an arm"
    )


def _table(*headings: str) -> Table:
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in headings:
        justify: Literal["left", "right"] = "left" if heading in ("arm", "model", "pool") else "right"
        table.add_column(heading.replace(" ", "\n"), justify=justify, overflow="fold")
    return table


def _arms_table(rows: Sequence[Mapping[str, Any]], unit: str) -> Table:
    """Seconds are per video."""
    table = _table("arm", "model", "items", "sketch s", f"heavy {unit}-s", "decode s", f"{unit}-hours")
    for row in rows:
        each = row["gpu_s"]
        figures = (_short(each["sketch"]), _short(each["heavy"]), _short(each["decode"]))
        hours = _short(row["items"] * each["total"] / 3600)
        table.add_row(*(escape(in_lines(row[key])) for key in ("arm", "model")), f"{row['items']:,}", *figures, hours)
    return table


def in_lines(name: str) -> str:
    """A long name in lines of at most :data:`LINE_CHARS`, broken after hyphens and points where it has any."""
    lines = [""]
    for part in re.findall(r"[^-_.]+[-_.]?|[-_.]", name):
        if lines[-1] and len(lines[-1]) + len(part) > LINE_CHARS:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _actions(rows: Sequence[Mapping[str, Any]]) -> str:
    shown = ", ".join(f"{row['action']} {row['share']:.0%}" for row in rows[:SHOWN_ACTIONS])
    return shown + (f", {len(rows) - SHOWN_ACTIONS} more" if len(rows) > SHOWN_ACTIONS else "")


def _pools_table(split: Mapping[str, Any], hours: Mapping[str, float], unit: str) -> Table:
    table = _table("pool", f"{unit}-s per video", f"{unit}-hours", "workers", "would balance", "expected idle")
    phase = {"sketch": "sketch", "heavy": "refine", "decode": "decode"}
    for pool in POOLS:
        balanced = "" if split["balanced"] is None else f"{split['balanced'][pool]:g}"
        idle = "[bold]sets the pace[/]" if pool == split["slowest"] else f"{split['idle'][pool]:.0%}"
        idle = DECODERS.get(split["decode_on"], idle) if pool == "decode" else idle
        each, workers = split["seconds_per_item"][pool], f"{split['workers'][pool]:g}"
        table.add_row(pool, _short(each), _short(hours[phase[pool]]), workers, balanced, idle)
    return table


def _time_lines(report: Mapping[str, Any], unit: str) -> list[str]:
    wall, hours, split = report["wall"], report["gpu_hours"], report["split"]
    per_hour = report["videos_per_gpu_hour"]
    lines = [
        f"work: {_short(hours['total'])} {unit}-hours, {per_hour:,.1f} videos per {unit}-hour" if per_hour else "work: none",
        f"wall time: {_simulated(wall)}at least {clock(wall['at_least_s'])}, set by the {wall['set_by']} pool "
        f"(fill {clock(wall['fill_s'])}, allotment {clock(wall['allotment_s'])} under rule {report['rule']}, "
        f"drain {clock(wall['drain_s'])})",
    ]
    if report.get("grown"):
        lines.append(f"wall time with {report['grown']['pods']} pods: at least {clock(report['grown']['at_least_s'])}")
    beside = split["beside_the_pods"]
    told = f"split: {beside['sketch']:g} to sketch and {beside['decode']:g} to decode is best of {beside['gpus']} beside the pods"
    if split["decode_on"] != "workers":
        told = f"split: {beside['gpus']} beside the pods"
    return [*lines, f"{told}; {split['videos_per_hour']:,.0f} videos an hour while the backlog lasts"]


def _simulated(wall: Mapping[str, Any]) -> str:
    return f"{clock(wall['simulated_s'])} simulated; " if wall["simulated_s"] else ""


def _cost_lines(held: Mapping[str, Any]) -> list[str]:
    if not held["gpus"]:
        return ["cost: no GPU is reserved"]
    kept = f"{held['gpus']:g} GPUs from first to last: {held['gpu_hours']:,.1f} GPU-hours"
    if held["cost"] is None:
        return [f"cost: {kept}; cluster.price_per_gpu_hour says what one costs"]
    price = f"{held['cost']:,.2f} at {held['price_per_gpu_hour']:g} an hour"
    return [f"cost: {kept}, {price} ({held['cost_of_work']:,.2f} of it for GPUs at work)"]


def _disk_line(disk: Mapping[str, Any]) -> str:
    return (
        f"disk: {size(disk['total_gb'])}: videos {size(disk['videos_gb'])} ({disk['bits_per_pixel']:.2g} bits per pixel, "
        f"{disk['bits_from']}), checkpoints under way {size(disk['checkpoints_gb'])}, logs {size(disk['logs_gb'])}; "
        f"latents in memory {size(disk['latents_in_memory_gb'])}"
    )


def _cluster_line(found: Mapping[str, Any]) -> str:
    if found["mistakes"]:
        return "[red]does not fit[/], see below"
    if found["cluster"] is None:
        return "cluster: not looked at; --cluster FILE or --address say which one it must fit"
    return f"[green]fits[/] {escape(found['cluster'].rstrip(','))}: room for {found['pods']} pods"


def _short(value_s: float) -> str:
    return f"{value_s:,.0f}" if value_s >= 100 else f"{value_s:.3g}"


def clock(seconds: float) -> str:
    """``2 d 3 h``, ``2 h 49 min``, ``3 min 20 s`` or ``1.2 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds else "0 s"
    whole = round(seconds)
    units = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    first = next(index for index, (_, length) in enumerate(units) if whole >= length)
    (name, length), (finer, finer_length) = units[first], units[first + 1]
    return f"{whole // length} {name} {whole % length // finer_length} {finer}"


def size(gb: float) -> str:
    """GB, MB or kB of 10^3."""
    name, factor = next(((name, factor) for name, factor in (("GB", 1.0), ("MB", 1e3)) if gb * factor >= 1), ("kB", 1e6))
    return f"{gb * factor:,.1f} {name}"
