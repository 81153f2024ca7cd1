"""Pictures for MLflow: strips of keyframes on the arm runs, side by side in its image grid, and the videos asked for."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from experiments import mlflow_rows as rows
from experiments.mlflow_plan import Plan
from experiments.mlflow_runs import Known, Runs
from orchestrator.store import Store
from orchestrator.types import Record

STRIP = "strip"
"""Key of the images; their step is the prompt's."""
KEYFRAMES, HEIGHT, CAPTION = 5, 144, 16
"""Of a strip: frames evenly from the first to the last, and pixels."""
MAX_PROBLEMS = 3
"""Named one by one; the others are counted."""


class Media:
    """Sends what a record's policy asks for, once. A video that is missing or broken is told and stops nothing."""

    def __init__(self, runs: Runs, videos: Store, plan: Plan, tracking: Mapping[str, Any], num_arms: int) -> None:
        self.runs, self.videos, self._plan = runs, videos, plan
        self.upload = rows.chosen_pairs(tracking.get("videos", "auto"), plan.pairs, num_arms)
        self.strips = rows.chosen_pairs(tracking.get("strips", 0), plan.pairs, num_arms)
        self._broken: dict[str, str] = {}
        self._names: dict[str, set[str]] = {}

    @property
    def problems(self) -> list[str]:
        told = list(self._broken.values())
        more = [f"{len(told) - MAX_PROBLEMS} more videos could not be read"] if len(told) > MAX_PROBLEMS else []
        return told[:MAX_PROBLEMS] + more

    def put(self, record: Record, arm: Known) -> None:
        pair = (record.prompt_id, record.seed)
        strip = pair in self.strips and not self._has_strip(arm, record)
        video = pair in self.upload and not self._has_video(arm, record)
        if not (strip or video) or record.video in self._broken:
            return
        with contextlib.ExitStack() as open_while:
            try:
                path = open_while.enter_context(self.videos.fetched(record.video))
                picture = strip_of(path, f"{record.prompt_id} seed {record.seed}: {record.prompt}") if strip else None
                path.stat()
            except (OSError, ValueError) as error:  # of the video; what MLflow raises below is for the caller
                why = "it is not there" if isinstance(error, FileNotFoundError) else error
                self._broken[record.video] = f"{record.video} was not sent: {why}"
                return
            if video:
                self._send_video(arm, record, path)
        if picture is not None:
            self._send_strip(arm, record, picture)

    def _send_strip(self, arm: Known, record: Record, picture: Image.Image) -> None:
        time_ms = rows.milliseconds(record.finished_at)
        self.runs.client.log_image(arm.run_id, picture, key=STRIP, step=self._step(record), timestamp=time_ms)
        self._listed(arm, "images").add(_mark(self._step(record), time_ms))

    def _has_strip(self, arm: Known, record: Record) -> bool:
        return _mark(self._step(record), rows.milliseconds(record.finished_at)) in self._listed(arm, "images")

    def _send_video(self, arm: Known, record: Record, path: Path) -> None:
        """To the prompt's own run, or, under a name of its own, to the arm's."""
        if self._plan.layout == "runs":
            run = self.runs.known[record.item_key]
            self.runs.client.log_artifact(run.run_id, str(path), "video")
            self.runs.log(run, 0, tags={"video": record.sha256})
        else:
            self.runs.client.log_artifact(arm.run_id, str(path), f"videos/{_folder(record)}")
            self._listed(arm, "videos").add(_folder(record))

    def _has_video(self, arm: Known, record: Record) -> bool:
        if self._plan.layout == "runs":
            return self.runs.known[record.item_key].tags.get("video") == record.sha256
        return _folder(record) in self._listed(arm, "videos")

    def _step(self, record: Record) -> int:
        return self._plan.step((record.prompt_id, record.seed))

    def _listed(self, arm: Known, folder: str) -> set[str]:
        """What the arm's run holds there: asked once."""
        key = f"{arm.run_id}/{folder}"
        if key not in self._names:
            found = [file.path.rpartition("/")[2] for file in self.runs.client.list_artifacts(arm.run_id, folder)]
            self._names[key] = {_mark_of(name) for name in found}
        return self._names[key]


def strip_of(path: Path, caption: str) -> Image.Image:
    """Keyframes beside each other over their caption. Raises ValueError for what is no whole video."""
    from stages.video import read_video

    frames = read_video(path)
    chosen = [frames[index] for index in np.linspace(0, len(frames) - 1, KEYFRAMES).round().astype(int)]
    width = max(1, round(HEIGHT * chosen[0].shape[1] / chosen[0].shape[0]))
    strip = Image.new("RGB", (KEYFRAMES * (width + 2) - 2, HEIGHT + CAPTION), "white")
    for place, frame in enumerate(chosen):
        strip.paste(Image.fromarray(frame).resize((width, HEIGHT)), (place * (width + 2), 0))
    ImageDraw.Draw(strip).text((2, HEIGHT + 2), caption.encode("latin-1", "replace").decode("latin-1"), fill="black")
    return strip


def _folder(record: Record) -> str:
    return f"{record.prompt_id}-{record.seed}-{record.sha256[:8]}"


def _mark(step: int, time_ms: int) -> str:
    return f"{step}/{time_ms}"


def _mark_of(name: str) -> str:
    """Of an image's file name, its step and time as MLflow writes them; other names as they are."""
    found = re.search(r"[+%]step[+%](\d+)[+%]timestamp[+%](\d+)[+%]", name)
    return _mark(int(found[1]), int(found[2])) if found else name
