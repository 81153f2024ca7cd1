"""``dvg score``: VBench's totals from result files, or from a run that was evaluated."""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.config import read_yaml
from orchestrator.mistakes import ConfigError, without_password
from orchestrator.paths import RunPaths

if TYPE_CHECKING:
    from rich.console import Console

    from experiments.vbench.results import Coverage
    from experiments.vbench.score import Scored

ByArm = dict[str, "Scored"]
MIN_WIDTH = 120
"""Columns of a table that goes to a file or a pipe."""


def register(app: typer.Typer) -> None:
    app.command()(score)


def score(
    source: Annotated[str, typer.Argument(help="An *_eval_results.json, a JSON of raw scores, or a run folder.")],
    suite: Annotated[
        str | None, typer.Option(help="vbench or vbench-i2v; of a run, one of its suites. Default: what the scores are of.")
    ] = None,
    export: Annotated[
        pathlib.Path | None,
        typer.Option(help="Of a run: also write each arm's zip for the leaderboard into this folder."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Print VBench's Quality, Semantic and Total (of image to video: I2V), or what is missing for them."""
    if "://" in source:
        raise ConfigError(
            [f"{without_password(source)!r} is a URL: dvg score reads a run folder or a file of scores on this machine"]
        )
    if pathlib.Path(source).is_dir():
        return _score_run(pathlib.Path(source), suite, export, as_json)
    if export is not None:
        raise ConfigError([f"--export packs the results of a run folder; {source!r} is none"])
    return _score_file(pathlib.Path(source), suite, as_json)


def _score_file(path: pathlib.Path, suite: str | None, as_json: bool) -> None:
    from experiments.vbench.results import load_coverage, load_scores
    from experiments.vbench.score import suite_of

    raw = load_scores(path)
    found = _scored(raw, _known(suite) if suite else suite_of(raw), load_coverage(path))
    if as_json:
        return _print_json(found.as_json())
    arms = {path.name.removesuffix("_eval_results.json"): found}
    _print_suite(path.name, arms)
    for note in _lacking(arms):
        typer.echo(note)
    return None


def _score_run(root: pathlib.Path, suite: str | None, export: pathlib.Path | None, as_json: bool) -> None:
    from experiments.vbench.export import export_results
    from experiments.vbench.results import load_all, load_all_coverage

    scores, of = load_all(root), load_all_coverage(root)
    if not scores:
        raise ConfigError(
            [f"{str(root)!r} has no results of VBench (looked in {RunPaths(root).vbench}); `dvg evaluate RUN` writes them"]
        )
    if suite is not None and suite not in scores:
        raise ConfigError([f"--suite {suite!r} was not evaluated in {str(root)!r}; suites: {', '.join(scores)}"])
    chosen = {name: arms for name, arms in scores.items() if suite in (None, name)}
    found = {name: {arm: _scored(raw, name, of[name][arm]) for arm, raw in arms.items()} for name, arms in chosen.items()}
    written = [] if export is None else [export_results(root, name, arm, export) for name, arms in found.items() for arm in arms]
    if as_json:
        return _print_json({name: {arm: row.as_json() for arm, row in arms.items()} for name, arms in found.items()})
    extended = _extended(root)
    for name, arms in found.items():
        _print_suite(name, arms)
        for note in [*_lacking(arms), *_notes(name, extended)]:
            typer.echo(note)
    for path in written:
        typer.echo(f"wrote {path}")
    return None


def _extended(root: pathlib.Path) -> bool:
    """Whether the run's videos are of longer forms of the prompts."""
    path = RunPaths(root).config
    rows = read_yaml(path).get("prompts") or [] if path.is_file() else []
    return any("original" in row for row in rows)


def _lacking(arms: ByArm) -> list[str]:
    """Which scores are of fewer videos than their dimension asks for."""
    lacking = {arm: ", ".join(f"{dim} ({found})" for dim, found in scored.lacking.items()) for arm, scored in arms.items()}
    return [f"{arm} is partial, scored on the videos that there are: {told}" for arm, told in lacking.items() if told]


def _notes(suite: str, extended: bool) -> list[str]:
    """What a reader must know before comparing these totals with others."""
    from experiments.vbench.normalise import I2V, T2V
    from experiments.vbench.view import CUSTOM

    notes = ["prompt-optimized: the videos are of longer forms of the prompts"] if extended else []
    if suite == CUSTOM:
        notes.append("of the run's own prompts: comparable among its arms, not with VBench's leaderboard")
    elif not suite.startswith(I2V.name) and suite.removesuffix("-filtered") != T2V.name:
        notes.append(f"of a part of VBench's prompts ({suite}): comparable with scores of the same part")
    return notes


def _scored(raw: dict[str, float], suite: str, coverage: dict[str, Coverage]) -> Scored:
    from experiments.vbench.score import scored

    try:
        return scored(raw, suite, coverage)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def _known(suite: str) -> str:
    """A part of a suite is scored as the whole, so any of its names will do."""
    from orchestrator.suites import is_suite

    if not is_suite(suite):
        raise ConfigError([f"--suite {suite!r}: the scores of a file are of vbench or vbench-i2v"])
    return suite


def _print_json(value: Any) -> None:
    from orchestrator.cli import print_json

    print_json(value)


def _print_suite(title: str, arms: ByArm) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=max(MIN_WIDTH, console.width))
    _print_dimensions(console, title, arms)
    _print_totals(console, arms)


def _print_dimensions(console: Console, title: str, arms: ByArm) -> None:
    """One row for each dimension: the raw score, what it counts as, and of how many videos it is, where that is known."""
    from rich import box
    from rich.table import Table

    from experiments.vbench.score import normalised

    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("dimension")
    for arm in arms:
        table.add_column(f"{arm}: raw, normalised", justify="right", overflow="fold")
    counts = {arm: normalised(found.totals.dimensions) for arm, found in arms.items()}
    for dim in dict.fromkeys(dim for found in counts.values() for dim in found):
        table.add_row(dim, *(_cell(arms[arm], dim, counts[arm][dim]) if dim in counts[arm] else "–" for arm in arms))
    console.print(table)


def _cell(found: Scored, dim: str, counts_as: float) -> str:
    of = f"  {found.coverage[dim]}" if dim in found.coverage else ""
    return f"{found.totals.dimensions[dim]:.4f} {counts_as:8.4f}{of}"


def _print_totals(console: Console, arms: ByArm) -> None:
    from rich import box
    from rich.table import Table

    names = list(next(iter(arms.values())).totals.counts)
    table = Table(header_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("arm", overflow="fold")
    for name in names:
        table.add_column("I2V" if name == "i2v" else name.capitalize(), justify="right", overflow="fold")
    for arm, found in arms.items():
        table.add_row(arm, *(found.told(name) for name in names))
    console.print(table)
