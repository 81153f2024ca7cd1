"""What the oracle study says: how near each way of choosing comes to the best action of each video."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.bench.studies_common import Row, interval, table

CRITERIA = ("psnr", "ssim", "score")
Choice = Callable[[Row], str]


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry per setting and way of choosing, over the held-out captions; constants are picked on all rows' own split."""
    found = []
    for setting in dict.fromkeys(row["setting"] for row in rows):
        own = [row for row in rows if row["setting"] == setting and row["split"] == "held-out"]
        training = [row for row in rows if row["setting"] == setting and row["split"] == "training"]
        found += [
            {"setting": setting, "choice": name, **_figures(own, choose)} for name, choose in choosers(own, training).items()
        ]
        found.append({"setting": setting, "choice": "random", **_random(own)})
    return found


def choosers(rows: Sequence[Row], training: Sequence[Row]) -> dict[str, Choice]:
    """Every way of choosing: the oracle, each rule, each action for all videos, the best such one on training captions."""
    rules: dict[str, Choice] = {f"oracle by {key}": _best(key) for key in CRITERIA}
    if all(_others(row, rows) for row in rows):
        rules["oracle of another seed"] = _best_of_others(rows)
    rules |= {name: _rule(name) for name in rows[0]["chosen"]}
    if training:
        rules |= {f"constant fitted by {key}": _always(best_constant(training, key)) for key in CRITERIA}
    return rules | {name if name == "fixed" else f"always {name}": _always(name) for name in rows[0]["actions"]}


def _best(key: str) -> Choice:
    def choose(row: Row) -> str:
        names = feasible(row)
        return max(names, key=lambda name: (row["actions"][name][key], row["actions"][name]["psnr"]))

    return choose


def _best_of_others(rows: Sequence[Row]) -> Choice:
    """The best action for the same prompt under another seed: how much of the choice is the prompt's at all."""
    return lambda row: _best("psnr")(_others(row, rows)[0])


def _others(row: Row, rows: Sequence[Row]) -> list[Row]:
    return [other for other in rows if other["prompt"] == row["prompt"] and other["seed"] != row["seed"]]


def _rule(name: str) -> Choice:
    return lambda row: str(row["chosen"][name])


def _always(name: str) -> Choice:
    return lambda row: name


def feasible(row: Row) -> list[str]:
    """The names of DVG's actions: the fixed ratio stands beside them."""
    return [name for name in row["actions"] if name != "fixed"]


def best_constant(rows: Sequence[Row], key: str) -> str:
    """The one action that does best on average."""
    return max(feasible(rows[0]), key=lambda name: statistics.mean(row["actions"][name][key] for row in rows))


def _figures(rows: Sequence[Row], choose: Choice) -> dict[str, Any]:
    chosen = [choose(row) for row in rows]
    entry: dict[str, Any] = {"actions": dict(Counter(chosen).most_common(3))}
    for key in (*CRITERIA, "background"):
        entry[key] = _interval(rows, [row["actions"][name][key] for row, name in zip(rows, chosen, strict=True)])
    gaps = [
        max(row["actions"][a]["psnr"] for a in feasible(row)) - row["actions"][name]["psnr"]
        for row, name in zip(rows, chosen, strict=True)
    ]
    entry["lost_db"] = _interval(rows, gaps)
    ours, theirs = (
        [row["actions"][name]["psnr"] for row, name in zip(rows, names, strict=True)] for names in (chosen, _all(rows))
    )
    entry["minus_dvg"] = _interval(rows, [a - b for a, b in zip(ours, theirs, strict=True)])
    ranks = [rank(row, name) for row, name in zip(rows, chosen, strict=True)]
    entry |= {f"top{k}": statistics.mean(r < k for r in ranks) for k in (1, 2)}
    return entry


def _all(rows: Sequence[Row]) -> list[str]:
    """What DVG chooses at the defaults."""
    return [row["chosen"]["dvg"] for row in rows]


def rank(row: Row, name: str) -> int:
    """How many of the feasible actions come nearer to the full run in PSNR."""
    return sum(row["actions"][other]["psnr"] > row["actions"][name]["psnr"] for other in feasible(row) if other != name)


def _random(rows: Sequence[Row]) -> dict[str, Any]:
    """A uniform choice among the feasible actions, in expectation."""
    entry: dict[str, Any] = {"actions": {}}
    for key in (*CRITERIA, "background"):
        entry[key] = _interval(rows, [_mean([row["actions"][name][key] for name in feasible(row)]) for row in rows])
    psnrs = [[row["actions"][a]["psnr"] for a in feasible(row)] for row in rows]
    entry["lost_db"] = _interval(rows, [max(values) - statistics.mean(values) for values in psnrs])
    dvg = [row["actions"][name]["psnr"] for row, name in zip(rows, _all(rows), strict=True)]
    entry["minus_dvg"] = _interval(rows, [statistics.mean(values) - chosen for values, chosen in zip(psnrs, dvg, strict=True)])
    return {**entry, "top1": 1 / len(feasible(rows[0])), "top2": 2 / len(feasible(rows[0]))}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.mean(known) if known else None


def _interval(rows: Sequence[Row], values: Sequence[float | None]) -> tuple[float, float, float]:
    found: dict[int, list[float]] = {}
    for row, value in zip(rows, values, strict=True):
        if value is not None:
            found.setdefault(row["prompt"], []).append(value)
    return interval(found)


def report(summary: Sequence[Mapping[str, Any]]) -> str:
    """One Markdown table a setting."""
    header = (
        "choice",
        "PSNR",
        "lost to the best (dB)",
        "minus DVG (dB)",
        "top-1",
        "top-2",
        "SSIM",
        "all attributes",
        "background",
        "most chosen",
    )
    text = ""
    for setting in dict.fromkeys(entry["setting"] for entry in summary):
        lines = [_line(entry) for entry in summary if entry["setting"] == setting]
        text += f"### {setting}\n\n{table(header, lines)}\n"
    return text


def _line(entry: Mapping[str, Any]) -> list[str]:
    psnr, lost, ssim, score, background = (entry[key] for key in ("psnr", "lost_db", "ssim", "score", "background"))
    gap = entry["minus_dvg"]
    most = ", ".join(f"{name} {count}" for name, count in entry["actions"].items())
    return [
        entry["choice"],
        f"{psnr[0]:.2f} ({psnr[1]:.2f} to {psnr[2]:.2f})",
        f"{lost[0]:.2f} ({lost[1]:.2f} to {lost[2]:.2f})",
        f"{gap[0]:+.2f} ({gap[1]:+.2f} to {gap[2]:+.2f})",
        f"{entry['top1']:.0%}",
        f"{entry['top2']:.0%}",
        f"{ssim[0]:.3f}",
        f"{score[0]:.1%}",
        f"{background[0]:.1%}",
        most,
    ]
