"""Rows of ``experiments.bench.parallel`` as Markdown: pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.bench.parallel_cases import NATIVE, PEER, efficiency

Row = Mapping[str, Any]
OURS = (NATIVE, PEER)
"""The later, where it was measured."""


def of(rows: Iterable[Row], section: str) -> list[Row]:
    """The rows of a section that were measured; of one measured again, the last."""
    found = {identity(row): row for row in rows if row["section"] == section and is_measured(row)}
    return list(found.values())


def is_measured(row: Row) -> bool:
    return not any(key in row for key in ("error", "refused", "skipped", "missing"))


def identity(row: Row) -> tuple[Any, ...]:
    """What was measured."""
    keys = ("section", "model", "grid", "degree", "backend", "split", "way", "mb", "tokens", "heads")
    return tuple(str(row.get(key)) for key in keys)


def one_rank(rows: Sequence[Row], row: Row) -> float | None:
    """Seconds of one rank on the same work."""
    for other in rows:
        if other["degree"] == 1 and other["grid"] == row["grid"] and other["model"] == row["model"]:
            return float(other["median_s"])
    return None


def fastest_s(rows: Sequence[Row], row: Row) -> float | None:
    """Of the GPUs of a host, each alone on the same work."""
    alone = [other for other in rows if (other["degree"], other["grid"], other["model"]) == (1, row["grid"], row["model"])]
    return min(alone[0]["by_rank_s"]) if alone and alone[0].get("by_rank_s") else None


def share(rows: Sequence[Row], row: Row) -> float | None:
    """Efficiency of a row against one rank of the same section."""
    one_s = one_rank(rows, row)
    return None if one_s is None else efficiency(one_s, row["degree"], row["median_s"])


def table(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    cells = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in cells)


def seconds(rows: Sequence[Row], row: Row | None) -> str:
    if row is None:
        return "-"
    found = share(rows, row)
    return f"{row['median_s']:.4f}" if found is None or row["degree"] == 1 else f"{row['median_s']:.4f} ({100 * found:.1f} %)"


def by_degree(rows: Sequence[Row], names: Callable[[Row], str]) -> str:
    """One line per model, tokens and name, one column per degree."""
    widths = sorted({row["degree"] for row in rows})
    shared = [row for row in rows if row["degree"] > 1]
    keys = sorted({(row["model"], -row["tokens"], str(row["grid"]), names(row)) for row in shared})
    lines = []
    for model, tokens, grid, name in keys:
        same = [row for row in rows if (row["model"], -row["tokens"], str(row["grid"])) == (model, tokens, grid)]
        found = {row["degree"]: row for row in same if row["degree"] == 1 or names(row) == name}
        lines.append([model, f"{-tokens:,}", name, *(seconds(same, found.get(width)) for width in widths)])
    return table(["model", "tokens", "exchange", *(f"{width} GPU{'s' if width > 1 else ''}" for width in widths)], lines)


def forwards(rows: Sequence[Row]) -> str:
    return by_degree(of(rows, "forwards"), lambda row: str(row["backend"]))


def guided(rows: Sequence[Row]) -> str:
    return by_degree(of(rows, "guided"), lambda row: "guidance split" if row["split"] else "branches in turn")


def against_stock(rows: Sequence[Row]) -> str:
    """diffusers' seconds, and how much faster ours is on the same tokens and GPUs."""
    stock = of(rows, "stock")
    ours = [row for row in of(rows, "forwards") if any(row["model"] == other["model"] for other in stock)]
    best = {(tuple(row["grid"]), row["degree"]): row for name in OURS for row in ours if row["backend"] == name}
    lines = []
    for row in sorted(stock, key=lambda row: (-row["tokens"], row["degree"], row["backend"])):
        mine = best.get((tuple(row["grid"]), row["degree"]))
        ratio = "-" if mine is None else f"{row['median_s'] / mine['median_s']:.2f}"
        told = "-" if mine is None else f"{mine['median_s']:.4f}"
        plain = [other for other in stock if other["backend"] == "diffusers" or other["degree"] > 1]
        lines.append([f"{row['tokens']:,}", row["degree"], row["backend"], seconds(plain, row), told, ratio])
    return table(["tokens", "GPUs", "stock", "s (efficiency against its own one GPU)", "ours s", "ours faster"], lines)


def _step(row: Row, step: Row) -> list[str]:
    times = f"{step['attach_ms']:.3f}", f"{step['agree_ms']:.2f}", f"{step['first_more_ms']:.2f}"
    return [row["model"], f"{row['tokens']:,}", f"{step['from']} to {step['to']}", *times, f"{1e3 * step['steady_s']:.1f}"]


def switches(rows: Sequence[Row]) -> str:
    lines = [_step(row, step) for row in of(rows, "switch") for step in row["changes"]]
    return table(["model", "tokens", "ranks", "attach ms", "agree ms", "first forward more ms", "steady forward ms"], lines)


def equality(rows: Sequence[Row]) -> str:
    lines = [
        [row["model"], f"{row['tokens']:,}", row["degree"], row["backend"], f"{row['distance']:.2e}", row["ranks_agree"]]
        for row in of(rows, "equality")
        if "distance" in row
    ]
    return table(["model", "tokens", "GPUs", "exchange", "relative distance to one rank", "ranks agree"], lines)


def profiles(rows: Sequence[Row]) -> str:
    lines = []
    for row in of(rows, "profile"):
        span_s = row["span_s"] or 1.0
        shares = [f"{100 * row.get(key, 0.0) / span_s:.1f} %" for key in ("busy_s", "exchange_s", "exposed_s")]
        lines.append([row["model"], f"{row['tokens']:,}", row["degree"], row["backend"], f"{row['sent_mb']:.0f}",
                      f"{row['span_s']:.4f}", *shares])  # fmt: skip
    head = [
        "model",
        "tokens",
        "GPUs",
        "exchange",
        "MB sent per rank",
        "traced s",
        "kernels",
        "exchange",
        "exchange that nothing hides",
    ]
    return table(head, lines)


def decodes(rows: Sequence[Row]) -> str:
    found = of(rows, "decode")
    lines = []
    for row in found:
        peak = max(row["peak_gib"])
        gap = f"{row['max_gap']:.4f} / {row['mean_gap']:.1e}" if "max_gap" in row else "-"
        lines.append([row["model"], "x".join(map(str, row["grid"])), row["degree"], seconds(found, row), f"{peak:.1f}", gap])
    return table(["model", "latent grid", "GPUs", "s", "peak GiB", "largest / mean gap to one GPU (of 2)"], lines)


def wires(rows: Sequence[Row]) -> str:
    lines = [
        [row["way"], row["degree"], row["mb"], f"{1e6 * row['call_s']:.0f}", f"{row['gb_per_s']:.0f}"]
        for row in of(rows, "wires")
    ]
    return table(["exchange", "GPUs", "MB per rank", "us", "GB/s sent"], lines)


def kernels(rows: Sequence[Row]) -> str:
    found = of(rows, "kernels")
    names = sorted({name for row in found for name in row["tflops"]})
    lines = []
    for row in sorted(found, key=lambda row: (row["model"], -row["heads"])):
        cells = [f"{row['tflops'][name]:.0f} ({row['distance'][name]:.1e})" if name in row["tflops"] else "-" for name in names]
        lines.append([row["model"], f"{row['tokens']:,}", row["heads"], *cells])
    return table(["model", "tokens", "heads", *names], lines)


def gaps(rows: Sequence[Row]) -> str:
    """What was refused, failed, or had no time, and was not measured at another time: each with its words."""
    lines = []
    done = {identity(row) for row in rows if is_measured(row)}
    for row in (row for row in rows if identity(row) not in done):
        for key in ("error", "refused", "skipped", "missing"):
            if key in row:
                what = [row.get(name) for name in ("model", "tokens", "way", "mb", "backend") if row.get(name) is not None]
                lines.append(
                    [row["section"], ", ".join(map(str, what)), row.get("degree", ""), key, str(row[key]).replace("|", "/")]
                )
    return table(["section", "what", "GPUs", "how", "words"], lines)


PARTS: Mapping[str, tuple[str, Callable[[Sequence[Row]], str]]] = {
    "forwards": ("One forward of one branch, seconds (efficiency against one GPU of the same run)", forwards),
    "guided": ("One step of two branches", guided),
    "stock": ("diffusers' context parallel in the same run", against_stock),
    "switch": ("Changing the width", switches),
    "equality": ("Equality to one rank", equality),
    "profile": ("Where a forward's time goes: shares of its traced time", profiles),
    "decode": ("Decoding", decodes),
    "wires": ("Exchanges alone", wires),
    "kernels": ("Attention kernels at the heads of one rank: TFLOP/s (distance to float32)", kernels),
}


def tables(rows: Sequence[Row]) -> str:
    """All sections that have rows, and what could not be measured."""
    parts = [f"## {title}\n\n{make(rows)}\n" for section, (title, make) in PARTS.items() if of(rows, section)]
    if any(not is_measured(row) for row in rows):
        parts.append(f"## Refused, failed, or without time\n\n{gaps(rows)}\n")
    return "\n".join(parts)
