"""``dvg metrics``: what is known of a run's videos completed, and how a sweep has its own measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from orchestrator.config import Sweep, read_yaml
from orchestrator.interrupts import interrupting_sigterm
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError, DiskFull, RunError
from orchestrator.runfolder import open_folder
from orchestrator.types import Record

if TYPE_CHECKING:
    from experiments.metrics.beside import Beside
    from experiments.metrics.completing import Lost, Measurements, Wish
    from experiments.metrics.quality import Row
    from orchestrator.cluster import Cluster
    from orchestrator.doctor import Finding

PARTLY_MEASURED = 3
INTERRUPTED = 130


@dataclass(frozen=True)
class MetricsOptions:
    names: str | None = None
    """Separated by commas; None: all."""
    against: str | None = None
    device: str = "auto"
    address: str | None = None
    """A Ray cluster that does it; None: this process."""
    as_json: bool = False


def metrics(
    run: Annotated[str, typer.Argument(help="A run folder, or its URL.")],
    names: Annotated[
        str | None, typer.Option(help="Metrics or groups, like psnr,lpips,free; default: all. docs/metrics.md lists them.")
    ] = None,
    against: Annotated[str | None, typer.Option(help="The arm that the others are compared with; default: the run's.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N; auto: the first GPU there is.")] = "auto",
    address: Annotated[str | None, typer.Option(help="Have a running Ray cluster do it, on its CPUs; auto finds it.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure what is not known yet of a run's videos. The same command again does what is left; 3: some cannot be measured."""
    raise typer.Exit(run_metrics(run, MetricsOptions(names, against, device, address, as_json)))


def register(app: typer.Typer) -> None:
    app.command()(metrics)


def run_metrics(run: str, options: MetricsOptions) -> int:
    """The exit code. Raises ConfigError for what is no run, or in use, and for names that are none."""
    console = Console(stderr=options.as_json)
    try:
        with interrupting_sigterm() as take_sigterm:
            return _run(run, options, console, take_sigterm)
    except KeyboardInterrupt:
        console.print("interrupted; what was measured is kept, and the same command goes on from here")
        return INTERRUPTED


def _run(run: str, options: MetricsOptions, console: Console, take_sigterm: Callable[[], None]) -> int:
    from experiments.metrics.completing import Measurements
    from experiments.summary import write_summary

    told = warner(console)
    with open_folder(run, tell=told, must_exist=True) as folder:
        records = folder.ledger.records()
        measurements = Measurements(folder.ledger, _wish(read_yaml(folder.paths.config), options))
        with contextlib.nullcontext() if options.address is None else joined(options.address, take_sigterm):
            lost = _measure(measurements, records, options.address is not None, console)
        rows = measurements.rows(records)
        write_summary(folder.paths, records, rows)
    _tell(rows, lost, console, options.as_json)
    return PARTLY_MEASURED if lost or _wanting(rows, options) else 0


def warner(console: Console) -> Callable[[str], None]:
    """Prints one line of warning."""
    return lambda line: console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False, soft_wrap=True)


def _wish(spec: dict[str, Any], options: MetricsOptions) -> Wish:
    from experiments.metrics.completing import wish_of
    from orchestrator.cli_generate import find_device

    names = ["all"] if options.names is None else [name.strip() for name in options.names.split(",") if name.strip()]
    device = "cpu" if options.address else str(find_device(options.device))
    try:
        return wish_of(spec, names, options.against, device)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


@contextlib.contextmanager
def joined(address: str | None, take_sigterm: Callable[[], None]) -> Iterator[Cluster]:
    """A cluster as :func:`orchestrator.cluster.start_or_join` finds it, left at the end; SIGTERM stays ours."""
    from orchestrator.cluster import start_or_join

    cluster = start_or_join(address)
    try:
        take_sigterm()
        yield cluster
    finally:
        cluster.leave()
        take_sigterm()


def _measure(measurements: Measurements, records: Sequence[Record], on_cluster: bool, console: Console) -> list[Lost]:
    """What fails on the cluster is tried once more here, unless it took its process along."""
    from rich.progress import Progress

    from experiments.metrics.beside import Beside
    from experiments.metrics.completing import complete

    num_jobs = len(measurements.todo(records))
    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("measuring", total=num_jobs)
        on_row: Callable[[Row], None] = lambda row: progress.advance(bar)  # noqa: E731
        if not on_cluster:
            return complete(measurements, records, on_row)
        beside = Beside(measurements, tasks_per_node=1, records=records)
        if why := beside.drain(on_row):
            warner(console)(f"the cluster left {videos(beside.num_left)}, measured here now: {why}")
        return beside.fatal + complete(measurements, records, on_row, {one.record.item_key for one in beside.fatal})


def videos(number: int) -> str:
    return f"{number} video{'s'[: number != 1]}"


def _wanting(rows: Sequence[Row], options: MetricsOptions) -> bool:
    """Whether a video is broken, or what was asked for by its own name is not there."""
    from experiments.metrics.completing import broken
    from experiments.metrics.names import METRICS

    named = {name.strip() for name in (options.names or "").split(",")}
    asked = {name for name in named & METRICS.keys() if METRICS[name].of_reference}
    return bool(broken(rows)) or any(asked & row["unavailable"].keys() for row in rows)


def _tell(rows: Sequence[Row], lost: Sequence[Lost], console: Console, as_json: bool) -> None:
    from experiments.metrics.completing import remarks, troubles
    from experiments.metrics.listing import as_plain, quality_table

    if as_json:
        from orchestrator.cli import print_json

        return print_json(as_plain(rows, lost))
    console.print(quality_table(rows))
    for line in troubles(rows, lost):
        warner(console)(line)
    for line in remarks(rows):
        console.print(escape(line), highlight=False, soft_wrap=True)
    return None


def measured(
    ledger: Ledger, spec: dict[str, Any], records: Sequence[Record], tell: Callable[[str], None], beside: Beside | None = None
) -> list[Row]:
    """The metrics that a resolved spec asks for, what is missing of them measured now; what cannot be is told, and ends nothing.

    What ``beside`` has given up is left to ``dvg metrics``. Raises DiskFull.
    """
    from experiments.metrics.completing import Measurements, complete, troubles, wish_of

    measurements = Measurements(ledger, wish_of(spec))
    lost, given_up = (beside.fatal, beside.given_up) if beside else ([], frozenset[str]())
    try:
        lost = lost + complete(measurements, records, skip=given_up)
    except DiskFull:
        raise
    except RunError as error:
        tell(f"some metrics are not measured: {error}; {completes(ledger)}")
    rows = measurements.rows(records)
    for line in troubles(rows, lost):
        tell(line)
    return rows


def drained(beside: Beside, ledger: Ledger, console: Console) -> None:
    """What a sweep's tasks have not measured when its last video is done, measured by the whole cluster if that can be had."""
    if beside.num_left:
        console.print(f"measuring what is left: {videos(beside.num_left)}")
        if why := beside.drain():
            warner(console)(f"metrics of {videos(beside.num_left)} are not measured: {why}; {completes(ledger)}")


def metrics_findings() -> list[Finding]:
    """For ``dvg doctor``: whether LPIPS can be had here, and where its weights go otherwise."""
    from experiments.metrics.perceptual import weights_path, why_not
    from orchestrator.doctor import Finding

    gives = "LPIPS of videos against the reference arm's; the other metrics need no weights of their own"
    why = why_not()
    return [Finding("lpips weights", "missing" if why else "ok", why or str(weights_path()), gives)]


def completes(ledger: Ledger) -> str:
    """What to do about metrics that are not there."""
    return f"`dvg metrics {ledger.store.where}` completes them"


def beside_of(sweep: Sweep, ledger: Ledger, tell: Callable[[str], None] = lambda line: None) -> Beside | None:
    """Metrics on the nodes while a sweep goes on, if they are wished for."""
    if not sweep.metrics.during or not sweep.metrics.names:
        return None
    from experiments.metrics.beside import Beside
    from experiments.metrics.completing import Measurements, wish_of

    keys = {item.item_key for item in sweep.items}
    records = [record for record in ledger.records() if record.item_key in keys]
    return Beside(Measurements(ledger, wish_of(sweep.resolved())), sweep.metrics.tasks_per_node, records, tell)
