"""What ``experiments.bench.cluster`` is asked to run: model, shape, arms, layout of the GPUs, and the demands of the items."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.arms import Arm
from orchestrator.cluster_config import ClusterConfig
from orchestrator.demands import actions_of, decision_for
from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model
from orchestrator.sizing import SizingConfig
from orchestrator.types import Demand, Grid, VideoShape

MODELS = {"hv15": ("hunyuanvideo-1.5", VideoShape(121, 480, 848, 24)), "wan": ("wan2.2-a14b", VideoShape(81, 480, 832, 16))}
TINY = VideoShape(25, 160, 160, 8)
RESULTS = pathlib.Path(__file__).parents[1] / "results"
DEMANDS = RESULTS / "adaptivity_cpu_202611.json"


@dataclass(frozen=True)
class Options:
    """As the command line has them."""

    out: pathlib.Path
    model: str
    items: int
    steps: int
    budgets: tuple[float, ...]
    guidance: float
    heavy: int
    pods: int
    decode_workers: int
    gpus_per_rank: float
    gpus_per_sketch: float
    gpus_per_decode: float
    decode_on: str
    rules: tuple[str, ...]
    minutes: float
    calibration: pathlib.Path | None
    rehearse: bool

    @property
    def model_name(self) -> str:
        return MODELS[self.model][0]

    @property
    def num_prompts(self) -> int:
        return -(-self.items // len(self.budgets))

    @property
    def num_actors(self) -> int:
        return self.pods * self.heavy + self.decode_workers + 1

    @property
    def num_cpus(self) -> int:
        """What the cluster claims to have: Ray starts a process for each beforehand."""
        return self.num_actors * (1 if self.rehearse else 4)

    @property
    def shape(self) -> VideoShape:
        return TINY if self.rehearse else MODELS[self.model][1]

    def arms(self, weights: str | None) -> tuple[Arm, ...]:
        """One for each budget, so that clips cost differently."""
        name = MODELS[self.model][0]
        config = DvgConfig.for_model(model(name))
        shape = dataclasses.asdict(self.shape)
        return tuple(
            Arm(
                name=f"dvg-{budget:g}", model=name, weights=weights, planner="dvg", budget=budget, num_steps=self.steps,
                guidance=self.guidance, dvg=config, **shape,
            )
            for budget in self.budgets
        )  # fmt: skip

    def cluster(self, sizing: SizingConfig) -> ClusterConfig:
        on_gpu = not self.rehearse
        return ClusterConfig.model_validate(
            {
                "pods": self.pods,
                "heavy_ranks": self.heavy,
                "decode_workers": self.decode_workers,
                "gpus_per_rank": self.gpus_per_rank * on_gpu,
                "gpus_per_sketch": self.gpus_per_sketch * on_gpu,
                "gpus_per_decode": self.gpus_per_decode * on_gpu,
                "decode_on": self.decode_on,
                "num_threads": None if on_gpu else 1,
                "compile": on_gpu,
                "sizing": sizing,
            }
        )


def demands_of(path: pathlib.Path, num: int) -> list[tuple[str, Demand]]:
    """Captions with what their sketches showed, in the order of the recording. Raises ValueError when there are too few."""
    rows = json.loads(path.read_text())["rows"]
    if len(rows) < num:
        raise ValueError(f"{num} demands are wanted and {path.name} holds {len(rows)}")
    return [(row["caption"], Demand(row["spatial"], row["temporal"], row["neutral"])) for row in rows[:num]]


def grids_of(arms: Iterable[Arm], demands: Iterable[Demand]) -> tuple[Grid, ...]:
    """Those of the schedules that the demands choose, smallest first."""
    found: set[Grid] = set()
    told = list(demands)
    for arm in arms:
        actions = actions_of(arm)
        found |= {stage.grid for demand in told for stage in decision_for(arm, actions, demand).action.stages}
    return tuple(sorted(found, key=lambda grid: (grid[0] * grid[1] * grid[2], grid)))


def widths(num_ranks: int) -> list[int]:
    return [1 << k for k in range(num_ranks.bit_length())]


def rules_of(options: Options) -> dict[str, SizingConfig]:
    """By the names of the command line; ``fixedN`` is as wide as the pod."""
    known = {
        "throughput": SizingConfig(rule="throughput", order="longest"),
        "efficient": SizingConfig(rule="efficient"),
        **{f"fixed{width}": SizingConfig(rule="fixed", width=width) for width in widths(options.heavy)},
    }
    if odd := [rule for rule in options.rules if rule not in known]:
        raise ValueError(f"rule {odd[0]!r} must be one of: {', '.join(known)}")
    return {rule: known[rule] for rule in options.rules or ("throughput", "fixed1", f"fixed{options.heavy}")}


def parse(words: Sequence[str] | None, text: str | None) -> Options:
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="JSON file")
    parser.add_argument("--model", choices=sorted(MODELS), default="hv15")
    parser.add_argument("--items", type=int, default=24)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--budgets", type=float, nargs="+", default=(0.5, 0.7), help="an arm each")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--heavy", type=int, default=2, help="ranks of a pod")
    parser.add_argument("--pods", type=int, default=1)
    parser.add_argument("--decode-workers", type=int, default=2)
    parser.add_argument("--gpus-per-rank", type=float, default=1.0)
    parser.add_argument("--gpus-per-sketch", type=float, default=0.5)
    parser.add_argument("--gpus-per-decode", type=float, default=0.5)
    parser.add_argument("--decode-on", choices=("workers", "pod"), default="workers")
    parser.add_argument("--rules", nargs="*", default=(), help="of throughput, efficient, fixed1, fixed2, ...")
    parser.add_argument("--minutes", type=float, default=8.0, help="nothing is begun that is predicted to end later")
    parser.add_argument("--calibration", type=pathlib.Path, help="result of an earlier run of the same clips; else measured")
    parser.add_argument("--rehearse", action="store_true")
    given = vars(parser.parse_args(words))
    return Options(**{**given, "budgets": tuple(given["budgets"]), "rules": tuple(given["rules"])})
