"""A command at work on actors, and what its ranks' answers mean."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.checkpoints import CheckpointLost
from orchestrator.crew import Unit
from orchestrator.doing import Doing
from orchestrator.events import Command, Failed, StartPhase
from orchestrator.inbox import Ref
from orchestrator.local import PHASE_OF
from orchestrator.mistakes import RunError, without_password
from orchestrator.types import Item
from parallel.errors import GroupError, GroupMismatch

ASK_S = 2.0
"""How long the other ranks have to say how far the clip was when one died."""


@dataclass
class Job:
    """A command at work: one reference per rank of its unit, and the boundary it will leave in the object store."""

    command: Command
    item: Item
    unit: Unit
    ranks: tuple[int, ...]
    boundary: Ref = None
    answers: dict[int, Any] = field(default_factory=dict)
    """Values and exceptions, by rank."""
    deadline_s: float | None = None
    """Once a rank has failed: until when the others are waited for."""
    doing: Doing | None = None
    """What its first rank last said."""
    allowed_s: float | None = None
    """How long it may stand still, once that was asked."""
    began_s: float = field(default_factory=time.monotonic)
    asked_s: float = field(default_factory=time.monotonic)
    moved_s: float = field(default_factory=time.monotonic)
    """When it last said anything new."""

    @property
    def key(self) -> str:
        return self.command.item_key

    @property
    def waiting(self) -> set[int]:
        """Ranks that have not answered."""
        return set(self.ranks) - self.answers.keys()

    @property
    def problems(self) -> dict[int, Exception]:
        return {rank: answer for rank, answer in sorted(self.answers.items()) if isinstance(answer, Exception)}

    @property
    def lost(self) -> set[int]:
        """Ranks that cannot be used again, once the wait is over: the silent ones, and those whose groups came apart."""
        return self.waiting | {rank for rank, problem in self.problems.items() if is_broken_group(problem)}

    @property
    def clip(self) -> str:
        return f"clip {self.item.prompt_id} ({self.item.item_key})"

    @property
    def stages(self) -> str:
        """What of the clip this is about."""
        if isinstance(self.command, StartPhase):
            first, last = self.command.begin + 1, self.command.stop
            return f"stage {first}" if first == last else f"stages {first}-{last}"
        return PHASE_OF[type(self.command)]

    def hear(self, doing: Any) -> None:
        """What a rank says of its progress. Anything else, such as an error, is no progress."""
        if isinstance(doing, Doing) and doing.item_key == self.item.item_key and doing != self.doing:
            self.doing, self.moved_s = doing, time.monotonic()

    def whereabouts(self) -> str:
        """The clip and how far it was, by the first of the slice's ranks to say so."""
        import ray

        asked = [actor.doing.options(concurrency_group="ask").remote() for actor in map(self.unit.actors.__getitem__, self.ranks)]
        while asked:
            ready, asked = ray.wait(asked, num_returns=1, timeout=ASK_S)
            if not ready:
                break
            self.hear(doing := _outcome_of(ready[0]))
            if isinstance(doing, Doing):
                break
        return f"{self.clip}, {self.doing or self.stages}"


def _outcome_of(ref: Ref) -> Any:
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        return error


def is_broken_group(problem: Exception) -> bool:
    """The rank's collectives failed half way; not so when ranks found in time that they had different work."""
    cause = cause_of(problem)
    return isinstance(cause, GroupError) and not isinstance(cause, GroupMismatch)


def blame(ranks: set[int], problems: Mapping[int, Exception]) -> str:
    """One line on why ``ranks`` are lost: another rank's own mistake, else silence, else what the collectives said."""
    own = {rank: problem for rank, problem in problems.items() if not is_broken_group(problem)}
    silent = sorted(ranks - problems.keys())
    told = "; ".join(f"rank {rank}: {summary(problem)}" for rank, problem in (own or problems).items())
    if own or not silent:
        return told
    return f"rank {', '.join(map(str, silent))} does not answer ({told})"


def is_death(outcome: Any) -> bool:
    """The actor's process is gone or cannot be reached; what it was doing may or may not have happened."""
    from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError

    return isinstance(outcome, RayActorError | WorkerCrashedError | NodeDiedError | OutOfMemoryError)


def failure_of(time_s: float, command: Command, error: Exception, where: str = "") -> Failed:
    """A worker's exception is its phase's failure; a boundary that is lost, with its node or on disk, that of all before it.

    Raises RunError when the worker did: a full disk, or a folder that is not on its node, is no item's fault.
    """
    from ray.exceptions import ObjectLostError

    cause = cause_of(error)
    if isinstance(cause, RunError):
        raise RunError(without_password(str(cause))) from error
    phase = "sketch" if isinstance(cause, ObjectLostError | CheckpointLost) else PHASE_OF[type(command)]
    said = f"{where}: {summary(error)}" if where else summary(error)
    return Failed(time_s, command.item_key, command.attempt, phase, said, without_password(str(error)))


def cause_of(error: Any) -> Any:
    """A worker's own exception, of the one that Ray wraps around it."""
    return getattr(error, "cause", None) or error


def summary(error: Any) -> str:
    """One line of an error, without passwords; of a worker's own exception, that one's type and message."""
    cause = cause_of(error)
    return f"{type(cause).__name__}: {without_password(' '.join(str(cause).split()))[:400]}"
