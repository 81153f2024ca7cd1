"""``dvg report``: a run's summary and report again, or one HTML file of several runs."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from orchestrator.mistakes import ConfigError

if TYPE_CHECKING:
    from experiments.report import Options

ALL = 10**9


def register(app: typer.Typer) -> None:
    app.command()(report)


def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or their URLs.")],
    out: Annotated[
        pathlib.Path | None, typer.Option(help="Write the page here and change nothing in the runs; for several, it is needed.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="The arm that speedups are against; default: the spec's reference.")] = None,
    videos: Annotated[
        str, typer.Option(help="Prompts whose videos the file holds itself: none, a number, all; auto: as many as fit 40 MB.")
    ] = "auto",
    sheet: Annotated[pathlib.Path | None, typer.Option(help="Write the contact sheet (PNG) here, too.")] = None,
) -> None:
    """Write summary.csv, report.html and sheet.png of a run again; or with --out, one page of one or several runs."""
    from experiments.report import Options

    options = Options(num_held=_num_held(videos), base=base)
    if out is None and len(runs) > 1:
        raise ConfigError([f"{len(runs)} runs have no folder in common: give --out FILE"])
    if out is None:
        _write_again(runs[0], options)
    if out is not None or sheet is not None:
        _write_apart(runs, out, sheet, options)


def _num_held(videos: str) -> int | None:
    words = {"auto": None, "none": 0, "all": ALL}
    if videos in words:
        return words[videos]
    if not videos.isdecimal():
        raise ConfigError([f"--videos {videos!r} must be none, all, auto, or a number of prompts"])
    return int(videos)


def _write_again(run: str, options: Options) -> None:
    """In the run folder itself, which nobody else may write meanwhile. Raises ConfigError when it is none."""
    from experiments.report import Options, write_report
    from orchestrator.cli_metrics import measured
    from orchestrator.cli_sweep import run_report, warner
    from orchestrator.config import read_yaml
    from orchestrator.runfolder import open_folder, refuse_missing_videos

    if options == Options():
        return run_report(run)
    console = Console()
    with open_folder(run, tell=warner(console), must_exist=True) as folder:
        refuse_missing_videos(folder.ledger)
        records, spec = folder.ledger.records(), read_yaml(folder.paths.config)
        quality = measured(folder.ledger, spec, records, warner(console))
        write_report(folder.paths, records, quality, folder.ledger.failures(), options)
        _tell(console, "report", folder.store.target(folder.paths.report.name))
    return None


def _write_apart(runs: Sequence[str], out: pathlib.Path | None, sheet: pathlib.Path | None, options: Options) -> None:
    from experiments.report import report_of
    from experiments.report.reading import opened

    console = Console()
    for path in (out, sheet):
        if path is not None and path.is_dir():
            raise ConfigError([f"{str(path)!r} is a folder; name a file in it"])
    with opened(runs) as sources:
        found = report_of(sources, options.base)
        if out is not None:
            found.write(out, options)
            _tell(console, "report", out)
        if sheet is not None:
            if not found.write_sheet(sheet):
                raise ConfigError(["--sheet has nothing to show: no video is finished yet"])
            _tell(console, "sheet", sheet)


def _tell(console: Console, what: str, where: object) -> None:
    console.print(f"{what}: {escape(str(where))}", soft_wrap=True, highlight=False)
