"""``report.html``: the whole run in one file that loads nothing from anywhere.

Charts are inline SVG that this package lays out itself: a few kilobytes that follow the reader's light or dark theme,
print, and read without scripts, where an embedded chart library would be four megabytes of every report.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.report.page import build_page, duration
from experiments.summary import table_rows
from orchestrator.files import write_atomic
from orchestrator.paths import RunPaths
from orchestrator.types import Record

EMBED_UP_TO_BYTES = 40_000_000
"""Videos of a run are embedded when they total at most this; above, the page links them where they lie."""

_FOLDER = Path(__file__).parent


def write_report(
    paths: RunPaths,
    records: Sequence[Record],
    quality: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]] = (),
    embed_up_to_bytes: int = EMBED_UP_TO_BYTES,
) -> Path:
    """Write ``report.html`` in one piece and return its path. The run's config, if it is there, gives name and order."""
    spec = yaml.safe_load(paths.config.read_text(encoding="utf-8")) if paths.config.exists() else {}
    page = build_page(records, quality, failures, spec, _commits(paths))
    html = (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            style=_source("page.css"),
            script=_source("player.js"),
            table=table_rows(page.arms),
            video_sources=_video_sources(paths, records, embed_up_to_bytes),
        )
    )
    write_atomic(paths.report, html)
    return paths.report


def _commits(paths: RunPaths) -> list[str]:
    """The commit of each start of the run, which need not be the one that writes the report."""
    starts = json.loads(paths.manifest.read_text(encoding="utf-8"))["starts"] if paths.manifest.exists() else ()
    return [start["commit"] for start in starts if start.get("commit")]


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(duration=duration)
    return environment


def _source(name: str) -> Markup:
    return Markup((_FOLDER / name).read_text(encoding="utf-8"))


def _video_sources(paths: RunPaths, records: Sequence[Record], embed_up_to_bytes: int) -> dict[str, str]:
    """``src`` by item key, for the videos that exist: all embedded, or all linked relative to the report.

    Those of a run that goes to a URL lie beside the report there.
    """
    files = {r.item_key: (r.video, paths.root / r.video) for r in records}
    if paths.output.is_file():
        return {key: quote(name) for key, (name, _) in files.items()}
    found = {key: (name, path) for key, (name, path) in files.items() if path.is_file()}
    if sum(path.stat().st_size for _, path in found.values()) > embed_up_to_bytes:
        return {key: quote(name) for key, (name, _) in found.items()}
    return {key: f"data:video/mp4;base64,{_base64(path)}" for key, (_, path) in found.items()}


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode("ascii")
