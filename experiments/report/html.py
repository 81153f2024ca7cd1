"""The page as text: templates filled with it, styles and scripts in line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments.report.clips import Prompt
from experiments.report.page import MOST_STARTS, Page
from experiments.report.videos import EMBED_UP_TO_BYTES, Num

PER_PAGE = 24
"""Prompts on one page of the gallery, and in the document itself; the others are data until a reader turns to them."""
MOST_FAILURES = 300
"""Told in full; the run folder has them all."""

_FOLDER = Path(__file__).parent
_STYLES = ("page.css", "sections.css")
_SCRIPTS = ("tabs.js", "player.js", "gallery.js")


@dataclass(frozen=True)
class Options:
    """How a report is written."""

    num_held: Num = None
    """Prompts whose videos are inside the file; None: as many as fit ``embed_up_to_bytes``."""
    base: str | None = None
    """The arm that speedups are against; None: the spec's reference."""
    embed_up_to_bytes: int = EMBED_UP_TO_BYTES


DEFAULT = Options()


def html_text(page: Page, videos: Mapping[str, str]) -> str:
    """``videos``: ``src`` by item key."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(
        page=page,
        style=_sources(_STYLES),
        script=_sources(_SCRIPTS),
        video_sources=videos,
        per_page=PER_PAGE,
        most_starts=MOST_STARTS,
        failures=page.failures[:MOST_FAILURES],
        gallery=_data({"perPage": PER_PAGE, "prompts": list(_rows(page.prompts, videos, environment))}),
    )


def _rows(prompts: Sequence[Prompt], videos: Mapping[str, str], environment: Environment) -> Iterable[dict[str, Any]]:
    """What the gallery sorts and chooses by; of prompts that the document does not hold, also what it would hold."""
    macros: Any = environment.get_template("clips.html.j2").module
    for order, prompt in enumerate(prompts, start=1):
        html = {"html": str(macros.prompt_card(prompt, order, videos))} if order > PER_PAGE else {}
        spatial, temporal = prompt.highest_demand
        yield {
            "order": order,
            "key": prompt.key,
            "words": prompt.words,
            "ssim": round(prompt.lowest_ssim, 6),
            "speedup": round(prompt.highest_speedup, 4),
            "spatial": round(spatial, 4),
            "temporal": round(temporal, 4),
            "clips": [clip.trait for clip in prompt.clips],
            **html,
        }


def _data(value: Any) -> Markup:
    """JSON that is safe within a script element."""
    return Markup(json.dumps(value, ensure_ascii=False).replace("<", "\\u003c"))


def _sources(names: Sequence[str]) -> Markup:
    return Markup("\n").join(Markup((_FOLDER / name).read_text(encoding="utf-8")) for name in names)
