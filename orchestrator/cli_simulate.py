"""``dvg simulate``: a spec's sweep on a virtual clock, on any number of pods; or a real run, simulated again."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from orchestrator import eventlog
from orchestrator.arms import Arm
from orchestrator.calibration import cost_model
from orchestrator.cli import print_json
from orchestrator.cli_spec_plan import find_demands
from orchestrator.cli_sweep import scheduler_config
from orchestrator.cluster_config import ClusterConfig
from orchestrator.config import Sweep, TrackingConfig, load_sweep, read_yaml
from orchestrator.demands import actions_of
from orchestrator.geometry import model
from orchestrator.mistakes import ConfigError, from_validation
from orchestrator.paths import RunPaths
from orchestrator.policy import Sizing
from orchestrator.resolve_sizing import ranks_mistake, sizing_of
from orchestrator.scheduler import Scheduler, SchedulerConfig
from orchestrator.simulator_replay import Recording, decisions_of, replay_report
from orchestrator.simulator_report import Study, fleet_for, peak_gb, report
from orchestrator.simulator_world import Realism, World, make_world, repeated, world_of
from orchestrator.types import Decision


@dataclass(frozen=True)
class SimulateOptions:
    """As they were given; None: what the spec says."""

    pods: int | None = None
    gpus_per_pod: int | None = None
    sketch_gpus: int | None = None
    items: int | None = None
    mtbf_hours: float | None = None
    noise: float = 0.03
    seed: int = 0
    demands: pathlib.Path | None = None
    baselines: bool = True


def run_simulate(spec: pathlib.Path, overrides: Sequence[str], options: SimulateOptions, as_json: bool) -> None:
    """Raises ConfigError for a spec, or a pod, that cannot be."""
    before_gb = peak_gb()
    found = report(study_of(spec, overrides, options), options.baselines, before_gb)
    if as_json:
        print_json(found)
    else:
        print_report(found, Console())


def study_of(spec: pathlib.Path, overrides: Sequence[str], options: SimulateOptions) -> Study:
    """The sweep of a spec, its weights not looked for, on the fleet that was asked for. Raises ConfigError."""
    ranks = options.gpus_per_pod
    if ranks and (wrong := ranks_mistake(ranks)):
        raise ConfigError([f"--gpus-per-pod {wrong}"])
    asked = [] if ranks is None else [f"cluster.heavy_ranks={ranks}"]
    sweep = load_sweep(spec, [*overrides, *asked], with_weights=False)
    demands = find_demands(spec, options.demands)
    try:
        realism = Realism(noise=options.noise, mtbf_hours=options.mtbf_hours)
        sizing = sizing_of(sweep.arms, sweep.cluster)
        items = repeated(sweep.items, options.items or len(sweep.items))
        world = make_world(items, sweep.arms, sizing, demands, realism, options.seed)
    except ValidationError as error:
        raise ConfigError(from_validation(error, Realism)) from error
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    return _study(sweep, world, sizing, options)


def _study(sweep: Sweep, world: World, sizing: Sizing, options: SimulateOptions) -> Study:
    cluster = sweep.cluster
    fleet = fleet_for(world.mean_load, options.pods or cluster.pods, cluster.heavy_ranks, options.sketch_gpus, cluster.decode_on)
    config = SchedulerConfig(
        max_attempts=sweep.max_attempts,
        max_ahead=fleet.sketch_workers + 2 * fleet.num_ranks,
        max_undecoded=max(8, 2 * fleet.num_decoders, 2 * fleet.num_ranks),
        decode_on=cluster.decode_on,
    )
    return Study(world, fleet, sizing, config, options.seed, cluster.checkpoints)


def run_replay(folder: pathlib.Path, as_json: bool) -> None:
    """Raises ConfigError for a folder that holds no run, or one whose last start did nothing or was stopped."""
    found = replay_of(folder)
    if as_json:
        print_json(found)
    else:
        print_replay(found, Console())


def replay_of(folder: pathlib.Path) -> dict[str, Any]:
    """The last start of a run, simulated again; raises as :func:`run_replay`."""
    paths = RunPaths(folder)
    if not (paths.config.is_file() and paths.events.is_file()):
        raise ConfigError([f"{str(folder)!r} is no run folder: it needs {paths.config.name} and {paths.events.name}"])
    spec = read_yaml(paths.config)
    try:
        return _replayed(spec, _last_start(paths.events))
    except (ValueError, RuntimeError) as error:
        raise ConfigError([f"{str(folder)!r}: {' '.join(str(error).split())}"]) from error


def _last_start(path: pathlib.Path) -> list[dict[str, Any]]:
    """Its rows. What follows the last line end was never finished. Raises ValueError for a log that is empty or none."""
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0].split("\n")
    rows = [json.loads(line) for line in whole if line.strip()]
    if not rows:
        raise ValueError(f"{path.name} is empty, so there is nothing to simulate again")
    if not all(isinstance(row, dict) and "start" in row for row in rows):
        raise ValueError(f"{path.name} is no event log: every line needs the start of the run that it belongs to")
    return eventlog.starts(rows)[-1]


def _replayed(spec: Mapping[str, Any], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    arms = [_with_points(Arm.model_validate(row)) for row in spec["arms"]]
    cluster = ClusterConfig.model_validate(spec["cluster"])
    sweep = Sweep(spec["name"], tuple(arms), (), None, spec["max_attempts"], cluster, TrackingConfig())
    sizing = sizing_of(arms, cluster)

    def recorded_world(run: Recording) -> World:
        first = {arm.name: Decision(actions_of(arm)[0], "never decided") for arm in arms}
        decisions = decisions_of(run, lambda item: first[item.arm])
        return world_of(run.items, decisions, sizing, Realism(noise=0.0))

    return replay_report(eventlog.told(rows), lambda: Scheduler(scheduler_config(sweep), sizing), recorded_world)


def _with_points(arm: Arm) -> Arm:
    """Resolved settings leave out the measured points; the calibration file has them."""
    if arm.cost is None or arm.cost.label == "uncalibrated":
        return arm
    return arm.model_copy(update={"cost": cost_model(model(arm.model), arm.shape, arm.guidance, arm.cost.device)})


def print_replay(found: Mapping[str, Any], console: Console) -> None:
    """For people."""
    replay = found["replay"]
    console.print(
        f"{found['items']} items on {found['ranks']} ranks; of {replay['events']} events {replay['answered_otherwise']} are "
        f"answered otherwise; real makespan {found['real_makespan_s']:,.1f} s",
        highlight=False,
    )
    table = Table("simulated with", "makespan", "difference", "commands not given")
    for name in ("recorded", "predicted"):
        row = found[f"with_{name}_seconds"]
        commands = f"{row['commands_not_given']} of {row['commands']}"
        table.add_row(f"{name} seconds", f"{row['makespan_s']:,.1f} s", f"{row['difference']:+.1%}", commands)
    console.print(table)
    table = Table("work", "number", "predicted", "real", "real / predicted")
    for kind, row in found["calibration"].items():
        figures = f"{row['number']:.0f}", f"{row['predicted_s']:,.1f} s", f"{row['real_s']:,.1f} s"
        table.add_row(kind, *figures, f"{row['real_over_predicted']:.2f}")
    console.print(table)


def print_report(found: Mapping[str, Any], console: Console) -> None:
    """For people."""
    console.print(
        f"[bold]{found['items']:,} items[/] on {found['pods']:,} pods x {found['gpus_per_pod']} GPUs, "
        f"{found['sketch_workers']:,} sketch and {found['decode_workers']:,} decode GPUs, decoding on {found['decode_on']}; "
        f"sizing {found['sizing']['rule']}",
        highlight=False,
    )
    console.print(
        f"makespan {found['makespan_s']:,.0f} s, bound {found['lower_bound_s']:,.0f} s: regret {found['regret']:.1%}; "
        f"{found['videos_per_gpu_hour']:.2f} videos per GPU-hour of work, {found['videos_per_gpu_hour_held']:.2f} per GPU-hour "
        f"held; {found['gpu_seconds']:,.0f} GPU-seconds of work",
        highlight=False,
    )
    console.print(
        f"{found['events']:,} events in {found['wall_s']:.1f} s; {found['failures']} failures, "
        f"{found['attempts'] - found['finished'] - found['given_up']} attempts lost, {found['given_up']} items given up",
        highlight=False,
    )
    console.print(_idle_table(found), _width_table(found), sep="\n")
    if "baselines" in found:
        console.print(_baseline_table(found["baselines"]))


def _idle_table(found: Mapping[str, Any]) -> Table:
    table = Table("heavy GPUs", "share", title="where their time went", title_justify="left")
    held_s = found["idle_gpu_s"] + found["gpu_seconds_by_pool"]["heavy"]
    rows = {"at work": found["gpu_seconds_by_pool"]["heavy"], **found["idle_breakdown"]}
    for name, gpu_s in rows.items():
        if gpu_s:
            table.add_row(name.replace("_", " "), f"{gpu_s / held_s:.2%}")
    return table


def _width_table(found: Mapping[str, Any]) -> Table:
    table = Table("GPUs", "GPU-seconds", "clips", title="slices", title_justify="left")
    for width, row in found["width_histogram"].items():
        table.add_row(width, f"{row['gpu_s']:,.0f}", f"{row['clips']:,}")
    return table


def _baseline_table(baselines: Mapping[str, Mapping[str, float]]) -> Table:
    table = Table("schedule", "makespan", "ours against it", title="other schedules of the same clips", title_justify="left")
    for name, row in baselines.items():
        table.add_row(name.replace("_", " "), f"{row['makespan_s']:,.0f} s", f"{row['ours_against_it']:+.1%}")
    return table
