"""``dvg sweep``: everything around the shell that makes the videos, from the resolved spec to the report."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from rich.console import Console
from rich.markup import escape

from orchestrator.arms import Arm
from orchestrator.config import Sweep, load_sweep, read_yaml
from orchestrator.ledger import Ledger, RunLock, write_atomic
from orchestrator.manifest import update_manifest
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from orchestrator.progress import Progress
from orchestrator.resolve_sizing import sizing_of
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler, SchedulerConfig
from orchestrator.types import Item, Record
from stages.models import embedded

if TYPE_CHECKING:
    from experiments.tracking import Tracker

PARTLY_FAILED = 3
INTERRUPTED = 130


@dataclass(frozen=True)
class SweepOptions:
    local: bool = False
    limit: int | None = None
    print_config: bool = False


def run_sweep(spec: pathlib.Path, overrides: Sequence[str], out: pathlib.Path | None, options: SweepOptions) -> int:
    """Make what is missing of a spec's videos; the exit code. Raises ConfigError before anything starts."""
    sweep = load_sweep(spec, overrides)
    if options.limit is not None:
        sweep = limited(sweep, options.limit)
    if options.print_config:
        print(yaml.safe_dump(sweep.resolved(), sort_keys=False), end="")
        return 0
    paths = RunPaths(writable_folder(out or pathlib.Path("runs") / sweep.name))
    with locked(paths):
        return _Run(sweep, paths, options, Console()).run([str(spec), *overrides, *_flags(out, options)])


def _flags(out: pathlib.Path | None, options: SweepOptions) -> list[str]:
    """The options as they were given, so that the manifest holds the whole command."""
    flags = [] if out is None else ["--out", str(out)]
    flags += [] if options.limit is None else ["--limit", str(options.limit)]
    return [*flags, "--local"] if options.local else flags


@contextlib.contextmanager
def locked(paths: RunPaths) -> Iterator[None]:
    """The run folder is ours alone. Raises ConfigError while another process writes it."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(RunLock(paths))
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        yield


def open_ledger(paths: RunPaths) -> Ledger:
    """Raises ConfigError when somebody edited the records so that they cannot be read."""
    try:
        return Ledger(paths)
    except ValueError as error:
        raise ConfigError([str(error)]) from error


def limited(sweep: Sweep, limit: int) -> Sweep:
    """The first ``limit`` prompts and seeds, under every arm."""
    kept = set(list(dict.fromkeys((item.prompt_id, item.seed) for item in sweep.items))[:limit])
    return dataclasses.replace(sweep, items=tuple(i for i in sweep.items if (i.prompt_id, i.seed) in kept))


def writable_folder(out: pathlib.Path) -> pathlib.Path:
    """``out``, made and proved writable. Raises ConfigError, also for a relative path inside a Ray job."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ and not out.is_absolute():
        raise ConfigError([f"--out {str(out)!r} must be absolute in a Ray job: the job's own folder is thrown away"])
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise ConfigError([f"--out {str(out)!r} is not writable: {error.strerror or error}; choose another folder"]) from error
    return out


class _Run:
    """One start of one run folder, already locked."""

    def __init__(self, sweep: Sweep, paths: RunPaths, options: SweepOptions, console: Console) -> None:
        self.sweep, self.paths, self.options, self.console = sweep, paths, options, console
        self.ledger = open_ledger(paths)
        refuse_other_settings(sweep, self.ledger.records())
        refuse_missing_videos(paths, self.ledger.records())

    def run(self, command: Sequence[str]) -> int:
        write_atomic(self.paths.config, yaml.safe_dump(self.sweep.resolved(), sort_keys=False))
        update_manifest(self.paths, self.sweep, command)
        todo = self._resume()
        tracker = self._tracker()
        try:
            interrupted = bool(todo) and self._make(todo, tracker)
            return INTERRUPTED if interrupted else self._conclude(tracker)
        finally:
            if tracker is not None:
                tracker.close()

    def _resume(self) -> list[Item]:
        from stages.video import verify

        todo, adopted = self.ledger.resume(self.sweep.items, verify)
        done = len(self.sweep.items) - len(todo)
        if done:
            extra = f" ({len(adopted)} adopted from videos without a record)" if adopted else ""
            self.console.print(f"{done} of {len(self.sweep.items)} items are finished{extra}; {len(todo)} to make")
        return todo

    def _tracker(self) -> Tracker | None:
        if not self.sweep.tracking.enabled:
            return None
        from experiments.tracking import Tracker

        return Tracker(self.paths, self.sweep.resolved(), self._warn)

    def _warn(self, line: str) -> None:
        self.console.print(f"[yellow]warning:[/] {escape(line)}", highlight=False)

    def _make(self, todo: list[Item], tracker: Tracker | None) -> bool:
        """Run the shell; True when a person interrupted it."""
        self._warn_unknown_words(todo)
        scheduler = Scheduler(scheduler_config(self.sweep), sizing_of(self.sweep.arms, self.sweep.cluster))
        progress = Progress(self.console, len(todo))
        runbook = Runbook(
            self.ledger,
            self.sweep.arms_by_name,
            on_record=_each(progress.on_record, *([tracker.on_record] if tracker else [])),
            on_failure=_each(progress.on_failure, *([tracker.on_failure] if tracker else [])),
        )
        try:
            with progress:
                self._shell(todo, scheduler, runbook, progress)
        except KeyboardInterrupt:
            self.console.print("interrupted; the same command goes on from here")
            return True
        return False

    def _shell(self, todo: list[Item], scheduler: Scheduler, runbook: Runbook, progress: Progress) -> None:
        if self.options.local:
            from orchestrator.cli_generate import find_device
            from orchestrator.local import run_local
            from stages.worker import ClipWorker

            config = self.sweep.cluster
            device = find_device("cuda" if config.gpus_per_rank else "cpu")
            worker = ClipWorker(
                self.sweep.arms_by_name,
                device=device,
                num_threads=config.num_threads,
                attention=config.attention,
                compile_blocks=config.compile_blocks,
            )
            run_local(todo, worker, scheduler, runbook, progress.on_event, device)
        else:
            from orchestrator.driver import run_on_ray

            run_on_ray(self.sweep, todo, scheduler, runbook, progress.on_event)

    def _warn_unknown_words(self, todo: list[Item]) -> None:
        for arm in {(arm.model, arm.weights): arm for arm in self.sweep.arms}.values():
            if words := unknown_prompt_words([item.prompt for item in todo], arm):
                self._warn(f"{arm.model} does not know: {', '.join(words)}; `dvg models` lists its words")

    def _conclude(self, tracker: Tracker | None) -> int:
        keys = {item.item_key for item in self.sweep.items}
        records = [record for record in self.ledger.records() if record.item_key in keys]
        failures = [failure for failure in self.ledger.failures() if failure["item_key"] in keys]
        quality = conclude(self.paths, self.sweep.resolved(), records, failures, self.console)
        if tracker is not None:
            tracker.on_finish(records, quality, failures)
        for failure in failures:
            where = f"{failure['arm']}/{failure['prompt_id']}/{failure['seed']}"
            self.console.print(f"[red]gave up[/] {where}: {escape(failure['error'])}", highlight=False)
        return PARTLY_FAILED if failures else 0


def unknown_prompt_words(prompts: Iterable[str], arm: Arm) -> list[str]:
    """Words that the arm's model has never seen, each once; none for a model that splits words into pieces."""
    from stages.models.weights import cached
    from stages.vocabulary import unknown_words

    folder = cached(arm.weights) if arm.weights else embedded.FOLDER
    if folder is None:
        return []
    return list(dict.fromkeys(word for prompt in prompts for word in unknown_words(prompt, folder)))


def _each(*listeners: Callable[[Any], None]) -> Callable[[Any], None]:
    """One listener that tells all."""

    def tell(value: Any) -> None:
        for listener in listeners:
            listener(value)

    return tell


def scheduler_config(sweep: Sweep) -> SchedulerConfig:
    """The scheduler's own limits, wide enough that every worker can be busy at once."""
    least, workers = SchedulerConfig(), sweep.cluster
    return SchedulerConfig(
        max_attempts=sweep.max_attempts,
        max_ahead=max(least.max_ahead, workers.sketch_workers + workers.heavy_ranks),
        max_undecoded=max(least.max_undecoded, 2 * workers.decode_workers),
        decode_on=workers.decode_on,
    )


def refuse_missing_videos(paths: RunPaths, records: Sequence[Record]) -> None:
    """A record is a promise that its video is there: raises ConfigError, naming the first that is not."""
    gone = [record.video for record in records if not (paths.root / record.video).is_file()]
    if gone:
        told = (
            f"{len(gone)} of the run's recorded videos are gone, {gone[0]!r} first; put them back, or remove their lines "
            f"from {str(paths.records)!r} to make them again"
        )
        raise ConfigError([told])


def refuse_other_settings(sweep: Sweep, records: Sequence[Record]) -> None:
    """An arm that was run with other settings would overwrite its own videos: raises ConfigError, naming the arms."""
    wanted = {(item.arm, item.prompt_id, item.seed): item.item_key for item in sweep.items}
    other = {r.arm for r in records if wanted.get((r.arm, r.prompt_id, r.seed), r.item_key) != r.item_key}
    if other:
        told = (
            f"this run folder holds videos of arm {', '.join(sorted(other))} made with other settings, weights or predicted "
            "costs; choose another --out or give the arm another name"
        )
        raise ConfigError([told])


def conclude(
    paths: RunPaths, spec: dict[str, Any], records: Sequence[Record], failures: Sequence[dict[str, Any]], console: Console
) -> Sequence[Any]:
    """Quality against the reference arm, summary.csv, report.html and the table; the quality rows."""
    from experiments.metrics.quality import measure_quality
    from experiments.report import write_report
    from experiments.summary import arm_stats, arm_table, write_summary
    from stages.video import read_video

    reference = spec.get("reference")
    quality = measure_quality(paths, records, reference, read_video) if reference else ()
    write_summary(paths, records, quality)
    report = write_report(paths, records, quality, failures)
    console.print(arm_table(arm_stats(records, quality, reference, failures)))
    console.print(f"report: {report}", soft_wrap=True)
    return quality


def run_report(run: pathlib.Path) -> None:
    """Summary and report of a run folder again. Raises ConfigError when it is none."""
    paths = RunPaths(run)
    if not paths.config.is_file():
        raise ConfigError([f"{str(run)!r} is no run folder: it has no {paths.config.name}"])
    spec = read_yaml(paths.config)
    with locked(paths):
        ledger = open_ledger(paths)
        refuse_missing_videos(paths, ledger.records())
        conclude(paths, spec, ledger.records(), ledger.failures(), Console())


def run_track(run: pathlib.Path, uri: str | None) -> None:
    """Mirror a run folder into MLflow. Raises ConfigError when it is none or in use, RunError when MLflow cannot be written."""
    from experiments.tracking import mirror

    if not RunPaths(run).config.is_file():
        raise ConfigError([f"{str(run)!r} is no run folder: it has no {RunPaths(run).config.name}"])
    try:
        changes = mirror(run, uri)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    told = f"mirrored {changes.num_records} records: {changes.num_added} runs added, {changes.num_updated} updated"
    Console().print(told, highlight=False)
