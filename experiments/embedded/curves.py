"""Draw the training curves of logs (one JSON row a line, others skipped) into one PNG and one JSON.

``python -m experiments.embedded.curves --vae log... --transformer log... --out experiments/results/wan_mini_curves``
"""

from __future__ import annotations

import argparse
import ast
import json
import pathlib
from collections.abc import Sequence
from typing import Any


def rows(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of one training log; a row is printed as JSON or as a Python mapping."""
    found = []
    for line in path.read_text().splitlines():
        if line.startswith("{") and line.endswith("}"):
            found.append(json.loads(line) if '"' in line else ast.literal_eval(line))
    return [row for row in found if "loss" in row]


def draw(curves: dict[str, Sequence[Sequence[dict[str, Any]]]], out: pathlib.Path) -> None:
    """One panel a part; consecutive calls share the panel, their iterations laid end to end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, (name, calls) in zip(figure.subplots(1, len(curves)), curves.items(), strict=True):
        offset = 0
        for number, call in enumerate(calls, 1):
            steps = [row["i"] for row in call]
            start = offset if steps and steps[0] < offset else 0
            axes.plot([start + step for step in steps], [row["loss"] for row in call], label=f"call {number}", linewidth=1)
            offset = start + max(steps, default=0)
        axes.set(title=name, xlabel="iteration", ylabel="loss", yscale="log")
        axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(out.with_suffix(".png"), dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vae", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--transformer", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    curves = {"autoencoder": [rows(path) for path in args.vae], "transformer": [rows(path) for path in args.transformer]}
    draw(curves, args.out)
    args.out.with_suffix(".json").write_text(json.dumps(curves, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
