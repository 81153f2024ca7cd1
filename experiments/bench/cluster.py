"""A sweep through Ray on the GPUs of one host, with random weights of real size: how busy the GPUs are, and what that gives.

    python -m experiments.bench.cluster --out FILE [--model hv15] [--heavy 2] [--items 24] [--rehearse]

Random weights show no meaningful demand, so items carry the demands that wan-mini's sketches showed. Actors are hired once.
They first measure the forwards of exactly the grids that the items will need, on which predictions then rest; after that the
same items run under each rule. ``--rehearse`` does the same here, on CPUs, with a tiny checkpoint.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.bench import cluster_timeline as timeline
from experiments.bench.cluster_costs import busy_gpus, cost_of, fitted
from experiments.bench.cluster_crew import StayingCrew
from experiments.bench.cluster_options import DEMANDS, Options, demands_of, grids_of, parse, rules_of, widths
from experiments.bench.cluster_predicted import replayed, simulated_s
from experiments.bench.cluster_report import table
from experiments.bench.cluster_workers import CALIBRATION, ROW, RandomWorkshop, grid_of
from experiments.bench.common import save
from orchestrator.arms import Arm, make_item
from orchestrator.calibration import Calibration
from orchestrator.checkpoints import Checkpoints
from orchestrator.cluster import Cluster, start_or_join
from orchestrator.config import Sweep, TrackingConfig
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.policy import Sizing
from orchestrator.resolve_sizing import sizing_of
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler
from orchestrator.sizing import SizingConfig
from orchestrator.types import Demand, Item

PLACES = "places"
WARMING = 2
"""Grids that workers warm up on."""
SLACK = 1.1
"""Of predicted seconds."""


@dataclass(frozen=True)
class Made:
    """A run that is over."""

    sweep: Sweep
    sizing: Sizing
    began: float
    """By the clock that the host's processes share."""
    rows: list[dict[str, Any]]
    """Of its event log."""
    gpu_samples: list[list[float]]


@dataclass
class Rig:
    """The crew, and every run that it made."""

    options: Options
    arms: tuple[Arm, ...]
    demands: dict[str, Demand]
    """By prompt id."""
    cluster: Cluster
    crew: StayingCrew
    root: pathlib.Path
    began_s: float
    checkpoints: Checkpoints
    runs: dict[str, Made] = field(default_factory=dict)

    @property
    def num_gpus(self) -> float:
        return self.cluster.num_gpus or float(self.options.heavy * self.options.pods)

    def run(self, name: str, items: Sequence[Item], sizing: SizingConfig, arms: tuple[Arm, ...]) -> Made:
        """All ``items`` under one rule, in a run folder of their own. Raises RuntimeError when one is not made."""
        config = self.options.cluster(sizing)
        sweep = Sweep(f"bench-{name}", arms, tuple(items), None, 1, config, TrackingConfig())
        policy = sizing_of(arms, config)
        paths = RunPaths(self.root / name)
        with busy_gpus() as samples:
            began = self._sweep(sweep, items, policy, paths)
        rows = [json.loads(line) for line in paths.events.read_text().splitlines()]
        num_made = len(paths.records.read_text().splitlines())
        if num_made != len(items):
            stories = [path.read_text()[:2000] for path in paths.failures.glob("*")]
            raise RuntimeError(f"run {name} made {num_made} of {len(items)} videos: {stories}")
        self.runs[name] = Made(sweep, policy, began, rows, samples)
        return self.runs[name]

    def _sweep(self, sweep: Sweep, items: Sequence[Item], policy: Sizing, paths: RunPaths) -> float:
        from orchestrator.cli_sweep import scheduler_config
        from orchestrator.driver import RayShell

        runbook = Runbook(Ledger(paths), sweep.arms_by_name, checkpoints=self.checkpoints)
        by_key = {item.item_key: item for item in items}
        began = time.time()
        self.crew.config = sweep.cluster
        RayShell(by_key, self.crew, Scheduler(scheduler_config(sweep), policy), runbook, tell_line).run()
        return began

    def has_time(self, sizing: SizingConfig, arms: tuple[Arm, ...]) -> bool:
        """Whether the items under one more rule are predicted to be made in time."""
        config = self.options.cluster(sizing)
        sweep = Sweep("bench", arms, tuple(items_of(self.options, arms)), None, 1, config, TrackingConfig())
        needed_s = SLACK * simulated_s(sweep, sizing_of(arms, config), self.demands)
        left_s = self.began_s + 60 * self.options.minutes - time.monotonic()
        if needed_s > left_s:
            print(f"no time for {sizing.rule} {sizing.width or ''}: it needs {needed_s:.0f} s, {left_s:.0f} are left", flush=True)
        return needed_s < left_s


def tell_line(event: Any, commands: Any) -> None:
    """One short line of what was made, so that a log shows how far it is."""
    for command in commands:
        if type(command).__name__ == "Finish":
            print(
                f"{event.time_s:7.1f}s {command.item_key} {[(phase.stop, phase.width) for phase in command.phases]}", flush=True
            )


def calibrated(rig: Rig) -> tuple[Calibration, tuple[Arm, ...]]:
    """What each width took on every grid, all ranks measuring at once, or what an earlier run found; arms with that cost.

    With earlier figures the measurements are few: they warm the workers up. Raises RuntimeError when one ran on another width.
    """
    options, found = rig.options, []
    for width in widths(options.heavy):
        slices = range(options.heavy // width * options.pods)
        items = [Item(f"c{width}x{k}", rig.arms[0].name, f"c{k}", CALIBRATION, k) for k in slices]
        made = rig.run(f"calibrate-{width}", items, SizingConfig(rule="fixed", width=width), rig.arms)
        turns = timeline.turns(made.rows, made.began)
        if odd := [turn for turn in turns if turn.kind == "StartPhase" and len(turn.ranks) != width]:
            raise RuntimeError(f"a measurement for {width} ranks ran on {len(odd[0].ranks)}")
        found += turns
    decode_s = min(turn.answered_s - turn.told_s for turn in found if turn.kind == "StartDecode")
    calibration = _measured(rig.arms[0], found) if options.calibration is None else earlier(options.calibration)
    cost = cost_of(calibration, rig.arms[0], decode_s)
    return calibration, tuple(arm.model_copy(update={"cost": cost}) for arm in rig.arms)


def _measured(arm: Arm, found: Sequence[timeline.Turn]) -> Calibration:
    phases = [turn for turn in found if turn.kind == "StartPhase"]
    rows = [(len(t.ranks), grid_of(key), s) for t in phases for key, s in t.timings_s.items() if key.startswith(ROW)]
    return fitted(arm, rows, min(turn.timings_s["transition_token_s"] for turn in phases))


def earlier(path: pathlib.Path) -> Calibration:
    """Of an earlier run's result."""
    return Calibration.model_validate(json.loads(path.read_text())["calibration"])


def summed_up(rig: Rig, name: str) -> dict[str, Any]:
    """Figures of one run, those of the GPUs' own driver and of the simulator among them."""
    run = rig.runs[name]
    found = timeline.figures(run.rows, run.began, rig.num_gpus)
    low, high = (run.began + at for at in found["window_s"])
    within = [row[1:] for row in run.gpu_samples if low <= row[0] <= high]
    if within:
        found["driver_busy"] = {str(k): sum(row[k] for row in within) / len(within) / 100 for k in sorted(rig_gpus(rig))}
    found["simulated_s"] = simulated_s(run.sweep, run.sizing, rig.demands)
    found["simulated_over_real"] = found["simulated_s"] / found["makespan_s"]
    found["replay"] = replayed(run.sweep, run.sizing, run.rows, rig.demands)
    found["replayed_over_real"] = 1 + found["replay"]["with_recorded_seconds"]["difference"]
    return found


def rig_gpus(rig: Rig) -> set[int]:
    """Numbers of the heavy GPUs: ranks left word."""
    found = set()
    for path in (rig.root / PLACES).iterdir():
        _, rank, device = path.name.split(".")
        if rank and device.isdigit():
            found.add(int(device))
    return found


def main(words: Sequence[str] | None = None) -> int:
    options, began_s = parse(words, __doc__), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        rig = hired(options, root, began_s)
        try:
            figures: dict[str, dict[str, Any]] = {}
            calibration, arms = calibrated(rig)
            told(rig, "calibrated")
            for name, sizing in rules_of(options).items():
                if rig.has_time(sizing, arms):
                    rig.run(name, items_of(options, arms), sizing, arms)
                    told(rig, name)
                    figures = concluded(rig, calibration)
            print(table(figures))
        finally:
            rig.crew.end()
            rig.cluster.leave()
    return 0


def hired(options: Options, root: pathlib.Path, began_s: float) -> Rig:
    """A cluster of this host's own, and a crew that is not at work yet."""
    (root / PLACES).mkdir()
    arms = options.arms(str(tiny(options, root)) if options.rehearse else None)
    demands = [demand for _, demand in demands_of(DEMANDS, options.num_prompts)]
    checkpoints = Checkpoints(root / "checkpoints")
    checkpoints.open(())
    by_prompt = {f"p{k}": demand for k, demand in enumerate(demands)}
    cluster = start_or_join(num_cpus=options.num_cpus)
    workshop = RandomWorkshop(
        {arm.name: arm for arm in arms},
        compile_blocks=None if not options.rehearse else False,
        demands=by_prompt,
        grids=grids_of(arms, demands)[: WARMING if options.calibration else None],
        folder=root / PLACES,
        is_tiny=options.rehearse,
        checkpoints=checkpoints.root,
    )
    crew = StayingCrew(cluster, options.cluster(SizingConfig()), workshop, "bench")
    print(f"{len(workshop.grids)} grids; {cluster.num_gpus:g} GPUs; {time.monotonic() - began_s:.1f} s", flush=True)
    return Rig(options, arms, by_prompt, cluster, crew, root, began_s, checkpoints)


def tiny(options: Options, root: pathlib.Path) -> pathlib.Path:
    from stages.models import tiny as checkpoints

    folder = root / "weights"
    checkpoints.build(options.model_name, folder)
    return folder


def items_of(options: Options, arms: Sequence[Arm]) -> list[Item]:
    """Every prompt under every arm, in the order of a spec."""
    prompts = [caption for caption, _ in demands_of(DEMANDS, options.num_prompts)]
    made = [make_item(arm, f"p{k}", prompt, k) for k, prompt in enumerate(prompts) for arm in arms]
    return made[: options.items]


def told(rig: Rig, name: str) -> None:
    print(f"{name}: {time.monotonic() - rig.began_s:.1f} s since the start", flush=True)


def concluded(rig: Rig, calibration: Calibration) -> dict[str, dict[str, Any]]:
    """Figures of every run so far, written with all they come from, so that they can be made again."""
    options = rig.options
    found = {name: summed_up(rig, name) for name in rig.runs if name in rules_of(options)}
    given = {**dataclasses.asdict(options), "out": options.out.name, "calibration": str(options.calibration or "")}
    runs = {name: {"began": run.began, "rows": run.rows, "gpu_samples": run.gpu_samples} for name, run in rig.runs.items()}
    kept = {"options": given, "calibration": calibration.model_dump(mode="json"), "figures": found, "runs": runs}
    save(options.out, "cluster", {**kept, "num_gpus": rig.num_gpus})
    return found


if __name__ == "__main__":
    sys.exit(main())
