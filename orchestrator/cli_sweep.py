"""``dvg sweep``: everything around the shell that makes the videos, from the resolved spec to the report."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.markup import escape

from orchestrator.arms import Arm
from orchestrator.checkpoints import Checkpoints, Found
from orchestrator.cli_metrics import INTERRUPTED, beside_of, drained, joined, measured
from orchestrator.cli_metrics import warner as warner
from orchestrator.config import Sweep, load_sweep, read_yaml
from orchestrator.files import write_atomic
from orchestrator.interrupts import interrupting_sigterm
from orchestrator.ledger import Ledger
from orchestrator.manifest import update_manifest
from orchestrator.meters import Meters
from orchestrator.progress import Progress
from orchestrator.resolve_sizing import sizing_of
from orchestrator.runbook import Runbook
from orchestrator.runfolder import RunFolder, admit, explained_in_a_job, open_folder, refuse_missing_videos
from orchestrator.scheduler import Scheduler, SchedulerConfig
from orchestrator.types import Item, Record
from stages.models import embedded

if TYPE_CHECKING:
    from experiments.metrics.beside import Beside
    from experiments.tracking import Tracker
    from orchestrator.local import OnEvent

PARTLY_FAILED = 3


@dataclass(frozen=True)
class SweepOptions:
    local: bool = False
    limit: int | None = None
    print_config: bool = False
    work: pathlib.Path | None = None
    """Where the small files of a run live while its output is a URL; None: in the user's cache."""
    force: bool = False
    """See :func:`orchestrator.runfolder.admit`."""


def run_sweep(spec: pathlib.Path, overrides: Sequence[str], out: str | pathlib.Path | None, options: SweepOptions) -> int:
    """Make what is missing of a spec's videos; the exit code. Raises ConfigError before anything starts."""
    with explained_in_a_job():
        sweep = load_sweep(spec, overrides)
    wanted = frozenset(item.item_key for item in sweep.items)
    if options.limit is not None:
        sweep = limited(sweep, options.limit)
    if options.print_config:
        print(yaml.safe_dump(sweep.resolved(), sort_keys=False), end="")
        return 0
    console = Console()
    tell = warner(console)
    try:
        with interrupting_sigterm() as take_sigterm, open_folder(out or f"runs/{sweep.name}", options.work, tell) as folder:
            admit(folder, sweep, options.force, tell)
            command = [str(spec), *overrides, *_flags(out, options)]
            return _Run(sweep, folder, options, console, wanted, take_sigterm).run(command)
    except KeyboardInterrupt:  # before the first video, or once more
        return interrupted(console)


def interrupted(console: Console) -> int:
    console.print("interrupted; the same command goes on from here")
    return INTERRUPTED


def _flags(out: str | pathlib.Path | None, options: SweepOptions) -> list[str]:
    """The options as they were given, so that the manifest holds the whole command."""
    values = {"--out": out, "--work": options.work, "--limit": options.limit}
    flags = [part for name, value in values.items() if value is not None for part in (name, str(value))]
    return [*flags, *(["--force"] if options.force else []), *(["--local"] if options.local else [])]


def limited(sweep: Sweep, limit: int) -> Sweep:
    """The first ``limit`` prompts and seeds, under every arm."""
    kept = set(list(dict.fromkeys((item.prompt_id, item.seed) for item in sweep.items))[:limit])
    return dataclasses.replace(sweep, items=tuple(i for i in sweep.items if (i.prompt_id, i.seed) in kept))


class _Run:
    """One start of one run folder, already locked. ``wanted`` are the spec's items; those of ``sweep`` may be a part of them."""

    def __init__(
        self,
        sweep: Sweep,
        folder: RunFolder,
        options: SweepOptions,
        console: Console,
        wanted: frozenset[str],
        take_sigterm: Callable[[], None],
    ) -> None:
        self.sweep, self.options, self.console = sweep, options, console
        self.paths, self.ledger = folder.paths, folder.ledger
        self.wanted, self.checkpoints = wanted, Checkpoints(folder.paths.checkpoints) if sweep.cluster.checkpoints else None
        self._warn, self._take_sigterm = warner(console), take_sigterm
        self._beside: Beside | None = None

    def run(self, command: Sequence[str]) -> int:
        write_atomic(self.paths.config, yaml.safe_dump(self.sweep.resolved(), sort_keys=False))
        update_manifest(self.paths, self.sweep, command)
        todo = self._resume()
        tracker = self._tracker()
        try:
            if todo:
                self._make(todo)
            if self.checkpoints is not None:
                self.checkpoints.close(self.wanted - self.ledger.finished)
            return self._conclude(tracker)
        except KeyboardInterrupt:
            return interrupted(self.console)
        finally:
            if tracker is not None:
                tracker.close()

    def _resume(self) -> list[Item]:
        from stages.video import verify

        todo, adopted = self.ledger.resume(self.sweep.items, verify)
        if done := len(self.sweep.items) - len(todo):
            extra = f" ({len(adopted)} adopted from videos without a record)" if adopted else ""
            self.console.print(f"{done} of {len(self.sweep.items)} items are finished{extra}; {len(todo)} to make")
        return todo

    def _found(self, todo: list[Item]) -> dict[str, Found]:
        """The boundaries on disk that items go on from."""
        if self.checkpoints is None:
            return {}
        found = self.checkpoints.open(self.wanted - self.ledger.finished)
        if number := sum(item.item_key in found for item in todo):
            self.console.print(f"{number} items go on from the last stage that is on disk")
        return found

    def _tracker(self) -> Tracker | None:
        if not self.sweep.tracking.enabled:
            return None
        from experiments.tracking import Tracker

        return Tracker(self.paths, self._warn)

    def _make(self, todo: list[Item]) -> None:
        """Run the shell, and what is measured beside it."""
        self._warn_unknown_words(todo)
        scheduler = Scheduler(scheduler_config(self.sweep), sizing_of(self.sweep.arms, self.sweep.cluster), keep_log=False)
        progress = Progress(self.console, len(todo), scheduler, self.sweep.cluster)
        meters = Meters(self.sweep.name, {arm.name: arm.model for arm in self.sweep.arms}, scheduler)
        beside = self._beside = None if self.options.local else beside_of(self.sweep, self.ledger, self._warn)
        runbook = Runbook(
            self.ledger,
            self.sweep.arms_by_name,
            on_record=_each(progress.on_record, meters.on_record, *([beside.on_record] if beside else [])),
            on_failure=_each(progress.on_failure, meters.on_failure),
            checkpoints=self.checkpoints,
            found=self._found(todo),
        )
        with progress:
            on_event = _each(progress.on_event, meters.on_event, *([beside.look] if beside else []))
            self._shell(todo, scheduler, runbook, on_event)

    def _shell(self, todo: list[Item], scheduler: Scheduler, runbook: Runbook, on_event: OnEvent) -> None:
        if self.options.local:
            from orchestrator.cli_generate import find_device
            from orchestrator.keeper import Keeper
            from orchestrator.local import run_local
            from stages.worker import ClipWorker

            config = self.sweep.cluster
            device = find_device("cuda" if config.gpus_per_rank else "cpu")
            keeper = None if self.checkpoints is None else Keeper(self.checkpoints)
            worker = ClipWorker(
                self.sweep.arms_by_name,
                device=device,
                num_threads=config.num_threads,
                attention=config.attention,
                compile_blocks=config.compile_blocks,
                keeper=keeper,
            )
            run_local(todo, worker, scheduler, runbook, on_event, device)
            if keeper is not None:
                keeper.settle()
        else:
            from orchestrator.driver import run_on_ray

            with joined(self.sweep.cluster.address, self._take_sigterm) as cluster:
                run_on_ray(self.sweep, todo, scheduler, runbook, on_event, cluster=cluster)
                if self._beside is not None:
                    drained(self._beside, self.ledger, self.console)

    def _warn_unknown_words(self, todo: list[Item]) -> None:
        for arm in {(arm.model, arm.weights): arm for arm in self.sweep.arms}.values():
            if words := unknown_prompt_words([item.prompt for item in todo], arm):
                self._warn(f"{arm.model} does not know: {', '.join(words)}; `dvg models` lists its words")

    def _conclude(self, tracker: Tracker | None) -> int:
        keys = {item.item_key for item in self.sweep.items}
        records = [record for record in self.ledger.records() if record.item_key in keys]
        failures = [failure for failure in self.ledger.failures() if failure["item_key"] in keys]
        conclude(self.ledger, self.sweep.resolved(), records, failures, self.console, self._beside)
        if tracker is not None:
            tracker.finish()
        for failure in failures:
            where = f"{failure['arm']}/{failure['prompt_id']}/{failure['seed']}"
            self.console.print(f"[red]gave up[/] {where}: {escape(failure['error'])}", highlight=False)
        return PARTLY_FAILED if failures else 0


def _each(*listeners: Callable[..., None]) -> Callable[..., None]:
    """One listener that tells all."""

    def tell(*values: Any) -> None:
        for listener in listeners:
            listener(*values)

    return tell


def unknown_prompt_words(prompts: Iterable[str], arm: Arm) -> list[str]:
    """Words that the arm's model has never seen, each once; none for a model that splits words into pieces."""
    from stages.models.weights import cached
    from stages.vocabulary import unknown_words

    folder = cached(arm.weights) if arm.weights else embedded.FOLDER
    if folder is None:
        return []
    return list(dict.fromkeys(word for prompt in prompts for word in unknown_words(prompt, folder)))


def scheduler_config(sweep: Sweep) -> SchedulerConfig:
    """The scheduler's own limits: what it may hold at most, wide enough that every worker can be busy at once."""
    least, workers = SchedulerConfig(), sweep.cluster
    num_ranks = workers.most_pods * workers.heavy_ranks
    return SchedulerConfig(
        max_attempts=sweep.max_attempts,
        max_ahead=max(least.max_ahead, workers.sketch_workers + 2 * num_ranks),
        max_undecoded=max(least.max_undecoded, 2 * workers.decode_workers, 2 * num_ranks),
        decode_on=workers.decode_on,
    )


def conclude(
    ledger: Ledger,
    spec: dict[str, Any],
    records: Sequence[Record],
    failures: Sequence[dict[str, Any]],
    console: Console,
    beside: Beside | None = None,
) -> None:
    """Quality against the reference arm, summary.csv, report.html with its sheet, and the table.

    ``beside``: what measured while the videos were made. Raises DiskFull.
    """
    from experiments.metrics.listing import quality_table
    from experiments.metrics.quality import values_of
    from experiments.report import write_report
    from experiments.summary import arm_stats, arm_table, write_summary

    paths, reference = ledger.paths, spec.get("reference")
    quality = measured(ledger, spec, records, warner(console), beside)
    write_summary(paths, records, quality)
    write_report(paths, records, quality, failures)
    console.print(arm_table(arm_stats(records, quality, reference, failures)))
    if any(name not in ("psnr", "ssim") for row in quality for name in values_of(row)):
        console.print(quality_table(quality))
    console.print(f"report: {escape(str(ledger.store.target(paths.report.name)))}", soft_wrap=True)


def run_report(run: str | pathlib.Path) -> None:
    """Summary and report of a run folder again. Raises ConfigError when it is none."""
    console = Console()
    with open_folder(run, tell=warner(console), must_exist=True) as folder:
        spec = read_yaml(folder.paths.config)
        refuse_missing_videos(folder.ledger)
        conclude(folder.ledger, spec, folder.ledger.records(), folder.ledger.failures(), console)


def run_track(run: str | pathlib.Path, uri: str | None) -> None:
    """Mirror a run folder into MLflow. Raises ConfigError when it is none or in use, RunError when MLflow cannot be written."""
    from experiments.tracking import mirror

    console = Console()
    with open_folder(run, tell=warner(console), must_exist=True) as folder:
        changes = mirror(folder.ledger, uri)
    told = f"mirrored {changes.num_records} records: {changes.num_added} runs added, {changes.num_updated} updated"
    console.print(told, highlight=False)
