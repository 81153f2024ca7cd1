"""The command line of ``dvg simulate``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

from orchestrator.mistakes import ConfigError

OF_A_REPLAY = ("spec", "replay", "as_json")
"""Parameters that go with a run folder; all others are of a spec."""


def refuse_with_replay(context: typer.Context) -> None:
    """Raises ConfigError for options of a spec given with --replay: the run says all of it."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    given = [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]
    if wrong := [name for name in given if name not in OF_A_REPLAY]:
        names = ", ".join("--" + name.replace("_", "-") for name in wrong)
        raise ConfigError([f"{names}: for a SPEC; --replay takes everything from the run"])


def simulate(
    context: typer.Context,
    spec: Annotated[pathlib.Path | None, typer.Argument(help="The YAML file of the sweep; its weights are not needed.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, as for dvg sweep.")] = None,
    pods: Annotated[int | None, typer.Option(min=1, help="Heavy pods; default: the spec's.")] = None,
    gpus_per_pod: Annotated[int | None, typer.Option(min=1, max=8, help="Ranks of each; default: the spec's.")] = None,
    sketch_gpus: Annotated[
        int | None, typer.Option(min=1, help="GPUs that sketch and decode; default: what the pods need, and a quarter more.")
    ] = None,
    items: Annotated[int | None, typer.Option(min=1, help="Repeat the spec's items, under more seeds, to so many.")] = None,
    mtbf_hours: Annotated[float | None, typer.Option(help="Mean hours between failures of one GPU; default: none fails.")] = None,
    noise: Annotated[float, typer.Option(help="Deviation of the logarithm of real over predicted seconds.")] = 0.03,
    seed: Annotated[int, typer.Option(help="Of noise and failures.")] = 0,
    demands: Annotated[pathlib.Path | None, typer.Option(help="A run, or a JSONL file, of measured demands.")] = None,
    baselines: Annotated[bool, typer.Option("--baselines/--no-baselines", help="Also simulate other schedules.")] = True,
    replay: Annotated[pathlib.Path | None, typer.Option(help="Simulate this run folder again instead of a spec.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Run a sweep on a virtual clock, on any number of pods: makespan, lower bound, idle time, other schedules."""
    from orchestrator.cli_simulate import SimulateOptions, run_replay, run_simulate

    if (spec is None) == (replay is None):
        raise ConfigError(["dvg simulate needs the spec of a sweep, or --replay and a run folder; not both"])
    options = SimulateOptions(pods, gpus_per_pod, sketch_gpus, items, mtbf_hours, noise, seed, demands, baselines)
    if replay is not None:
        refuse_with_replay(context)
        run_replay(replay, as_json)
    elif spec is not None:
        run_simulate(spec, overrides or [], options, as_json)


def add_to(app: typer.Typer) -> None:
    app.command()(simulate)
