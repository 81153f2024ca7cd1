"""Figures of ``experiments.bench.cluster`` as a table; also made again from its result: ``python -m ... FILE...``."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

from experiments.bench import cluster_timeline as timeline

COLUMNS = {
    "videos": ("videos", "{:d}"),
    "makespan_s": ("makespan s", "{:.1f}"),
    "simulated_over_real": ("simulated / real", "{:.3f}"),
    "replayed_over_real": ("replayed / real", "{:.3f}"),
    "busy_backlogged": ("busy, backlog", "{:.1%}"),
    "busy_whole": ("busy, whole run", "{:.1%}"),
    "orchestration_share": ("orchestration", "{:.2%}"),
    "handoff_share": ("hand-off", "{:.2%}"),
    "checkpoint_share": ("checkpoints", "{:.2%}"),
    "scheduling_share": ("scheduling", "{:.2%}"),
    "alignment_share": ("neighbours", "{:.2%}"),
    "decoders_share": ("decoders", "{:.2%}"),
    "starved_share": ("no clip", "{:.2%}"),
    "heavy_gpu_s": ("heavy GPU-s", "{:.1f}"),
    "videos_per_heavy_gpu_hour_held": ("videos / heavy GPU-h held", "{:.1f}"),
    "videos_per_gpu_hour_held": ("videos / GPU-h held", "{:.1f}"),
    "widths": ("phases by width", "{}"),
}


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown, a row for each rule."""
    head = ["rule", *(title for title, _ in COLUMNS.values())]
    rows = [[name, *(form.format(figures[key]) for key, (_, form) in COLUMNS.items())] for name, figures in found.items()]
    lines = [head, ["---"] * len(head), *rows]
    return "\n## cluster\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def again(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Of every rule in a result: what its event log says, beside what was predicted when it was made."""
    kept = json.loads(path.read_text())
    return {
        name: {**figures, **timeline.figures(kept["runs"][name]["rows"], kept["runs"][name]["began"], kept["num_gpus"])}
        for name, figures in kept["figures"].items()
    }


def main(paths: list[str]) -> int:
    for path in map(pathlib.Path, paths):
        print(f"{path.name}\n{table(again(path))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
