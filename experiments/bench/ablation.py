"""What each part of DVG is worth on wan-mini: one variant a row, the same prompts and seeds, everything measured.

``python -m experiments.bench.ablation --device cuda --prompts 64 --out experiments/results/ablation_wan_mini_202611.json``
takes some minutes on one GPU; ``--prompts 2 --seeds 1 --steps 8 --variants full dvg`` is a look at it on a CPU.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import pathlib
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import torch

from experiments.bench.ablation_merge import merged
from experiments.bench.common import facts
from experiments.bench.lockstep import Lockstep
from experiments.bench.studies_common import (
    COLUMNS,
    GEOMETRY,
    Clip,
    Deadline,
    Judges,
    Row,
    Variant,
    batches,
    by_prompt,
    clips_of,
    difference,
    interval,
    play,
    save_rows,
    score,
    table,
    write,
)
from experiments.embedded.captions import caption
from experiments.embedded.scenes import held_out_scenes
from experiments.metrics.likeness import compare_many
from orchestrator.actions import DvgConfig, density_executed
from stages.denoise import run_stages, start
from stages.models import embedded
from stages.models.base import Model, Request, load
from stages.planners import Planner

RELEASED = DvgConfig().model_dump(include={"demand_space", "spatial_demand", "temporal_demand", "sharpness"})
ALIGNED = {"noise_field": "stock", "initial_noise": "coordinate"}
FITTED = {"matching": "fitted", "spatial_demand": "sobel"}
RISING = tuple(GEOMETRY.full_shift * rise / 7 for rise in (7, 9, 11, 11))
PARTS = (
    Variant("dvg", "wan-mini's defaults: demands on the decoded sketch"),
    Variant("released", "the release's measures, on the latent", knobs=RELEASED),
    Variant("pixel-space", "the release's measures, on the decoded sketch", knobs={**RELEASED, "demand_space": "pixels"}),
    Variant("windowed-flow", "released, but windowed Lucas-Kanade flow", knobs={**RELEASED, "temporal_demand": "windowed_lk"}),
    Variant("paper-scoring", "released, but equation 9 as the paper writes it", knobs={**RELEASED, "matching": "stage_mean"}),
    Variant("demand-match", "the release's other scoring", knobs={"matching": "demand_match"}),
    Variant("fitted", "a rule fitted on training captions", knobs=FITTED),
    Variant("no-demand", "sharpness 0: space and time weigh alike for every video", knobs={"sharpness": 0.0}),
    Variant("temporal-only", "fewer frames, full height and width", "temporal-only"),
    Variant("spatial-only", "smaller frames, all of them", "spatial-only"),
    Variant("fixed", "0.70 of height and width, 0.55 of the frames, for every video", "fixed"),
    Variant("linear-upsampling", "trilinear resizes", knobs={"resize": "trilinear"}),
    Variant("area", "no anchors restored in space", knobs={"resize": "temporal_interp_spatial_area"}),
    Variant("anchor-linear", "the paper's equation 12 on all axes", knobs={"resize": "temporal_interp_spatial_interp"}),
    Variant("random-renoise", "fresh noise at every transition", knobs={"renoise": "random"}),
    Variant("no-smoothing", "no blur on entering stage 2", knobs={"smoothing": 0.0}),
    Variant("rising-shifts", "shifts that rise with the grid, 7:9:11:11", knobs={"shifts": RISING}),
    Variant("more-full-steps", "the last transition at 0.65 instead of 0.72", knobs={"transition_rates": (0.28, 0.5, 0.65)}),
    Variant("fewer-full-steps", "transitions at 0.35, 0.60, 0.80", knobs={"transition_rates": (0.35, 0.6, 0.8)}),
    Variant("shorter-sketch", "transitions at 0.20, 0.40, 0.60", knobs={"transition_rates": (0.2, 0.4, 0.6)}),
    Variant("under-extrapolated", "clean estimates 0.9 of the way", knobs={"extrapolation": 0.9}),
    Variant("together", "fitted, trilinear, rising shifts", knobs={**FITTED, "resize": "trilinear", "shifts": RISING}),
)  # fmt: skip
BY_NAME = {part.name: part for part in PARTS}
ALIGNED_TOO = ("dvg", "released", "paper-scoring", "fitted", "no-demand", "temporal-only", "spatial-only", "fixed",
               "linear-upsampling", "anchor-linear", "no-smoothing", "rising-shifts", "more-full-steps", "under-extrapolated",
               "together")  # fmt: skip
IMAGE_TOO = ("released", "fitted", "no-demand", "temporal-only", "spatial-only", "fixed", "together")
ENCODED = {"image_condition": "encode"}
VARIANTS = (
    Variant("full", "every step on the full grid", "full", reference="none"),
    *PARTS,
    *(BY_NAME[name].but("aligned-", ALIGNED) for name in ALIGNED_TOO),
    Variant("image-full", "full, first frame given", "full", reference="none", with_image=True),
    Variant("image-dvg", "DVG, cells of the full image's latent", "dvg", {"image_condition": "index"}, "image-full", True),
    Variant("image-dvg-encode", "DVG, the image resized and encoded again", "dvg", ENCODED, "image-full", True),
    Variant("image-fixed", "fixed, the image resized and encoded again", "fixed", ENCODED, "image-full", True),
    Variant("image-aligned-dvg", "cells of the latent", "dvg", {**ALIGNED, "image_condition": "index"}, "image-full", True),
    Variant("image-aligned-dvg-encode", "resized and encoded again", "dvg", {**ALIGNED, **ENCODED}, "image-full", True),
    *(BY_NAME[name].but("image-aligned-", {**ALIGNED, **ENCODED}, reference="image-full", with_image=True) for name in IMAGE_TOO),
    Variant("earlier-full", "full", "full", reference="none", weights="earlier"),
    *(BY_NAME[name].but("earlier-", reference="earlier-full", weights="earlier") for name in ("dvg", "fixed")),
    *(BY_NAME[name].but("earlier-aligned-", ALIGNED, reference="earlier-full", weights="earlier") for name in ("dvg", "fixed")),
)  # fmt: skip
FIGURES = ("psnr", "ssim", "score", *COLUMNS, "first_psnr", "next_psnr", "scene_psnr", "scene_ssim")
BLOCKS = ("image-aligned-", "image-", "earlier-aligned-", "earlier-", "aligned-", "")
"""Prefixes of the variants' names, a longer one before what it begins with; each block is told apart from its own ``dvg``."""


def measure(
    models: Mapping[str, Lockstep], variants: Sequence[Variant], clips: Sequence[Clip], judges: Judges, args: argparse.Namespace
) -> list[Row]:
    """A row per variant and clip, for as many as the time allows."""
    rows: list[tuple[Row, Future[Row]]] = []
    deadline = Deadline(args.minutes)
    for part in batches(clips):
        videos: dict[str, Any] = {}
        for variant in itertools.takewhile(lambda _: not deadline.reached(), variants):
            model, planner = models[variant.weights], variant.make(args.budget, args.steps)
            played = play(model, planner, part, variant.with_image)
            videos[variant.name] = model.videos(played.latents)
            close: list[dict[str, float]] = [{}] * len(part)
            if variant.reference in videos:
                close = compare_many(videos[variant.name], videos[variant.reference], model.device)
            for clip, decision, video, near in zip(part, played.decisions, videos[variant.name], close, strict=True):
                row = {"variant": variant.name, "prompt": clip.number, "seed": clip.seed, "action": decision.action.name, **near}
                row |= {"density": decision.action.density, "executed": density_executed(GEOMETRY, decision.action)}
                rows.append((row, judges.submit(video, clip.scene, variant.with_image)))
            print(f"{time.strftime('%X')} {variant.name}: {len(part)} clips", flush=True)
    judged = [{**row, **future.result()} for row, future in rows]
    for row in judged:
        row["score"] = score(row)
    return judged


def cpu_latency(
    variants: Sequence[Variant], num_prompts: int, budget: float, num_steps: int, num_workers: int
) -> dict[str, float]:
    """Median seconds of denoising through the product's engine on two CPU threads, for the plain variants."""
    plain = [v for v in variants if not v.with_image and v.weights == "shipped" and not v.name.startswith("aligned-")]
    if not num_prompts:
        return {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max(1, num_workers // 2), context, torch.set_num_threads, (2,)) as pool:
        jobs = [pool.submit(engine_s, v, num_prompts, budget, num_steps) for v in plain]
        return {variant.name: job.result() for variant, job in zip(plain, jobs, strict=True)}


def engine_s(variant: Variant, num_prompts: int, budget: float, num_steps: int) -> float:
    model, planner = load(embedded.NAME, None), variant.make(budget, num_steps)
    return statistics.median(denoise_s(model, planner, number) for number in range(num_prompts))


def denoise_s(model: Model, planner: Planner, number: int) -> float:
    """Seconds from the encoded prompt to the clean latent of a held-out scene."""
    prompt = caption(held_out_scenes()[number])
    condition = model.encode(Request(prompt, GEOMETRY.default_shape, GEOMETRY.default_guidance))
    started_s = time.perf_counter()
    boundary = start(model, planner, condition, number)
    if boundary.decision is None:
        boundary, _ = run_stages(model, planner, boundary, 1)
    if boundary.decision is None:
        raise RuntimeError("the sketch left no decision")
    run_stages(model, planner, boundary, len(boundary.decision.action.stages))
    return time.perf_counter() - started_s


def summarise(rows: Sequence[Row], variants: Sequence[Variant]) -> list[dict[str, Any]]:
    """One entry a variant: every figure with its interval, its difference to the base, and how often each action was chosen."""
    found = []
    for variant in variants:
        own = [row for row in rows if row["variant"] == variant.name]
        base = [row for row in rows if row["variant"] == base_of(variant)]
        gaps = {key: difference(own, base, key) for key in FIGURES}
        found.append(
            {
                "variant": variant.name,
                "what": variant.what,
                "videos": len(own),
                "density": statistics.mean(row["density"] for row in own),
                "density_executed": statistics.mean(row["executed"] for row in own),
                "actions": dict(Counter(row["action"] for row in own).most_common()),
                "figures": {key: interval(values) for key in FIGURES if (values := by_prompt(own, key))},
                "base": base_of(variant) if base else None,
                "differences": {key: gap for key, gap in gaps.items() if gap},
            }
        )
    return found


def base_of(variant: Variant) -> str:
    """What a variant is told apart from: DVG at the defaults with the same weights, noise and image."""
    return next(prefix for prefix in BLOCKS if variant.name.startswith(prefix)) + "dvg"


def report(summary: Sequence[Mapping[str, Any]], cpu_s: Mapping[str, float]) -> str:
    """Two Markdown tables: the figures, and the paired differences to the base."""
    values, changes = [], []
    for entry in summary:
        figures = entry["figures"]
        shown = [_cell(figures.get("psnr"), 2), _cell(figures.get("ssim"), 3), _cell(figures["score"], 1, 100)]
        shown += [_cell(figures.get(key), 1, 100) for key in COLUMNS]
        timing = [f"{entry['density_executed']:.3f}", f"{cpu_s[entry['variant']]:.2f}" if entry["variant"] in cpu_s else ""]
        values.append([entry["variant"], entry["what"], str(entry["videos"]), *shown, *timing])
        if entry["base"] and entry["base"] != entry["variant"]:
            gaps = entry["differences"]
            cells = [_gap(gaps.get("psnr"), 2), _gap(gaps.get("ssim"), 3), _gap(gaps.get("score"), 1, 100)]
            changes.append(
                [
                    entry["variant"],
                    entry["base"],
                    *cells,
                    _gap(gaps.get("background"), 1, 100),
                    _gap(gaps.get("direction"), 1, 100),
                ]
            )
    header = ("variant", "what", "videos", "PSNR", "SSIM", "all attributes", *COLUMNS, "executed", "CPU s")
    second = ("variant", "minus", "PSNR (dB)", "SSIM", "all attributes (points)", "background", "direction")
    return table(header, values) + "\n" + table(second, changes)


def _cell(figure: Sequence[float] | None, digits: int, factor: float = 1) -> str:
    return "" if figure is None else f"{figure[0] * factor:.{digits}f}"


def _gap(figure: Sequence[float] | None, digits: int, factor: float = 1) -> str:
    if figure is None:
        return ""
    mean, low, high = (value * factor for value in figure)
    return f"{mean:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--steps", type=int, default=GEOMETRY.default_steps)
    parser.add_argument("--budget", type=float, default=0.5)
    parser.add_argument("--variants", nargs="*", choices=[variant.name for variant in VARIANTS], help="default: all")
    parser.add_argument("--minutes", type=float, help="stop early, with fewer rows")
    parser.add_argument("--workers", type=int, default=2, help="processes that judge")
    parser.add_argument("--weights", type=pathlib.Path, default=embedded.FOLDER)
    parser.add_argument("--earlier", type=pathlib.Path, help="folder of the weights before images and transitions were trained")
    parser.add_argument("--cpu-latency", type=int, default=0, help="prompts timed through the engine on two CPU threads")
    parser.add_argument("--merge", type=pathlib.Path, nargs="*", help="JSON of earlier runs, the oracle's too: run nothing")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    wanted = [v for v in VARIANTS if not args.variants or v.name in args.variants]
    wanted = [v for v in wanted if v.weights == "shipped" or args.earlier]
    folders = {"shipped": args.weights, **({"earlier": args.earlier} if args.earlier else {})}
    judges = Judges(args.workers)
    parts = [json.loads(path.read_text()) for path in args.merge or ()]
    if parts:
        rows, cpu_s = merged(parts, VARIANTS), {k: v for part in parts for k, v in part.get("cpu_denoise_s", {}).items()}
    else:
        models = {name: Lockstep(folder, args.device, GEOMETRY.default_guidance) for name, folder in folders.items()}
        rows = measure(models, wanted, clips_of(held_out_scenes()[: args.prompts], args.seeds), judges, args)
        cpu_s = cpu_latency(wanted, args.cpu_latency, args.budget, args.steps, args.workers)
    judges.close()
    summary = summarise(rows, [v for v in VARIANTS if any(row["variant"] == v.name for row in rows)])
    runs = [{key: part.get(key) for key in facts()} for part in parts]
    figures = {
        "runs": runs,
        "prompts": args.prompts,
        "seeds": args.seeds,
        "steps": args.steps,
        "budget": args.budget,
        "cpu_denoise_s": cpu_s,
    }
    save_rows(args.out, "ablation", {**figures, "summary": summary}, rows)
    text = report(summary, cpu_s)
    write(args.out.with_suffix(".md"), text)
    print(text)


if __name__ == "__main__":
    main()
