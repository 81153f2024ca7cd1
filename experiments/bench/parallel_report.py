"""Composes what ``experiments.bench.parallel`` measured into one JSON file and one report, and calibrations of every degree.

``python -m experiments.bench.parallel_report FOLDER --out experiments/results/parallel_h200_202611 [--calibrations FOLDER]``.
Rows of hosts with different numbers of GPUs are told apart; of what was measured again on the same number, the latest counts.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from experiments.bench.parallel_cases import NATIVE, PEER, efficiency
from experiments.bench.parallel_tables import OURS, Row, fastest_s, of, one_rank, share, table, tables
from experiments.bench.single_gpu_models import NUM_PROMPT, SUBJECTS
from experiments.calibrate_fit import About, compose
from orchestrator.calibration import SHIPPED, Calibration, DecodeRow, StepRow, file_name, save
from orchestrator.geometry import model as geometry_of
from orchestrator.types import Grid
from orchestrator.waves import H200_SMS
from parallel.native import OVERLAP_ELEMENTS

Files = Mapping[str, Mapping[str, Any]]
WAN, HUNYUAN = "wan2.2-a14b", "hunyuanvideo"
FULL: Mapping[str, Grid] = {WAN: (21, 60, 104), HUNYUAN: (32, 90, 160)}
LEAST_SIZES = 6
MEDIUM, PRIME = (13, 44, 80), (11437, 2, 2)

HOW = """Random weights at real sizes in bf16, CUDA events. A row is the median call of the slowest rank of a slice and, as the
slices of a host work at once, of the median slice. One GPU is our own fastest path in the same run, all GPUs at once, each alone:
the median GPU, as GPUs differ (by up to 4 % here; a slice waits for its slowest). `peer` and `native` choose their number of
chunks themselves; with a number they are told. Norms of queries are scaled by 3: with random weights attention would be uniform,
and leaving it on one GPU would hardly show.
"""


def by_host(files: Files) -> dict[int, list[Row]]:
    """All rows, by the number of GPUs of the host, the most first; older files first."""
    found: dict[int, list[Row]] = {}
    for file in sorted(files.values(), key=lambda file: (file["num_ranks"], file["date"])):
        found.setdefault(file["num_ranks"], []).extend(file["rows"])
    return dict(sorted(found.items(), reverse=True))


def find(rows: Iterable[Row], **facts: Any) -> Row | None:
    """The first row with these facts."""
    for row in rows:
        if all(_plain(row.get(key)) == _plain(value) for key, value in facts.items()):
            return row
    return None


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def widest(rows: Sequence[Row], num_ranks: int, model: str, grid: Grid) -> Row | None:
    """Ours by all GPUs."""
    found = [find(of(rows, "forwards"), model=model, grid=grid, degree=num_ranks, backend=name) for name in OURS]
    return next((row for row in reversed(found) if row is not None), None)


def claims(rows: Sequence[Row], num_ranks: int) -> Iterator[tuple[str, str]]:
    """What was asked of this host's GPUs, and what was found. Left out: what was not measured."""
    forwards, guided, decodes = of(rows, "forwards"), of(rows, "guided"), of(rows, "decode")
    for model, grid in ((WAN, FULL[WAN]), (WAN, MEDIUM), (HUNYUAN, FULL[HUNYUAN])):
        row = widest(rows, num_ranks, model, grid)
        if row is not None and (found := share(forwards, row)) is not None:
            yield f"{model}, {row['tokens']:,} tokens, one branch on {num_ranks}", _told(forwards, row, found)
    row = find(guided, grid=FULL[WAN], degree=num_ranks, split=True)
    if row is not None and (found := share(guided, row)) is not None:
        what = f"a guided step of {WAN}, {row['tokens']:,} tokens, guidance split x {num_ranks // 2}"
        yield what, _told(guided, row, found)
    yield from _against_stock(rows, num_ranks)
    even, odd = (widest(rows, num_ranks, WAN, grid) for grid in (MEDIUM, PRIME))
    if even is not None and odd is not None:
        gap = 100 * (odd["median_s"] / even["median_s"] - 1)
        yield f"{odd['tokens']:,} tokens (a prime) against {even['tokens']:,} on {num_ranks}", f"{gap:+.1f} %"
    decode = find(decodes, model=HUNYUAN, degree=num_ranks)
    if decode is not None:
        one_s = one_rank(decodes, decode)
        told = "" if one_s is None else f" (one GPU {one_s:.2f} s)"
        yield f"decode of {HUNYUAN} at 720p on {num_ranks}", f"{decode['median_s']:.2f} s{told}"
    for switch in of(rows, "switch"):
        worst = max(step["attach_ms"] + step["agree_ms"] for step in switch["changes"])
        yield "changing the width: attaching and agreeing, the slowest", f"{worst:.2f} ms"


def _told(rows: Sequence[Row], row: Row, found: float) -> str:
    best_s = fastest_s(rows, row)
    best = "" if best_s is None else f"; {100 * efficiency(best_s, row['degree'], row['median_s']):.1f} % against the fastest GPU"
    return f"{100 * found:.1f} % ({one_rank(rows, row):.4f} s to {row['median_s']:.4f} s{best})"


def _against_stock(rows: Sequence[Row], num_ranks: int) -> Iterator[tuple[str, str]]:
    for stock in of(rows, "stock"):
        ours = widest(rows, num_ranks, stock["model"], tuple(stock["grid"]))
        if stock["degree"] == num_ranks and ours is not None:
            what = f"{stock['backend']} on {stock['degree']}, {stock['tokens']:,} tokens"
            seconds = stock["median_s"], ours["median_s"]
            yield what, f"ours is {seconds[0] / seconds[1]:.2f}x as fast ({seconds[0]:.4f} s, {seconds[1]:.4f} s)"


def slower(rows: Sequence[Row]) -> str:
    """Where more GPUs were no faster than fewer."""
    forwards = of(rows, "forwards")
    native = [row for row in forwards if row["backend"] == NATIVE and (row["degree"] == 1 or not _has(forwards, row, PEER))]
    native += [row for row in forwards if row["backend"] == PEER]
    lines = []
    for row in sorted(native, key=lambda row: (row["model"], row["tokens"], row["degree"])):
        same = [other for other in native if (other["model"], other["grid"]) == (row["model"], row["grid"])]
        fewer = [other for other in same if other["degree"] < row["degree"] and other["median_s"] <= row["median_s"]]
        if fewer:
            best = min(fewer, key=lambda other: other["median_s"])
            seconds = f"{row['median_s']:.4f}", best["degree"], f"{best['median_s']:.4f}"
            lines.append([row["model"], f"{row['tokens']:,}", row["degree"], *seconds])
    return table(["model", "tokens", "GPUs", "s", "fewer", "s"], lines) if lines else "Nowhere."


def _has(rows: Sequence[Row], row: Row, backend: str) -> bool:
    return find(rows, model=row["model"], grid=row["grid"], degree=row["degree"], backend=backend) is not None


def report(files: Files, notes: Sequence[str]) -> str:
    first = next(iter(files.values()))
    commits = _commits(files)
    hosts = by_host(files)
    sizes = " and ".join(map(str, hosts))
    title = f"# Sequence parallelism on hosts of {sizes} GPUs ({first['device']})\n"
    made = f"torch {first['torch']}, {first['date']}, commits {commits}.\n{HOW}"
    parts = [title, made, *notes]
    for num_ranks, rows in hosts.items():
        parts.append(f"\n# {num_ranks} GPUs\n")
        parts.append(table(["asked", "found"], claims(rows, num_ranks)) + "\n")
        parts.append(tables(rows))
        parts.append(f"## Where more GPUs were no faster\n\n{slower(rows)}\n")
    return "\n".join(parts)


def _commits(files: Files) -> str:
    return ", ".join(sorted({str(file["commit"]) for file in files.values() if file.get("commit")}))


def calibrations(files: Files) -> Iterator[Calibration]:
    """Of every model measured on one GPU, from the host with most GPUs: each degree and exchange with sizes enough."""
    hosts = by_host(files)
    for name in dict.fromkeys(row["model"] for rows in hosts.values() for row in of(rows, "forwards")):
        rows = next(rows for rows in hosts.values() if any(row["model"] == name for row in of(rows, "forwards")))
        mine = [row for row in of(rows, "forwards") if row["model"] == name]
        steps = [_step(as_of_now(mine, row)) for row in mine if _num_sizes(mine, row) >= LEAST_SIZES]
        decodes = [_decode(row) for row in of(rows, "decode") if row["model"] == name]
        if any(step.degree == 1 for step in steps):
            yield compose(steps, _about(files, name), decodes).model_copy(update={"commit": _commits(files)})


def as_of_now(rows: Sequence[Row], row: Row) -> Row:
    """The row with the seconds of one chunk, where two were measured beside it and one is what would be chosen now."""
    geometry = geometry_of(row["model"])
    overlaps = row["tokens"] * geometry.heads * geometry.head_dim >= OVERLAP_ELEMENTS
    same = {key: row[key] for key in ("model", "grid", "degree")}
    found = None if overlaps else find(rows, **same, backend=f"{row['backend']}-1")
    return row if found is None else {**found, "backend": row["backend"]}


def _num_sizes(rows: Sequence[Row], row: Row) -> int:
    """Numbers of tokens measured on a row's degree with its exchange."""
    return len({other["tokens"] for other in rows if (other["degree"], other["backend"]) == (row["degree"], row["backend"])})


def _step(row: Row) -> StepRow:
    return StepRow(
        grid=tuple(row["grid"]), tokens=row["tokens"], degree=row["degree"], backend=row["backend"],
        median_s=row["median_s"], repeats=row["repeats"],
    )  # fmt: skip


def _decode(row: Row) -> DecodeRow:
    shape = next(subject.shape for subject in SUBJECTS.values() if subject.name == row["model"])
    size = {"num_frames": shape.num_frames, "height": shape.height, "width": shape.width}
    return DecodeRow(**size, degree=row["degree"], seconds=row["median_s"])


def _about(files: Files, model: str) -> About:
    """The rest as in the calibration that is there: transitions are one GPU's work."""
    first = next(iter(files.values()))
    here = {"device": first["device"], "dtype": "bfloat16", "torch": first["torch"], "compiled": True, "weights": "random"}
    here |= {"num_sms": H200_SMS if "H200" in first["device"] else None, "num_text": NUM_PROMPT}
    paths = SHIPPED.glob(f"{model}_nvidia*_bfloat16.json")
    known = next((Calibration.model_validate_json(path.read_text()) for path in paths), None)
    if known is None:
        return About(model=model, attention="auto", **here)
    return About(model=model, attention=known.attention, transition_token_s=known.transition_token_s, **here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="path without suffix")
    parser.add_argument("--calibrations", type=pathlib.Path, help="folder for a calibration file of each model")
    args = parser.parse_args()
    read = {path.stem: json.loads(path.read_text()) for path in sorted(args.folder.glob("*.json"))}
    files = {name: file for name, file in read.items() if file.get("benchmark") == "parallel"}
    notes = [line for file in read.values() for line in file.get("notes", [])]
    args.out.with_suffix(".json").write_text(json.dumps({"notes": notes, "measured": files}, indent=1) + "\n")
    args.out.with_suffix(".md").write_text(report(files, notes))
    for calibration in calibrations(files) if args.calibrations else ():
        print(save(calibration, args.calibrations / file_name(calibration)))


if __name__ == "__main__":
    main()
