"""Composes what ``experiments.bench.single_gpu`` measured into one JSON file and one table.

``python -m experiments.bench.single_gpu_report FOLDER --out experiments/results/single_gpu_h200_202611``.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

from experiments.bench.single_gpu_models import SUBJECTS, Subject
from experiments.bench.single_gpu_rows import BUDGETS, STEPS, Clock, feasible, spread
from experiments.calibrate_fit import fit_forward
from orchestrator.actions import InfeasibleBudget
from orchestrator.calibration import StepRow
from orchestrator.types import Action, Grid
from stages.attention import best

Figures = dict[str, Any]
INTERPOLATED = " (interpolated)"


def clock_of(subject: Subject, figures: Figures) -> tuple[Clock, float]:
    """The clock of a subject's measured grids, and the largest relative error of the curve through them."""
    rows = [
        StepRow(grid=tuple(row["grid"]), tokens=row["tokens"], median_s=row["median_s"], repeats=len(row["seconds"]))
        for row in figures["grids"]
    ]
    curve, error = fit_forward(rows)
    medians: dict[Grid, float] = {row.grid: row.median_s for row in rows}
    return Clock(subject.geometry, medians, curve), error


def between_s(figures: Figures) -> float:
    """Transitions and plan of one clip."""
    found = figures["passages"]
    return float(sum(found["transitions_s"].values()) + found["plan_s"])


def dvg_rows(subject: Subject, figures: Figures) -> Iterator[Figures]:
    """One row per number of steps and budget: seconds of denoising of the slowest, mean and fastest feasible action."""
    clock, _ = clock_of(subject, figures)
    full_s = {steps: steps * subject.branches * clock.forward_s(subject.grid) for steps in STEPS}
    for steps in STEPS:
        for budget in BUDGETS:
            try:
                found = spread(feasible(subject.geometry, subject.shape, steps, budget), clock, subject.branches)
            except InfeasibleBudget:
                continue
            extra = between_s(figures)
            seconds = {what: clock.forwards_s(action, subject.branches) + extra for what, action in found.actions.items()}
            seconds["mean"] = found.mean_s + extra
            yield {
                "steps": steps,
                "budget": budget,
                "num_actions": found.num_actions,
                "actions": {what: _named(action, clock) for what, action in found.actions.items()},
                "denoise_s": seconds,
                "full_s": full_s[steps],
            }


def _named(action: Action, clock: Clock) -> str:
    return action.name if clock.is_measured(action) else f"{action.name}{INTERPOLATED}"


def summary(name: str, figures: Figures) -> Figures:
    """All ratios of one subject."""
    subject = SUBJECTS[name]
    clock, error = clock_of(subject, figures)
    result: Figures = {
        "subject": name,
        "model": subject.name,
        "grid": subject.grid,
        "fit": clock.curve.model_dump(),
        "fit_error": error,
    }
    result["tokens"] = subject.geometry.num_tokens(subject.grid)
    result["full_forward_s"] = clock.forward_s(subject.grid)
    result["decode_s"] = figures["decode"]["best_s"]
    result["between_s"] = between_s(figures)
    result["plan_s"] = figures["passages"]["plan_s"] + figures["passages"]["list_s"]
    result["rows"] = list(dvg_rows(subject, figures))
    result["attention"] = kernels(figures)
    if "stock" in figures:
        stock_s = figures["stock"]["median_s"] * subject.stock_steps * subject.stock_branches
        result |= {"stock_forward_s": figures["stock"]["median_s"], "stock_denoise_s": stock_s}
        result["stock_decode_s"] = figures["stock_decode"]["best_s"]
    return result


def kernels(figures: Figures) -> dict[int, str]:
    """The attention kernel that the adapter chose for each length of the measurement; empty where it was not kept."""
    rates = next(iter(figures.get("attention_tflops", {}).values()), {})
    return {int(length): best(found) for length, found in rates.items()}


def table(found: Figures) -> str:
    """One subject as Markdown."""
    subject = SUBJECTS[found["subject"]]
    shape = subject.shape
    size = f"{shape.height} x {shape.width}, {shape.num_frames} frames, latent grid {'x'.join(map(str, subject.grid))}"
    lines = [f"## {subject.name}: {size}, {found['tokens']:,} tokens", ""]
    lines += _facts(found, subject)
    stock_s = found.get("stock_denoise_s")
    head = "| steps | budget | actions | slowest | mean | fastest | our full, same steps | full / mean |"
    lines += ["", head + (" stock / mean |" if stock_s else ""), "|" + "---|" * (9 if stock_s else 8)]
    for row in found["rows"]:
        slow, fast = (_seconds(row, what) for what in ("slowest", "fastest"))
        mean = row["denoise_s"]["mean"]
        cells = [str(row["steps"]), f"{row['budget']:g}", str(row["num_actions"])]
        cells += [slow, f"{mean:.1f} s", fast, f"{row['full_s']:.1f} s", f"{row['full_s'] / mean:.2f}"]
        cells += [f"{stock_s / mean:.1f}"] if stock_s else []
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def _seconds(row: Figures, what: str) -> str:
    about = "~" if row["actions"][what].endswith(INTERPOLATED) else ""
    return f"{about}{row['denoise_s'][what]:.1f} s"


def _facts(found: Figures, subject: Subject) -> list[str]:
    lines = [f"- Our forward of one branch on the full grid: {found['full_forward_s']:.3f} s; decode {found['decode_s']:.2f} s."]
    if "stock_forward_s" in found:
        kind = f"{subject.stock_steps} steps x {subject.stock_branches} branch{'es' if subject.stock_branches > 1 else ''}"
        lines.append(
            f"- Stock forward: {found['stock_forward_s']:.3f} s, so {kind} take {found['stock_denoise_s']:.0f} s; "
            f"decode {found['stock_decode_s']:.2f} s."
        )
    between_ms, plan_ms = 1e3 * found["between_s"], 1e3 * found["plan_s"]
    lines.append(f"- Three transitions and the plan: {between_ms:.1f} ms; the plan with its list of actions: {plan_ms:.1f} ms.")
    if found["attention"]:
        chosen = ", ".join(f"{name} at {length:,} keys" for length, name in found["attention"].items())
        lines.append(f"- Attention, each for the lengths nearest to it: {chosen}.")
    error = 100 * found["fit_error"]
    lines.append(f"- Curve through the measured grids: within {error:.1f} %; rows use medians where there are any.")
    return lines


def floors(rows: Iterable[Figures], how: str) -> list[str]:
    """Step time over the floor, as Markdown rows."""
    return [
        f"| {row['subject']} | {'x'.join(map(str, row['grid']))} | {row['tokens']:,} | {row['median_s']:.4f} | "
        f"{row['floor_s']:.4f} | {row['over_floor']:.3f} | {row['matmul_tflops']:.0f} | {row['attention_tflops']:.0f} | {how} |"
        for row in sorted(rows, key=lambda row: (row["subject"], row["tokens"]))
    ]


def floor_table(files: Iterable[Figures]) -> str:
    """Long recordings run at the clocks that a forward holds, short ones at higher ones."""
    lines: list[str] = []
    for file in files:
        if file["kind"] == "floors":
            lines += floors(file["rows"], "long")
        elif file["kind"] == "clip":
            lines += floors([{"subject": file["subject"], **row} for row in file.get("floors", [])], "long")
        else:
            rows = [{"subject": file["subject"], **row} for row in file["grids"] if "floor_s" in row]
            lines += floors(rows, "short")
    return "\n".join(sorted(lines))


def clips(figures: Figures) -> str:
    names = ", ".join(dict.fromkeys(kernels(figures).values()))
    seconds = " + ".join(f"{value:.2f}" for key, value in figures["stages_s"].items() if key.startswith("stage"))
    return (
        f"| {figures['subject']} | {figures['steps']} | {figures['budget']:g} | {figures['action']} | {seconds} | "
        f"{figures['denoise_s']:.2f} | {figures['sum_s']:.2f} | {figures['clip_over_sum']:.3f} | {names} |"
    )


FLOOR_HEAD = (
    "## Forward over its floor (every product and attention timed alone at its own shape)\n\n"
    "Alone: `long` recordings run at the clocks that a whole forward holds, `short` ones (three calls, three times, from 8,192\n"
    "rows) at clocks up to 8 % higher, which makes their ratios larger.\n\n"
    "| subject | grid | tokens | s | floor s | ratio | matmul TFLOP/s | attention TFLOP/s | alone |\n"
    "|---|---|---|---|---|---|---|---|---|"
)
CLIP_HEAD = (
    "## Complete clips through the engine against the sum of their parts\n\n"
    "| subject | steps | budget | action | stages s | denoising s | sum s | ratio | attention |\n"
    "|---|---|---|---|---|---|---|---|---|"
)


def compose(files: dict[str, Figures]) -> tuple[Figures, str]:
    """Everything as one value, and as Markdown."""
    measured = {file["subject"]: file for file in files.values() if file["kind"] == "rows"}
    whole = [file for file in files.values() if file["kind"] == "clip"]
    found = {name: summary(name, measured[name]) for name in SUBJECTS if name in measured}
    first = next(iter(measured.values()))
    commits = ", ".join(sorted({str(file["commit"]) for file in files.values() if "commit" in file}))
    head = (
        f"# One {first['device']}: stock diffusers against ours\n\n"
        f"torch {first['torch']}, {first['date']}, commits {commits}. "
        "Random weights at real sizes in bf16; median seconds of a forward per grid times the forwards that run, plus "
        "transitions and plan. Warm-up and compilation are not in the seconds.\n"
    )
    notes = [line for file in files.values() if file["kind"] == "notes" for line in file["lines"]]
    parts = [head, *([*notes, ""] if notes else []), *(table(row) for row in found.values())]
    parts += [FLOOR_HEAD + "\n" + floor_table(file for file in files.values() if file["kind"] != "notes") + "\n"]
    if whole:
        parts += [CLIP_HEAD + "\n" + "\n".join(clips(file) for file in whole) + "\n"]
    return {"summaries": found, "measured": files}, "\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="path without suffix")
    args = parser.parse_args()
    files = {path.stem: json.loads(path.read_text()) for path in sorted(args.folder.glob("*.json"))}
    figures, text = compose(files)
    args.out.with_suffix(".json").write_text(json.dumps(figures, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(text)


if __name__ == "__main__":
    main()
