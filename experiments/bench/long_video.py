"""Videos many times as long as a model was trained for, by blocks over 1, 2, 4, ... ranks: memory of a rank, seconds, flicker.

    python -m experiments.bench.long_video --ranks 1 4 --times 2 4 8 16 --out long.json

Every length is made by every number of ranks, and is the same video; up to ``--plain-up-to`` also by a plain run and FreeLong.
Flicker is the mean change to the next frame, in levels of 255, where a latent frame begins: at borders of blocks, and elsewhere.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import pathlib
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

from experiments.bench.common import save
from experiments.bench.long_video_report import report
from experiments.bench.ranks import introduce, met, started

PROMPT = "a red ball moves right"
TIMEOUT = timedelta(minutes=10)
Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Plan:
    """What to make, the same for all ranks."""

    model: str
    weights: str | None
    device: str
    prompt: str
    steps: int
    height: int
    width: int
    times: tuple[int, ...]
    plain_up_to: int
    blocks: Row
    videos: str | None
    is_random: bool


def serve(plan: Plan, num_ranks: int, rank: int, pipe: Connection) -> None:
    """Entry of a process: the rows of all lengths, sent by rank 0."""
    store, device = met(plan.device, rank, pipe, TIMEOUT)
    from parallel.groups import Groups

    groups = Groups(store, rank, num_ranks, device, TIMEOUT)
    rows = _rows(plan, groups)
    if rank == 0:
        pipe.send(rows)
        time.sleep(1.0)  # its store is what the others still read
    groups.close()


def _rows(plan: Plan, groups: Any) -> list[Row]:
    """Blocks first, the shortest video before all others, and decoding after them: what a process has held once it may keep."""
    if plan.device == "cuda":
        _clip(plan, groups, plan.times[0], "dualparal")  # compiles, and makes the ranks known to each other
    made = [_clip(plan, groups, times, "dualparal") for times in plan.times]
    if groups.num_ranks == 1:
        plain = [times for times in plan.times if times <= plan.plain_up_to]
        made += [_clip(plan, groups, times, method) for times in plain for method in ("full", "freelong")]
    return [row | _flicker(plan, groups, latent, row) for row, latent in made]


def _clip(plan: Plan, groups: Any, times: int, method: str) -> tuple[Row, Any]:
    import torch
    import torch.distributed as dist

    from parallel.layout import layout
    from parallel.native import Native
    from stages.denoise import run_stages, start

    model, planner = _model(plan, str(groups.device)), _planner(plan, times, method)
    condition = _condition(plan, str(groups.device))
    legs: list[Any] = []
    make = planner.leg

    def kept(*given: Any) -> Any:
        legs.append(make(*given))
        return legs[-1]

    planner.leg = kept
    model.attach(layout(groups, 0, groups.num_ranks, 2), Native())
    boundary = start(model, planner, condition, 1)
    _reset_peak()
    before, began_s = _memory_bytes(), time.perf_counter()
    boundary, _ = run_stages(model, planner, boundary, 1)
    spent_s = time.perf_counter() - began_s
    model.attach(None, None)
    state = legs[0].most_bytes if legs and legs[0] else 0
    mine = torch.tensor([state, _peak_bytes() - before, _peak_bytes()], dtype=torch.int64)
    every = [torch.empty_like(mine) for _ in range(groups.num_ranks)]
    dist.all_gather(every, mine)
    row = {
        "method": method,
        "times": times,
        "ranks": groups.num_ranks,
        "frames": planner.task.shape.num_frames,
        "latent_frames": boundary.x.shape[2],
        "seconds": spent_s,
        "tflops": boundary.past.tflops,
        "state_bytes": [int(one[0]) for one in every],
        "growth_bytes": [int(one[1]) for one in every],
        "peak_bytes": [int(one[2]) for one in every],
        "digest": _digest(boundary.x),
    }
    return row, boundary.x


@functools.cache
def _model(plan: Plan, device: str) -> Any:
    from stages.models.base import load

    return _random(plan)[0] if plan.is_random else load(plan.model, plan.weights, device)


@functools.cache
def _random(plan: Plan) -> tuple[Any, Any]:
    """The model on this process's GPU, the same numbers in every process, and a prompt; no decoder."""
    import torch

    from experiments.bench import single_gpu_models as large

    torch.manual_seed(0)
    subject = large.Subject(plan.model, _native(plan), plan.steps, 2, 2)
    return large.ours(subject, (large.transformer(subject),)), large.condition(subject)


@functools.cache
def _condition(plan: Plan, device: str) -> Any:
    from stages.models.base import Request

    model = _model(plan, device)
    if plan.is_random:
        return _random(plan)[1]
    return model.encode(Request(plan.prompt, _native(plan), model.geometry.default_guidance))


def _native(plan: Plan) -> Any:
    from orchestrator.geometry import model

    return replace(model(plan.model).default_shape, height=plan.height, width=plan.width)


def _planner(plan: Plan, times: int, method: str) -> Any:
    from orchestrator.dvg_config import DvgConfig
    from orchestrator.geometry import model
    from orchestrator.methods import find, read_settings
    from stages.planners import make_planner

    geometry, native = model(plan.model), _native(plan)
    num_latents = geometry.latent_grid(native)[0] * times
    shape = replace(native, num_frames=(num_latents - 1) * geometry.vae_stride[0] + 1)
    makers: tuple[Any, ...] = ()
    if method == "freelong":
        free = find(method, "accelerator")
        makers = (functools.partial(free.make, read_settings(free, {}), geometry),)
    name, settings = ("dualparal", plan.blocks) if method == "dualparal" else ("full", {})
    config = DvgConfig(initial_noise="coordinate")
    return make_planner(name, geometry, shape, plan.steps, None, config, settings=settings, accelerators=makers)


def _flicker(plan: Plan, groups: Any, latent: Any, row: Row) -> Row:
    """Mean change between neighbouring frames, one run of frames at a time; nothing of several ranks or a random model."""
    if groups.num_ranks > 1 or plan.is_random:
        return {}
    import numpy as np

    from stages.planners.dualparal import DualParalSettings, queue_of
    from stages.video import write_mp4

    model = _model(plan, str(groups.device))
    began_s, stride = time.perf_counter(), model.geometry.vae_stride[0]
    changes, last, kept = list[float](), None, []
    for run in model.decode(latent):
        whole = run if last is None else np.concatenate([last, run])
        changes += [float(abs(b.astype(np.int16) - a).mean()) for a, b in itertools.pairwise(whole)]
        last = run[-1:]
        if plan.videos:
            kept.append(run)
    if plan.videos:
        folder = pathlib.Path(plan.videos)
        folder.mkdir(parents=True, exist_ok=True)
        write_mp4(kept, folder / f"{row['method']}-{row['times']}x.mp4", _native(plan).fps)
    queue = queue_of(DualParalSettings(**plan.blocks), model.geometry, latent.shape[2], plan.steps)
    blocks = [moved for block in range(queue.num_blocks) if (moved := queue.moved(block, plan.steps - 1))]
    near = {block.start + past for block in blocks[1:] for past in range(queue.overlap + 1)}
    begins = {frame: changes[stride * (frame - 1)] for frame in range(1, latent.shape[2])}
    borders = [change for frame, change in begins.items() if frame in near]
    inside = [change for frame, change in begins.items() if frame not in near]
    most = len(max(blocks, key=len))
    places = [[begins[block[place]] for block in blocks[1:] if place < len(block)] for place in range(most)]
    return {
        "decode_s": time.perf_counter() - began_s,
        "num_borders": len(blocks) - 1,
        "most_at_a_place": max(float(np.mean(found)) for found in places if found),
        "at_borders": float(np.mean(borders)),
        "inside": float(np.mean(inside)),
        "inside_spread": float(np.std(inside)),
        "all_frames": float(np.mean(changes)),
        "last_quarter": float(np.mean(changes[-len(changes) // 4 :])),
    }


def _digest(x: Any) -> str:
    """Of the latent to four digits, as ranks differ by rounding."""
    return f"mean {float(x.mean()):.4f}, root mean square {float(x.square().mean().sqrt()):.4f}"


def _reset_peak() -> None:
    """Of this process's memory, as Linux counts it; of its GPU's where it has one."""
    import torch

    pathlib.Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _memory_bytes() -> int:
    return _cuda_bytes("memory_allocated") or _status_bytes("VmRSS")


def _peak_bytes() -> int:
    return _cuda_bytes("max_memory_allocated") or _status_bytes("VmHWM")


def _cuda_bytes(name: str) -> int:
    import torch

    return int(getattr(torch.cuda, name)()) if torch.cuda.is_available() else 0


def _status_bytes(name: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def measured(plan: Plan, num_ranks: int) -> list[Row]:
    """By so many processes. Raises RuntimeError when one of them ends early."""
    crew, pipes = started(serve, num_ranks, plan, num_ranks)
    try:
        introduce(pipes, TIMEOUT)
        rows: list[Row] = pipes[0].recv()
    except EOFError as error:
        raise RuntimeError(f"rank 0 of {num_ranks} ended early") from error
    finally:
        for process in crew:
            process.join(30)
            if process.is_alive():
                process.kill()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wan-mini")
    parser.add_argument("--weights")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--times", type=int, nargs="+", default=[2, 4, 8, 16], help="native lengths")
    parser.add_argument("--plain-up-to", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--width", type=int, default=144)
    parser.add_argument("--block-frames", type=int)
    parser.add_argument("--overlap-frames", type=int)
    parser.add_argument("--context-frames", type=int, default=0)
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--order", default="noisiest", choices=("noisiest", "cleanest"))
    parser.add_argument("--videos", help="folder for them")
    parser.add_argument("--random", action="store_true", help="random weights, on GPUs: seconds and memory, no flicker")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("long_video.json"))
    given = parser.parse_args()
    if given.random and given.device == "cpu":
        parser.error("--random makes a large model on GPUs: give --device cuda")
    names = ("block_frames", "overlap_frames", "context_frames", "in_flight", "order")
    plan = Plan(
        *(given.model, given.weights, given.device, given.prompt, given.steps, given.height, given.width),
        *(tuple(given.times), given.plain_up_to, {name: getattr(given, name) for name in names}, given.videos, given.random),
    )
    rows: list[Row] = []
    for num_ranks in given.ranks:
        rows += measured(plan, num_ranks)
        save(given.out, "long_video", {"plan": vars(plan), "rows": rows})
        given.out.with_suffix(".md").write_text(report(given.out))


if __name__ == "__main__":
    main()
