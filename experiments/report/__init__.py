"""``report.html``: one or several runs in one file that loads nothing from anywhere, and a contact sheet beside it.

Charts are inline SVG that this package lays out itself: a few kilobytes that follow the reader's light or dark theme,
print, and read without scripts, where an embedded chart library would be four megabytes of every report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.report.html import DEFAULT, Options, html_text
from experiments.report.material import Material, Source, gather
from experiments.report.page import Page, build_page
from experiments.report.sheet import write_sheet
from experiments.report.videos import EMBED_UP_TO_BYTES, video_sources
from orchestrator.files import write_atomic
from orchestrator.paths import RunPaths
from orchestrator.runfolder import store_of
from orchestrator.types import Record

__all__ = ["EMBED_UP_TO_BYTES", "Options", "Report", "report_of", "write_report"]


@dataclass(frozen=True)
class Report:
    """What there is to say of some runs, ready to be written."""

    material: Material
    page: Page

    def write(self, path: Path, options: Options = DEFAULT) -> None:
        """The HTML, in one piece. Videos that it does not hold are linked relative to ``path``."""
        homes, page = self.material.homes, self.page
        videos = video_sources(page.prompts, homes, path.absolute().parent, options.num_held, options.embed_up_to_bytes)
        write_atomic(path, html_text(page, videos))

    def write_sheet(self, path: Path) -> bool:
        """The PNG; False without a video to show."""
        return write_sheet(path, self.page.prompts, self.material.homes, [stats.arm for stats in self.page.arms])


def report_of(sources: Sequence[Source], base: str | None = None) -> Report:
    """Raises ConfigError as :func:`experiments.report.material.gather` does."""
    material = gather(sources, base)
    return Report(material, build_page(material))


def write_report(
    paths: RunPaths,
    records: Sequence[Record],
    quality: Sequence[Mapping[str, Any]],
    failures: Sequence[Mapping[str, Any]] = (),
    options: Options = DEFAULT,
) -> Path:
    """Write ``report.html`` and ``sheet.png`` of a run. Its config, if it is there, gives name and order.

    Returns the report's path; raises ConfigError for an ``options.base`` that is none of its arms.
    """
    found = report_of([Source(paths, store_of(paths), records, quality, failures)], options.base)
    found.write(paths.report, options)
    found.write_sheet(paths.sheet)
    return paths.report
