"""Workers, their work and the sums of a simulated sweep."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Literal

from orchestrator.events import Command
from orchestrator.types import Slice

HOUR_S = 3600.0
DecodeOn = Literal["workers", "pod", "sketchers"]


@dataclass(frozen=True)
class Fleet:
    """Workers of a simulated sweep, a GPU each but for the pods."""

    pods: int
    ranks_per_pod: int
    sketch_workers: int
    decode_workers: int
    """None but where ``decode_on`` is workers."""
    decode_on: DecodeOn = "workers"
    """As of :class:`orchestrator.cluster_config.ClusterConfig`."""

    @property
    def num_decoders(self) -> int:
        """Workers that decode; ranks of pods are not counted."""
        return {"workers": self.decode_workers, "sketchers": self.sketch_workers, "pod": 0}[self.decode_on]

    @property
    def num_ranks(self) -> int:
        return self.pods * self.ranks_per_pod

    @property
    def num_gpus(self) -> int:
        return self.num_ranks + self.sketch_workers + self.decode_workers


@dataclass(slots=True, eq=False)
class Unit:
    """A worker or a pod, through all its lives, each of which has a name of its own."""

    kind: str
    name: str
    num_ranks: int
    life: int = 0
    ready: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)

    def renew(self) -> None:
        self.life += 1
        self.name = f"{self.name.partition('.')[0]}.{self.life}"


@dataclass(slots=True, eq=False)
class Job:
    """A command at work."""

    command: Command
    number: int
    """Of its item in the world."""
    unit: Unit
    began: int
    """Ticks."""
    piece: Slice | None = None
    lost: bool = False

    @property
    def width(self) -> int:
        return self.piece.width if self.piece else 1


@dataclass
class Outcome:
    """What a simulation came to; seconds, and GPU-seconds by width or cause."""

    makespan_s: float = 0.0
    events: int = 0
    finished: int = 0
    given_up: int = 0
    failures: int = 0
    """Workers, or ranks of pods, that died."""
    attempts: int = 0
    """Of all items."""
    heavy_s: float = 0.0
    sketch_s: float = 0.0
    decode_s: float = 0.0
    """On decode workers."""
    lost_s: float = 0.0
    """Work that had to be done again."""
    hand_over_s: float = 0.0
    idle_s: dict[str, float] = field(default_factory=dict)
    width_gpu_s: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    width_clips: Counter[int] = field(default_factory=Counter)
    """By the widest slice of each."""
