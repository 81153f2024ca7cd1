"""Which videos a report holds itself, and where it finds the others."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from experiments.report.clips import Prompt
from experiments.report.material import Home
from orchestrator.paths import RunPaths
from orchestrator.store import FolderStore

EMBED_UP_TO_BYTES = 40_000_000
"""Of a report that is not told otherwise, prompt by prompt as far as this goes."""

Num = int | None
"""Prompts whose videos a report holds itself; None: as many as fit ``EMBED_UP_TO_BYTES``."""


def video_sources(
    prompts: Sequence[Prompt], homes: Mapping[str, Home], folder: Path, num: Num, up_to_bytes: int = EMBED_UP_TO_BYTES
) -> dict[str, str]:
    """``src`` by item key, for the videos that can be had: within the page, or relative to ``folder``, where the page is written.

    Those of a run at a URL lie beside a page that is written into the run's working folder, for the page goes to the URL too;
    any other page has only those that it holds.
    """
    found: dict[str, str] = {}
    room = up_to_bytes
    for index, prompt in enumerate(prompts):
        mine = {r.item_key: homes[r.item_key] for clip in prompt.clips if (r := clip.record) and r.item_key in homes}
        room -= sum(home.num_bytes for home in mine.values())
        is_held = index < num if num is not None else room >= 0
        found |= {key: source for key, home in mine.items() if (source := _source(home, folder, is_held))}
    return found


def _source(home: Home, folder: Path, is_held: bool) -> str | None:
    is_here = isinstance(home.store, FolderStore)
    if not is_here and RunPaths(folder).output.is_file():
        return quote(home.video)
    if is_held and home.num_bytes:
        return _embedded(home)
    return _linked(home, folder) if is_here else None


def _embedded(home: Home) -> str | None:
    try:
        with home.store.fetched(home.video) as path:
            return f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    except FileNotFoundError:
        return None


def _linked(home: Home, folder: Path) -> str | None:
    path = Path(str(home.store.target(home.video)))
    return quote(Path(os.path.relpath(path, folder)).as_posix()) if path.is_file() else None
