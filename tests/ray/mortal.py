"""A worker that scores by the prompts, and ends its whole actor where they say so."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.vbench.process import Answer, Row, Unavailable, Video


@dataclass
class Mortal:
    """Scores are the numbers in the prompts; a word there ends the whole actor, ``once`` or ``always``."""

    folder: Path

    def score(self, dimension: str, videos: Sequence[Video]) -> Answer:
        if dimension == "scene":
            raise Unavailable("no weights here")
        for video in videos:
            died = self.folder / f"{Path(video.path).stem}.died"
            if "always" in video.prompt or ("once" in video.prompt and not died.exists()):
                died.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return Answer(tuple(Row({"video_results": float(video.prompt.split()[0])}) for video in videos), 0.01, 0.01)

    def close(self) -> None:
        """Nothing is open."""
