"""The commands of ``dvg`` that look after clusters: submit, status, stop, gc and notice."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

Address = Annotated[
    str | None,
    typer.Option(help="The dashboard of the cluster; default: RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def submit(
    spec: Annotated[pathlib.Path, typer.Argument(help="The YAML file of the sweep, inside the working folder.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted for nested keys.")] = None,
    out: Annotated[str, typer.Option(help="Where results go: an absolute path that all nodes see, or a URL.")] = "",
    address: Address = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep; default: the spec's.")] = None,
    working_dir: Annotated[pathlib.Path, typer.Option(help="The folder whose files the job gets.")] = pathlib.Path(),
    work: Annotated[str | None, typer.Option(help="With a URL: folder for the run's small files, on the head.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many prompts and seeds.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Use the folder of another config, as dvg sweep does.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the job.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the ray job submit line and stop.")] = False,
) -> None:
    """Make a sweep as a job of a Ray cluster, and follow it. The same command again follows it further, or resumes it."""
    from orchestrator.cli_cluster import SubmitOptions, run_submit
    from orchestrator.head import address_of

    options = SubmitOptions(address_of(address), out, name, working_dir, not no_wait, dry_run, work, limit, force)
    raise typer.Exit(run_submit(spec, overrides or [], options))


def stop(
    name_or_job: Annotated[str, typer.Argument(help="A sweep's name, or the id of its job.")],
    address: Address = None,
) -> None:
    """Let a submitted sweep finish or checkpoint what it does, and end it."""
    from orchestrator.cli_cluster import run_stop
    from orchestrator.head import address_of

    raise typer.Exit(run_stop(name_or_job, address_of(address)))


def status(
    run: Annotated[str | None, typer.Argument(help="A run folder, or the URL of one; without: the cluster.")] = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Say how far a run is, or what runs on a cluster: sweeps, their workers, nodes by role and GPUs in use."""
    from orchestrator.cli_status import run_status

    run_status(run, address, as_json)


def gc(
    sweep: Annotated[str | None, typer.Argument(help="Only what this sweep left.")] = None,
    address: Annotated[
        str | None, typer.Option(help="The dashboard of the cluster, or auto on one of its nodes; default as of dvg status.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are listed only.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the actors and placement groups whose sweep is gone, and remove them with --yes. Running sweeps are left alone."""
    from orchestrator.cli_gc import run_gc

    raise typer.Exit(run_gc(sweep, address, yes, as_json))


def notice(
    watch: Annotated[str | None, typer.Option(help="Wait until this cloud takes the machine away: aws or gcp.")] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds that the workers may take to end.")] = 120.0,
) -> None:
    """Tell the workers on this machine that it goes away: they finish or checkpoint what they do. For hooks of a node."""
    from orchestrator import notice as notices

    if watch is None:
        notices.give_notice(wait)
    else:
        notices.watch(watch, wait)


def add_to(app: typer.Typer) -> None:
    for command in (submit, status, stop, gc, notice):
        app.command()(command)
