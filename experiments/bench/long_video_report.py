"""What ``experiments.bench.long_video`` found, as tables."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any


def report(path: pathlib.Path) -> str:
    """Markdown of the JSON at ``path``."""
    found = json.loads(path.read_text())
    plan, rows = found["plan"], found["rows"]
    said = ", ".join(f"{name} {value}" for name, value in plan["blocks"].items() if value is not None)
    parts = [
        f"# Long videos of {plan['model']}{', random weights' * plan.get('is_random', False)}",
        f"{plan['height']}x{plan['width']} pixels, {plan['steps']} steps, {said}. {found['device']}, torch {found['torch']}, "
        f"commit {found['commit']}, {found['date']}.",
        *([found["note"]] if "note" in found else []),
        "## Memory and time",
        "State: keys, values, latents and solvers that lay on a rank's device at once, the most of any rank. Peak: of the "
        "process, with its weights, text encoder and libraries; it falls by nothing that was held once.",
        _table(["method", "length", "frames", "ranks", "state MB", "peak MB", "s", "s per frame", "TFLOP"], map(_cost, rows)),
        *(_flicker(seen) if (seen := [row for row in rows if "inside" in row]) else []),
        _same(rows),
    ]
    return "\n\n".join(parts) + "\n"


def _flicker(rows: list[Mapping[str, Any]]) -> list[str]:
    return [
        "## Flicker",
        "Mean change to the next frame, in levels of 255, where a latent frame begins: at a border of blocks at the last step "
        "(with an overlap: anywhere in it, or the first frame after it), and elsewhere. At a place: the most, over the places "
        "in a block, of the mean over all blocks. Plain runs have no blocks; theirs are looked at in the same places.",
        _table(
            ["method", "length", "borders", "at borders", "inside", "ratio", "at a place", "spread inside", "last quarter"],
            map(_seen, rows),
        ),
    ]


def _cost(row: Mapping[str, Any]) -> list[str]:
    state, peak = max(row["state_bytes"]) / 1e6, max(row["peak_bytes"]) / 1e6
    return [
        *(row["method"], f"{row['times']}x", str(row["frames"]), str(row["ranks"]), f"{state:.2f}" if state else "–"),
        *(f"{peak:.0f}", f"{row['seconds']:.1f}", f"{row['seconds'] / row['frames']:.3f}", f"{row['tflops']:.2f}"),
    ]


def _seen(row: Mapping[str, Any]) -> list[str]:
    borders, inside = row["at_borders"], row["inside"]
    return [
        *(row["method"], f"{row['times']}x", str(row["num_borders"]), f"{borders:.2f}", f"{inside:.2f}"),
        *(
            f"{borders / inside:.2f}",
            f"{row['most_at_a_place']:.2f}",
            f"{row['inside_spread']:.2f}",
            f"{row['last_quarter']:.2f}",
        ),
    ]


def _same(rows: list[Mapping[str, Any]]) -> str:
    """Whether all numbers of ranks made the same of a length, by the digests of latents."""
    by_times: dict[int, set[str]] = {}
    for row in rows:
        if row["method"] == "dualparal":
            by_times.setdefault(row["times"], set()).add(row["digest"])
    ranks = sorted({row["ranks"] for row in rows})
    if len(ranks) == 1:
        return f"Ranks: {ranks[0]} only."
    differ = [f"{times}x" for times, digests in by_times.items() if len(digests) > 1]
    told = f"differ at {', '.join(differ)}" if differ else "are the same to four digits at every length"
    return f"Mean and root mean square of the latents by {', '.join(map(str, ranks))} ranks {told}."


def _table(head: list[str], rows: Any) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
