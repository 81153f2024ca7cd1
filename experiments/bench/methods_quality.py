"""The methods of one sweep as a table: speed, operations, likeness to the full run, and what a checker sees in the videos.

``python -m experiments.bench.methods_quality RUN --out FOLDER/NAME`` after ``dvg sweep experiments/specs/methods.yaml``: writes
NAME.md and NAME.json. Differences are paired by prompt, with 95 % intervals over prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from experiments.bench.common import save
from experiments.compare.comparison import Compared, Comparison, compare
from experiments.compare.sources import read_runs
from experiments.compare.stats import Paired, Values, paired, pareto

CHECKED = "semantic"
HEAD = (
    "| arm | n | speedup of denoising | operations | PSNR dB | SSIM | checker | against full | flicker | front |\n"
    "|---|---|---|---|---|---|---|---|---|---|\n"
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One arm. ``checked``: the share of a prompt's attributes that its video shows, and how it differs from the full run's."""

    arm: str
    reconstructed: str
    num_videos: int
    speedup: tuple[float, float, float] | None
    operations: float | None
    psnr: float | None
    ssim: float | None
    flicker: float | None
    checked: float | None
    difference: Paired | None
    denoise_s: float


def rows_of(comparison: Comparison) -> list[Row]:
    base = next(row for row in comparison.rows if row.is_base)
    return [_row(row, checked(base)) for row in comparison.rows]


def _row(row: Compared, of_base: Values) -> Row:
    def mean(name: str) -> float | None:
        return row.figures[name].mean if name in row.figures else None

    own, speedup = checked(row), row.speedup
    seconds = [record.denoise_s for record in row.arm.records.values()]
    return Row(
        arm=row.arm.name,
        reconstructed=row.arm.stats.reconstructed,
        num_videos=row.arm.stats.num_videos,
        speedup=(speedup.mean, speedup.low or 0.0, speedup.high or 0.0) if speedup else None,
        operations=row.operations,
        psnr=mean("psnr"),
        ssim=mean("ssim"),
        flicker=mean("flicker"),
        checked=statistics.fmean(own.values()) if own else None,
        difference=None if row.is_base else paired(own, of_base, better="higher"),
        denoise_s=statistics.fmean(seconds),
    )


def checked(row: Compared) -> dict[Any, float]:
    """Per video, the mean over the attributes that the checker knows of its prompt."""
    found: dict[Any, list[float]] = {}
    for name, values in row.arm.videos.items():
        if name.startswith(CHECKED):
            for key, value in values.items():
                found.setdefault(key, []).append(value)
    return {key: statistics.fmean(values) for key, values in found.items()}


def table(rows: Sequence[Row]) -> str:
    """Markdown, the fastest last. ``front``: no other arm is both faster and better by the checker (c), or by SSIM (s)."""
    fronts = {mark: _front(rows, value) for mark, value in (("c", lambda row: row.checked), ("s", lambda row: row.ssim))}
    ordered = sorted(rows, key=lambda row: -row.denoise_s)
    return HEAD + "".join(_line(row, " ".join(mark for mark, names in fronts.items() if row.arm in names)) for row in ordered)


def _front(rows: Sequence[Row], value: Any) -> set[str]:
    known = [row for row in rows if value(row) is not None]
    return {row.arm for row, kept in zip(known, pareto([(row.denoise_s, value(row)) for row in known]), strict=True) if kept}


def _line(row: Row, front: str) -> str:
    speed = "" if row.speedup is None else f"{row.speedup[0]:.2f} ({row.speedup[1]:.2f} to {row.speedup[2]:.2f})"
    name = row.arm + (" (reconstructed)" if row.reconstructed else "")
    figures = [_told(row.operations, ".3f"), _told(row.psnr, ".1f"), _told(row.ssim, ".3f"), _told(row.checked, ".3f")]
    cells = [name, str(row.num_videos), speed, *figures, _difference(row.difference), _told(row.flicker, ".4f"), front]
    return f"| {' | '.join(cells)} |\n"


def _told(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _difference(found: Paired | None) -> str:
    if found is None:
        return ""
    interval = "" if found.low is None or found.high is None else f" ({found.low:+.3f} to {found.high:+.3f})"
    return f"{found.mean:+.3f}{interval}"


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    rows = rows_of(compare(read_runs([args.run])))
    save(args.out.with_suffix(".json"), "methods_quality", {"rows": [dataclasses.asdict(row) for row in rows]})
    args.out.with_suffix(".md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
