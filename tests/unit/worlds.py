"""A made-up outside world for scheduler tests: it carries commands out, late, wrongly or never, as it is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator import events
from orchestrator.events import Command, Event, Finish, GiveUp, StartDecode, StartPhase, StartSketch
from orchestrator.policy import Policy
from orchestrator.scheduler import Scheduler, SchedulerConfig
from orchestrator.types import Action, Clip, Decision, Item, Phase, Slice, Stage

STAGES = (Stage((4, 8, 8), 9, 7.0), Stage((7, 14, 14), 7, 9.0), Stage((7, 18, 18), 7, 11.0), Stage((11, 18, 18), 7, 11.0))
ACTION = Action("s0.70-f20", STAGES, 0.5, 0.7, 20)
DECISION = Decision(ACTION, "a still scene with fine texture")
CLIP = Clip("x.mp4", 10, "00", {"decode_s": 1.0})
PHASES = ("sketch", "refine", "decode")
KINDS = ("sketch", "decode", "pod")


@dataclass(frozen=True)
class Widths:
    """A policy that runs every stage on a width of its own, as wide as fits, and the last clip first."""

    stages: tuple[int, ...]
    """Of stages 2, 3 and 4."""
    decode: int = 1

    def priority(self, item: Item, decision: Decision) -> float:
        return -float(item.seed)

    def phases(self, item: Item, decision: Decision, max_width: int) -> tuple[Phase, ...]:
        return tuple(Phase(stop, fit(width, max_width), f"asked {max_width}") for stop, width in enumerate(self.stages, start=2))

    def decode_width(self, item: Item, max_width: int) -> int:
        return fit(self.decode, max_width)


def fit(width: int, max_width: int) -> int:
    while width > max_width:
        width //= 2
    return width


def item(number: int) -> Item:
    return Item(f"key{number}", "dvg", f"p{number}", "a red circle", number)


@dataclass
class World:
    """Every event passes through :meth:`tell`, which checks what must hold after every one of them."""

    scheduler: Scheduler
    running: list[Command] = field(default_factory=list)
    past: list[Event] = field(default_factory=list)
    """Results already told; telling one again is a late duplicate."""
    ended: dict[str, list[Command]] = field(default_factory=dict)
    workers: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Living workers: kind and ranks."""
    num_ranks: dict[str, int] = field(default_factory=dict)
    """Of every worker that ever joined."""
    charges: dict[str, int] = field(default_factory=dict)
    """Attempts that failed or were lost."""
    pardons: dict[str, int] = field(default_factory=dict)
    """Those that were lost through no fault of the item."""
    ran: dict[str, list[range]] = field(default_factory=dict)
    """Stages of each clip's phases since its last sketch."""
    reached: set[str] = field(default_factory=set)
    """Clips that went on from a checkpoint."""
    num_items: int = 0
    num_joined: int = 0
    time_s: float = 0.0

    def tell(self, event: Event) -> list[Command]:
        commands = self.scheduler.handle(event)
        self.scheduler.check()
        for command in commands:
            if isinstance(command, Finish | GiveUp):
                self.ended.setdefault(command.item_key, []).append(command)
            else:
                self.running.append(command)
        self.assert_nobody_does_two_things()
        self.assert_begun_clips_went_first(commands)
        return commands

    def tick(self) -> float:
        self.time_s += 1.0
        return self.time_s

    def arrive(self) -> list[Command]:
        self.num_items += 1
        return self.tell(events.Arrived(self.tick(), item(self.num_items)))

    def join(self, kind: str, num_ranks: int = 1) -> str:
        self.num_joined += 1
        name = f"{kind}-{self.num_joined}"
        self.workers[name] = (kind, num_ranks)
        self.num_ranks[name] = num_ranks
        self.tell(events.WorkerJoined(self.tick(), kind, name, num_ranks))
        return name

    def succeed(self, command: Command) -> list[Command]:
        self.running.remove(command)
        if isinstance(command, StartSketch):
            self.ran[command.item_key] = []
        elif isinstance(command, StartPhase):
            self.ran[command.item_key].append(range(command.begin, command.stop))
        event = result(self.tick(), command)
        self.past.append(event)
        return self.tell(event)

    def fail(self, command: Command, phase: str | None = None) -> list[Command]:
        self.running.remove(command)
        self.charge(command)
        own = phase_of(command)
        if PHASES.index(phase or own) < PHASES.index(own):
            self.ran[command.item_key] = []
        event = events.Failed(self.tick(), command.item_key, command.attempt, phase or own, "ValueError: no", "trace")
        self.past.append(event)
        return self.tell(event)

    def lose(self, name: str, ranks: tuple[int, ...] = (), blameless: bool = False) -> list[Command]:
        """Kill a worker, or some ranks of a pod. What ran there is charged, or pardoned; the rest of a pod goes on."""
        dead = [command for command in self.running if on_worker(command, name, ranks)]
        self.running = [command for command in self.running if command not in dead]
        for command in dead:
            self.charge(command)
            self.pardons[command.item_key] = self.pardons.get(command.item_key, 0) + blameless
            self.past.append(result(self.time_s, command))
        del self.workers[name]
        return self.tell(events.WorkerLost(self.tick(), name, "killed", ranks, blameless))

    def leave(self, name: str) -> list[Command]:
        """A notice that a worker goes soon: it finishes what it does."""
        return self.tell(events.WorkerLeaving(self.tick(), name, "preempted"))

    def reach(self, command: Command, stop: int) -> None:
        """A checkpoint of a clip at work; told just before its failure."""
        phases = (Phase(stop, 1, "reached"),) if stop > 1 else ()
        handle = (command.item_key, "sketched" if stop == 1 else stop, command.attempt)
        self.tell(
            events.Reached(
                self.tick(), command.item_key, command.attempt, DECISION, stop, {"sketch_s": 1.0}, phases, 3.0, 2.0, handle=handle
            )
        )
        self.ran[command.item_key] = [range(1, stop)] if stop > 1 else []
        self.reached.add(command.item_key)

    def charge(self, command: Command) -> None:
        self.charges[command.item_key] = self.charges.get(command.item_key, 0) + 1

    def drain(self) -> None:
        """Bring one worker of each kind and let everything succeed."""
        for kind in KINDS:
            self.join(kind)
        while self.running:
            self.succeed(self.running[0])

    def assert_nobody_does_two_things(self) -> None:
        """Told from the commands alone, not from the scheduler's books."""
        held: list[object] = []
        for command in self.running:
            if (piece := slice_of(command)) is not None:
                assert piece.start % piece.width == 0
                assert piece.start + piece.width <= self.num_ranks[piece.pod]
                held.extend((piece.pod, rank) for rank in piece.ranks)
            elif isinstance(command, StartSketch | StartDecode):
                held.append(command.worker)
        assert len(held) == len(set(held)), f"two commands share a worker: {self.running}"
        keys = [command.item_key for command in self.running]
        assert len(keys) == len(set(keys)), f"one item runs twice: {self.running}"

    def assert_begun_clips_went_first(self, commands: list[Command]) -> None:
        """Where each clip's widths are its own: none begins on ranks that would have done for one that has begun."""
        policy = self.scheduler.policy
        if not isinstance(policy, Widths):
            return
        running = {command.item_key for command in self.running}
        max_width = max((num_ranks for kind, num_ranks in self.workers.values() if kind == "pod"), default=1)
        waiting = [
            fit(policy.stages[ran[-1].stop - 1], max_width)
            for key, ran in self.ran.items()
            if ran and ran[-1].stop < len(STAGES) and key not in self.ended and key not in running
        ]
        for command in commands:
            if isinstance(command, StartPhase) and command.begin == 1:
                assert all(width > command.slice.width for width in waiting), f"{command} while {waiting} waited"


def ready_world(num_items: int = 1, policy: Policy | None = None, num_ranks: int = 1, **config: Any) -> World:
    world = World(Scheduler(SchedulerConfig(**config), policy))
    for kind in KINDS:
        world.join(kind, num_ranks if kind == "pod" else 1)
    for _ in range(num_items):
        world.arrive()
    return world


def slice_of(command: Command) -> Slice | None:
    return command.slice if isinstance(command, StartPhase | StartDecode) else None


def phase_of(command: Command) -> str:
    return {StartSketch: "sketch", StartPhase: "refine", StartDecode: "decode"}[type(command)]


def on_worker(command: Command, name: str, ranks: tuple[int, ...]) -> bool:
    if (piece := slice_of(command)) is not None:
        return piece.pod == name and (not ranks or bool(set(ranks) & set(piece.ranks)))
    return isinstance(command, StartSketch | StartDecode) and command.worker == name


def result(time_s: float, command: Command) -> Event:
    key, attempt = command.item_key, command.attempt
    if isinstance(command, StartSketch):
        return events.Sketched(time_s, key, attempt, DECISION, {"sketch_s": 1.0}, handle=(key, "sketched", attempt))
    if isinstance(command, StartPhase):
        assert command.handle[:2] == (key, "sketched" if command.begin == 1 else command.begin)
        assert command.begin < command.stop
        return events.PhaseDone(time_s, key, attempt, command.stop, {"refine_s": 2.0}, handle=(key, command.stop, attempt))
    assert isinstance(command, StartDecode)
    assert command.handle[:2] == (key, len(STAGES))
    return events.Decoded(time_s, key, attempt, CLIP)
