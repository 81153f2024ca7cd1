"""What an evaluation could not measure and why, as it left that beside its results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.paths import RunPaths

Remarks = Mapping[str, Mapping[str, Mapping[str, str]]]
"""By suite, arm and dimension."""
ENDING = "_evaluation.json"


def read_remarks(root: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Of dimensions that were asked for; arms as their folders are called. What cannot be read is left out."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for path in sorted(RunPaths(root).vbench.glob(f"*/*/*{ENDING}")):
        try:
            rows = json.loads(path.read_text(encoding="utf-8"))["dimensions"].items()
            told = {str(dim): text for dim, row in rows if row.get("requested", True) and (text := _remark(row))}
        except (OSError, ValueError, KeyError, AttributeError):
            continue
        if told:
            found.setdefault(path.parent.parent.name, {})[path.parent.name] = told
    return found


def _remark(row: Mapping[str, Any]) -> str:
    failed = row.get("failed") or {}
    broken = f"{len(failed)} videos failed, {next(iter(failed))!r} first: {next(iter(failed.values()))}" if failed else ""
    missing = f"{row['num_missing']} videos are missing" if row.get("num_missing") else ""
    return "; ".join(str(part) for part in (row.get("unavailable"), broken, missing, row.get("note")) if part)
