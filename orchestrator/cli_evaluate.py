"""``dvg evaluate``: VBench's dimensions of a run's videos, over the cluster."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.mistakes import ConfigError, unknown
from orchestrator.paths import RunPaths

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.vbench.campaign import Options
    from experiments.vbench.outcome import ArmOutcome
    from orchestrator.doctor import Finding

PARTLY = 3
INTERRUPTED = 130
RUNNERS = ("ray", "torchrun")
DEVICES = ("auto", "cpu", "cuda")
MIN_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""


def register(app: typer.Typer) -> None:
    app.command()(evaluate)


def evaluate(
    run: Annotated[pathlib.Path, typer.Argument(help="A run folder.")],
    suite: Annotated[
        str | None, typer.Option(help="A suite, or custom for the run's own prompts; default: the one that the run was made for.")
    ] = None,
    dims: Annotated[str, typer.Option(help="all, quality, semantic, weightless, or dimensions joined by commas.")] = "all",
    arms: Annotated[str | None, typer.Option(help="Only these, joined by commas.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Default: one for each GPU, else for each CPU.")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Most videos that a worker gets at a time.")] = 25,
    reduce: Annotated[
        str, typer.Option(help="single_process, or official_torchrun for the sums that VBench's torchrun mode makes.")
    ] = "single_process",
    follow: Annotated[bool, typer.Option("--follow", help="Also measure what a sweep still makes, until it is over.")] = False,
    runner: Annotated[str, typer.Option(help="ray, or torchrun for VBench's own command on the GPUs of this machine.")] = "ray",
    local: Annotated[bool, typer.Option("--local", help="No Ray: workers of this process.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda; auto: GPUs where there are some.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="Of a worker; default: 1 on CPUs.")] = None,
    address: Annotated[str | None, typer.Option(help="The Ray cluster to join; default: RAY_ADDRESS, else its own.")] = None,
    vbench_python: Annotated[
        str | None, typer.Option(help="VBench's interpreter; default: DVG_VBENCH_PYTHON, else .venv-vbench.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure VBench's dimensions. The same command again resumes: what is measured is kept."""
    from experiments.vbench.campaign import Options

    options = Options(
        suite=suite, dims=dims, arms=_words(arms), workers=workers, shard_size=shard_size, reduce=reduce, device=device,
        threads=threads, local=local, follow=follow, address=address, python=vbench_python,
    )  # fmt: skip
    _refuse(run, reduce, runner, device)
    try:
        found = _run(RunPaths(run), options, runner)
        _mirror(RunPaths(run))
    except KeyboardInterrupt:
        _tell("interrupted; what was measured is kept, and the same command goes on")
        raise typer.Exit(INTERRUPTED) from None
    if as_json:
        _print_json(found)
    else:
        _print(found)
    raise typer.Exit(0 if found and all(arm.whole for arm in found.values()) else PARTLY)


def vbench_findings() -> list[Finding]:
    """For ``dvg doctor``: VBench's environment, each dimension, and what it lacks here. Nothing is loaded."""
    from experiments.vbench.dimensions import STATIC_FILTER
    from experiments.vbench.probe import everything
    from orchestrator.doctor import Finding
    from orchestrator.suites import DIMENSIONS

    gives = "dvg evaluate: VBench's dimensions"
    try:
        found, lacking = everything()
    except ConfigError as error:
        return [Finding("vbench", "missing", str(error), gives)]
    rows = [Finding("vbench", "ok", f"{found.version} with torch {found.torch} in {found.python}", gives)]
    for name in (*DIMENSIONS, STATIC_FILTER):
        why = lacking.get(name)
        about = "which videos temporal_flickering is measured on" if name == STATIC_FILTER else "a dimension of VBench"
        rows.append(Finding(f"vbench {name}", "missing" if why else "ok", why or "can run here", about))
    return rows


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _refuse(run: pathlib.Path, reduce: str, runner: str, device: str) -> None:
    """Raises ConfigError with everything that is wrong with the options."""
    from experiments.vbench.reduce import MODES
    from orchestrator.runfolder import store_of
    from orchestrator.store import FolderStore

    choices = {"--reduce": (reduce, MODES), "--runner": (runner, RUNNERS), "--device": (device, DEVICES)}
    mistakes = [unknown(name, word, known) for name, (word, known) in choices.items() if word not in known]
    paths = RunPaths(run)
    if not paths.config.is_file():
        mistakes.append(f"{str(run)!r} is no run folder: it has no {paths.config.name}")
    elif not isinstance(store_of(paths), FolderStore):
        mistakes.append(
            f"{str(run)!r} is the working folder of {store_of(paths).where}: VBench reads files, so copy the run here"
        )
    if mistakes:
        raise ConfigError(mistakes)


def _run(paths: RunPaths, options: Options, runner: str) -> dict[str, ArmOutcome]:
    if runner == "torchrun":
        from experiments.vbench.torchrun import run_torchrun

        return run_torchrun(paths, options, _tell)
    from experiments.vbench.campaign import Campaign

    return Campaign(paths, options, _tell).run()


def _mirror(paths: RunPaths) -> None:
    from experiments.tracking import mirror_scores

    mirror_scores(paths, _tell)


def _tell(line: str) -> None:
    """Aside from what is printed in the end."""
    typer.echo(line, err=True)


def _print_json(found: dict[str, ArmOutcome]) -> None:
    from orchestrator.cli import print_json

    suite: dict[str, Any] = next(({"suite": arm.suite, "digest": arm.digest} for arm in found.values()), {})
    print_json({**suite, "arms": {name: arm.as_json() for name, arm in found.items()}})


def _print(found: dict[str, ArmOutcome]) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(MIN_WIDTH, console.width))
    _print_table(console, found)
    for name, arm in found.items():
        for line in arm.lines():
            console.print(f"{name}: {line}", markup=False, highlight=False, soft_wrap=True)


def _print_table(console: Console, found: dict[str, ArmOutcome]) -> None:
    from rich import box
    from rich.table import Table

    suite = next((arm.suite for arm in found.values()), "")
    table = Table(title=suite, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("dimension")
    for name in found:
        table.add_column(name, justify="right", overflow="fold")
    for dimension in dict.fromkeys(dim for arm in found.values() for dim in arm.dimensions):
        cells = [arm.dimensions[dimension].told() if dimension in arm.dimensions else "–" for arm in found.values()]
        table.add_row(dimension, *cells)
    console.print(table)
