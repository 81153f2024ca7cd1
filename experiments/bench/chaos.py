"""A sweep on wan-mini in which everything that can be killed is killed, again and again, and what is left of it afterwards.

    python -m experiments.bench.chaos [--items 200] [--kills 100] [--seed 0] [--out FILE]

The same items are first made undisturbed, on a cluster of the same kind. Then ranks, sketch and decode workers, nodes, the
tracker and the driver get SIGKILL at random while the sweep goes on; a driver that is gone is started again, same command.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from experiments.bench.chaos_checks import losses, mistakes_of, rows_of
from experiments.bench.chaos_report import report
from experiments.bench.chaos_rig import ENVIRONMENT, ROOT, Rig, last_error, wait_until
from experiments.bench.common import save
from orchestrator.cli_sweep import scheduler_config
from orchestrator.config import Sweep, load_sweep
from orchestrator.paths import RunPaths
from orchestrator.resolve_sizing import sizing_of
from orchestrator.scheduler import Scheduler

SHARES = {"rank": 0.42, "sketch": 0.19, "decode": 0.19, "node": 0.08, "driver": 0.06, "tracker": 0.06}
"""Of all kills."""
PATIENCE_S = 900.0
"""Without a record the sweep hangs."""
GAVE_UP = 1
"""Exit code of a driver that says what it lacks."""
PURSUIT_S = 3.0
"""How long a worker that is at work is looked for before an idle one will do."""
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "cyan", "pink")
SHAPES = ("circle", "square", "triangle", "cross")
PACES = ("stays still", "drifts slowly to the right")
NUM_NODES = 3


@dataclass(frozen=True)
class Options:
    items: int
    kills: int
    seed: int
    width: int
    frames: int
    side: int
    steps: int
    shipped: bool
    calm: str
    out: Path


@dataclass
class Tally:
    """What was done to the sweep."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 1
    misses: int = 0
    """Times that nothing of the kind was alive, and a rank was taken instead."""
    gave_up: list[str] = field(default_factory=list)
    """What drivers said that ended on their own account; the same command went on."""
    story: list[tuple[float, str, int]] = field(default_factory=list)
    """Seconds, kind and records at each kill."""


def spec_of(options: Options, weights: Path | None) -> dict[str, Any]:
    """Prompts by colour, shape and pace, each under as many seeds as it takes."""
    prompts = [f"a large {c} {s} {p} on a plain background" for c in COLOURS for s in SHAPES for p in PACES]
    prompts = prompts[: max(1, min(len(prompts), options.items // 3))]
    return {
        "name": "chaos",
        "model": "wan-mini",
        "frames": options.frames,
        "height": options.side,
        "width": options.side,
        "steps": options.steps,
        "seeds": list(range(-(-options.items // len(prompts)))),
        "prompts": prompts,
        "max_attempts": 12,
        "arms": {"dvg": {"planner": "dvg", "budget": 0.5}},
        "cluster": {
            "pods": 2,
            "heavy_ranks": 2,
            "num_threads": 1,
            "collective_timeout_s": 60,
            "sizing": {"rule": "fixed", "width": options.width},
        },
        "guidance": 1.0,
        **({} if weights is None else {"weights": str(weights)}),
    }


def main(words: Sequence[str] | None = None) -> int:
    options = parse(words)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        spec = root / "chaos.yaml"
        spec.write_text(yaml.safe_dump(spec_of(options, None if options.shipped else tiny(root))))
        calm_s = alone(options, root, spec) if options.calm == "local" else made(options, root, spec, "undisturbed", Tally(), 0)
        tally = Tally()
        wild_s = made(options, root, spec, "disturbed", tally, kills=options.kills)
        found = concluded(options, root, load_sweep(spec, []), tally) | {"undisturbed_s": calm_s, "disturbed_s": wild_s}
    given = {**asdict(options), "out": options.out.name}
    found = {"options": given, "nodes": NUM_NODES, **found}
    save(options.out, "chaos", found)
    text = report(found)
    options.out.with_suffix(".md").write_text(text)
    print(text)
    return verdict(found)


def verdict(found: Mapping[str, Any]) -> int:
    """0 where every check holds after as many kills as were asked for."""
    return int(any(found["mistakes"].values()) or found["num_kills"] < found["options"]["kills"])


def tiny(root: Path) -> Path:
    """A checkpoint of wan-mini of a few kilobytes."""
    from stages.models import tiny as checkpoints

    checkpoints.build("wan-mini", root / "weights")
    return root / "weights"


def alone(options: Options, root: Path, spec: Path) -> float:
    """The sweep in one process, without Ray; seconds. Raises CalledProcessError when it fails."""
    began_s = time.monotonic()
    command = ["-m", "orchestrator", "sweep", str(spec), "--out", str(root / "undisturbed"), "--limit", str(options.items)]
    environment = os.environ | ENVIRONMENT
    subprocess.run([sys.executable, *command, "--local"], cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began_s


def parse(words: Sequence[str] | None) -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=1, help="ranks of every slice")
    parser.add_argument("--frames", type=int, default=25)
    parser.add_argument("--side", type=int, default=96, help="height and width, pixels")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--shipped", action="store_true", help="the weights that ship, instead of a tiny checkpoint")
    parser.add_argument("--calm", choices=("ray", "local"), default="ray", help="how the undisturbed run is made")
    parser.add_argument("--out", type=Path, default=Path("experiments/results/chaos_cpu.json"))
    return Options(**vars(parser.parse_args(words)))


def made(options: Options, root: Path, spec: Path, name: str, tally: Tally, kills: int) -> float:
    """Run the sweep to its end under so many kills; seconds. Raises RuntimeError when it does not end well."""
    paths, log = RunPaths(root / name), root / f"{name}.log"
    command = ["-m", "orchestrator", "sweep", str(spec), "--out", str(paths.root), "--limit", str(options.items)]
    rig, began_s = Rig(NUM_NODES), time.monotonic()
    try:
        rig.drive(command, log)
        rampage = Rampage(options, rig, paths, tally, command, log)
        rampage.run(kills)
        code = rampage.wait()
        if code != 0:
            raise RuntimeError(f"the {name} sweep ended with {code}")
    except (RuntimeError, TimeoutError):
        print(f"the log of the {name} sweep ends:\n{log.read_text()[-4000:]}", flush=True)
        raise
    finally:
        rig.close()
    return time.monotonic() - began_s


def plan(kills: int, dice: random.Random) -> list[str]:
    """Kinds in the order in which they are struck."""
    kinds = [kind for kind, share in SHARES.items() for _ in range(round(share * kills))]
    kinds = (kinds + ["rank"] * kills)[:kills]
    dice.shuffle(kinds)
    return kinds


class Rampage:
    """Kills as records come in: one whenever the sweep is so far, or nothing has come of it for a while."""

    def __init__(self, options: Options, rig: Rig, paths: RunPaths, tally: Tally, command: Sequence[str], log: Path) -> None:
        self.options, self.rig, self.paths, self.tally, self.command, self.log = options, rig, paths, tally, command, log
        self.dice = random.Random(options.seed)
        self.began_s = time.monotonic()

    @property
    def num_records(self) -> int:
        return self.paths.records.read_bytes().count(b"\n") if self.paths.records.exists() else 0

    def run(self, kills: int) -> None:
        every = 0.9 * self.options.items / max(kills, 1)
        for number, kind in enumerate(plan(kills, self.dice)):
            due = int(every * number) + 1
            self._wait_for(due)
            if self.num_records >= self.options.items:
                return
            time.sleep(self.dice.uniform(0.0, 2.0))
            self._strike(kind)

    def wait(self) -> int:
        """Until the driver ends by itself; its exit code."""
        self._wait_for(self.options.items)
        driver = self.rig.driver
        if driver is None:
            raise RuntimeError("there is no driver")
        return driver.wait(timeout=PATIENCE_S)

    def _wait_for(self, due: int) -> None:
        """A driver that gives up is started again. Raises TimeoutError when no record comes, RuntimeError for other ends."""

        def there() -> bool:
            driver = self.rig.driver
            if driver is not None and driver.poll() not in (None, 0):
                self._go_on(driver.returncode)
            return self.num_records >= due

        wait_until(there, PATIENCE_S, f"record {due}")

    def _go_on(self, code: int) -> None:
        if code != GAVE_UP:
            raise RuntimeError(f"the driver ended with {code} at {self.num_records} records")
        self.tally.gave_up.append(last_error(self.log))
        print(f"gave up: {self.tally.gave_up[-1]}", flush=True)
        self.tally.starts += 1
        self.rig.drive(self.command, self.log)

    def _strike(self, kind: str) -> None:
        """One process, or a node, as soon as there is one to kill."""
        if kind == "node":
            self._note(kind)
            self.rig.kill_node(self.dice.randrange(len(self.rig.nodes)))
            return
        while self.num_records < self.options.items:
            victims = self.rig.at_work(kind, PURSUIT_S)
            if not victims and kind != "rank":
                self.tally.misses += 1
                kind = "rank"
            elif victims and self._killed(kind, self.dice.choice(sorted(victims, key=lambda process: process.pid))):
                return
            self._wait_for(0)

    def _killed(self, kind: str, victim: psutil.Process) -> bool:
        """False for one that was gone already."""
        try:
            self.rig.kill(victim)
        except psutil.NoSuchProcess:
            return False
        self._note(kind)
        if kind == "driver":
            self.tally.starts += 1
            self.rig.drive(self.command, self.log)
        return True

    def _note(self, kind: str) -> None:
        self.tally.kills[kind] += 1
        self.tally.story.append((round(time.monotonic() - self.began_s, 1), kind, self.num_records))
        print(f"{self.tally.story[-1]}", flush=True)


def concluded(options: Options, root: Path, sweep: Sweep, tally: Tally) -> dict[str, Any]:
    """Every check of the disturbed run, and what was lost."""
    from stages.video import verify

    calm, wild = RunPaths(root / "undisturbed"), RunPaths(root / "disturbed")
    undisturbed, events = rows_of(calm.records), rows_of(wild.events)

    def fresh() -> Scheduler:
        return Scheduler(scheduler_config(sweep), sizing_of(sweep.arms, sweep.cluster))

    wanted = [row["item_key"] for row in undisturbed]
    return {
        "kills": dict(tally.kills),
        "num_kills": tally.kills.total(),
        "driver_starts": tally.starts,
        "misses": tally.misses,
        "gave_up": tally.gave_up,
        "story": tally.story,
        "items": len(wanted),
        "attempts": dict(sorted(Counter(row["attempts"] for row in rows_of(wild.records)).items())),
        "losses": losses(events),
        "mistakes": mistakes_of(wild, wanted, undisturbed, fresh, verify),
    }


if __name__ == "__main__":
    sys.exit(main())
