"""Every method at a model's real size with random weights, in one run: seconds, operations, and the paper's speed beside them.

``python -m experiments.bench.methods wan --out FILE``. Seconds depend on shapes and on how much a rule computes; a rule that
goes by content decides here on what random weights show, so each row says what share of the operations it executed.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from experiments.bench import single_gpu_models
from experiments.bench.common import save
from experiments.bench.methods_report import report
from experiments.bench.single_gpu_models import SUBJECTS, Subject
from orchestrator.arms import MethodUse
from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model as geometry_of
from orchestrator.methods import Request, find, named, read_settings
from orchestrator.types import VideoShape
from stages.accelerators import made_by
from stages.denoise import clock_s, run_stages, start
from stages.planners import Planner, make_planner

WAN = Subject("wan2.1-14b", VideoShape(81, 480, 832, 16), 40, 2, 1)
"""One branch of guidance: the other one costs as much again under every method but FasterCache."""
WHAT = {"hv15": dataclasses.replace(SUBJECTS["hv15-t2v"], branches=1), "wan": WAN}


@dataclasses.dataclass(frozen=True)
class Case:
    """One row. ``paper`` is the speed that DVG's tables give over their plain run, of 50 steps (Wan: 40) unless it says."""

    name: str
    planner: Any = "full"
    accelerators: tuple[Any, ...] = ()
    budget: float | None = None
    paper: str = ""


CASES = (
    Case("full", paper="1.00"),
    Case("dvg-0.5", "dvg", budget=0.5, paper="2.79 (table 3), 2.29 (Wan, table 2)"),
    Case("teacache", accelerators=("teacache",), paper="2.26 (table 1)"),
    Case("adacache", accelerators=("adacache",), paper="2.02 (table 3)"),
    Case("taylorseer", accelerators=("taylorseer",), paper="1.61 (12 steps, table 3)"),
    Case("jenga-prores", "jenga-prores", paper="1.40 (table 3)"),
    Case("bottleneck", "bottleneck", paper="2.10 (table 3)"),
    Case("vgdfr", "vgdfr", paper="1.58 (table 3)"),
    Case("fresco", "fresco", paper="3.96 (20 of 50 steps, table 1)"),
    Case("fewer-steps", "fewer-steps", paper="4.55 (table 1)"),
    Case("dvg-0.5+teacache", "dvg", ("teacache",), 0.5),
    Case("dvg-0.5+taylorseer", "dvg", ("taylorseer",), 0.5),
    Case("first-block", accelerators=("first-block",)),
    Case("pab", accelerators=("pab",)),
    Case("delta-dit", accelerators=("delta-dit",)),
    Case("dbcache", accelerators=("dbcache",)),
    Case("changing-resolution", "changing-resolution"),
    Case("spectral", "spectral"),
    Case("taylorseer-blocks", accelerators=({"taylorseer": {"mode": "blocks"}},)),
)


def without_autoencoder(model: Any, subject: Subject) -> None:
    """Stand-ins for what VGDFR asks of one, which ``experiments.bench.vgdfr`` times: a clip in which nothing moves."""
    shape, geometry = subject.shape, geometry_of(subject.name)
    model.preview = lambda latent: torch.zeros(1, 3, shape.num_frames, 64, 64, device=model.device)

    def latent_of(video: torch.Tensor) -> torch.Tensor:
        grid = (video.shape[2] - 1) // geometry.vae_stride[0] + 1, *geometry.latent_grid(shape)[1:]
        return torch.randn(1, geometry.latent_channels, *grid, device=model.device)

    model.latent_of = latent_of


def planned(subject: Subject, case: Case, steps: int) -> Planner:
    """The planner of a case with its accelerators. Raises ValueError where a method does not serve the model."""
    geometry = geometry_of(subject.name)
    config = DvgConfig.for_model(geometry, {"image_condition": "index"})
    planner, given = named(case.planner)
    request = Request(geometry, subject.shape, steps, 1.0, planner, config)
    uses = tuple(_use(use, request) for use in case.accelerators)
    settings = _resolved("planner", planner, given, request)
    return make_planner(
        planner, geometry, subject.shape, steps, case.budget, config, settings=settings, accelerators=made_by(uses, geometry)
    )


def _use(value: Any, request: Request) -> MethodUse:
    name, given = named(value)
    return MethodUse(name=name, settings=_resolved("accelerator", name, given, request))


def _resolved(kind: Any, name: str, given: Mapping[str, Any], request: Request) -> dict[str, Any]:
    method = find(name, kind)
    settings = method.resolve(read_settings(method, given), request)
    if wrong := method.mistakes(settings, request):
        raise ValueError("; ".join(wrong))
    dumped: dict[str, Any] = settings.model_dump(mode="json")
    return dumped


def run(model: Any, subject: Subject, case: Case, condition: Any, steps: int) -> dict[str, Any]:
    """One clip's denoising: seconds of its stages, operations executed, its grids."""
    planner = planned(subject, case, steps)
    without_autoencoder(model, subject)
    boundary = start(model, planner, condition, 0)
    torch.cuda.reset_peak_memory_stats()
    began_s, compile_s, stages_s = clock_s(model.device), 0.0, {}
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, seconds = run_stages(model, planner, boundary, boundary.stage + 1)
        compile_s += seconds.pop("compile_s", 0.0)
        stages_s |= seconds
    action = boundary.decision.action
    return {
        "name": case.name,
        "paper": case.paper,
        "seconds": sum(stages_s.values()),
        "wall_s": clock_s(model.device) - began_s,
        "compile_s": compile_s,
        "stages_s": stages_s,
        "tflops": boundary.past.tflops,
        "grids": ["x".join(map(str, stage.grid)) for stage in action.stages],
        "steps": [stage.steps for stage in action.stages],
        "density": action.density,
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30,
    }


def warm(model: Any, subject: Subject, condition: Any, cases: Sequence[Case]) -> float:
    """Seconds of a short clip of every case on a small grid: what is compiled is compiled before anything is timed."""
    small = dataclasses.replace(subject, shape=VideoShape(33, 256, 256, subject.shape.fps))
    began_s = time.perf_counter()
    for case in cases:
        try:
            run(model, small, case, condition, 8)
        except ValueError as problem:
            print(f"{case.name}, warming up: {problem}", flush=True)
    return time.perf_counter() - began_s


def measure(subject: Subject, cases: Sequence[Case], minutes: float, steps: int | None) -> dict[str, Any]:
    """Rows of the cases in order, as far as the minutes go; what was refused or left, by name."""
    deadline_s = time.monotonic() + 60 * minutes
    model = single_gpu_models.ours(subject, (single_gpu_models.transformer(subject),))
    condition = single_gpu_models.condition(subject, branches=1)
    warm_s = warm(model, subject, condition, cases)
    rows: list[dict[str, Any]] = []
    left: dict[str, str] = {}
    for case in cases:
        if time.monotonic() > deadline_s - max((row["wall_s"] for row in rows), default=0.0):
            left[case.name] = "no time was left"
            continue
        try:
            rows.append(run(model, subject, case, condition, steps or subject.stock_steps))
            print(
                f"{case.name}: {rows[-1]['seconds']:.1f} s, {rows[-1]['tflops'] / rows[0]['tflops']:.3f} of the work", flush=True
            )
        except (ValueError, RuntimeError) as problem:
            left[case.name] = str(problem)
            print(f"{case.name}: {problem}", flush=True)
    return {"subject": dataclasses.asdict(subject), "warm_s": warm_s, "rows": rows, "left": left}


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=list(WHAT))
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="*", help="cases by name; full is always among them")
    parser.add_argument("--steps", type=int, help="solver steps; the model's without")
    parser.add_argument("--minutes", type=float, default=8.5)
    args = parser.parse_args()
    cases = [case for case in CASES if args.only is None or case.name in ("full", *args.only)]
    figures = measure(WHAT[args.subject], cases, args.minutes, args.steps)
    save(args.out, "methods", figures)
    print(report(figures))


if __name__ == "__main__":
    main()
