"""What a shell needs of the object that makes videos; :class:`stages.worker.ClipWorker` is the real one."""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from orchestrator.checkpoints import CheckpointLost
from orchestrator.events import Failed
from orchestrator.mistakes import without_password
from orchestrator.types import Clip, Decision, Item


class Worker(Protocol):
    """``boundary`` is the latent where one phase ends and the next begins, opaque to the shells. Each phase may raise."""

    def sketch(self, item: Item) -> tuple[Decision, dict[str, float], Any]:
        """The decision, timings, and the boundary after the sketch."""
        ...

    def refine(
        self, item: Item, boundary: Any, on_step: Callable[[Any], None] = ..., *, stop: int | None = None, team: Any = None
    ) -> tuple[Any, dict[str, float]]:
        """The boundary once ``stop`` stages are done (None: all), and timings. All ranks of a team do this together."""
        ...

    def decode(self, item: Item, boundary: Any, path: Path, team: Any = None) -> Clip:
        """Decode and write the video to ``path``, whole or not at all; by the first rank of a team."""
        ...

    def help_decode(self, item: Item, boundary: Any, team: Any) -> None:
        """The part of a team's other ranks."""
        ...


def order(*arguments: Any) -> bytes:
    """What a remote call is told beside its boundary, in one piece: Ray takes as long for every single argument of a call."""
    return pickle.dumps(arguments, pickle.HIGHEST_PROTOCOL)


def told(made: bytes) -> tuple[Any, ...]:
    """Inverse of :func:`order`."""
    arguments: tuple[Any, ...] = pickle.loads(made)
    return arguments


def failed(time_s: float, item_key: str, attempt: int, phase: str, error: BaseException) -> Failed:
    """The event for an exception that ended one attempt; a boundary that is gone from disk means an earlier phase again."""
    phase = "sketch" if isinstance(error, CheckpointLost) else phase
    story = without_password("".join(traceback.format_exception(error)))
    summary = f"{type(error).__name__}: {without_password(' '.join(str(error).split()))[:500]}"
    return Failed(time_s, item_key, attempt, phase, summary, story)
