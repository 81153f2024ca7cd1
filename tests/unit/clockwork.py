"""A sweep on a virtual clock: every phase takes the seconds that a test says, on workers that a test names."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence

from orchestrator.events import (
    Arrived,
    Command,
    Decoded,
    Event,
    Failed,
    PhaseDone,
    Sketched,
    StartDecode,
    StartPhase,
    StartSketch,
    WorkerJoined,
)
from orchestrator.scheduler import Scheduler
from orchestrator.types import Clip, Decision, Item

CLIP = Clip("x.mp4", 10, "00", {})


class Clockwork:
    """``seconds(command, item)`` of a start; ``listen(event, commands)`` hears everything.

    ``fails(command)`` ends it badly: True in its own phase, or in the earlier phase that it names.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        items: Sequence[Item],
        decide: Callable[[Item], Decision],
        seconds: Callable[[Command, Item], float],
        listen: Callable[[Event, Sequence[Command]], None],
        fails: Callable[[Command], bool | str] = lambda command: False,
    ) -> None:
        self.scheduler, self.decide, self.seconds, self.listen, self.fails = scheduler, decide, seconds, listen, fails
        self.items = {item.item_key: item for item in items}
        self.now_s = 0.0
        self._order = itertools.count()
        self._heap: list[tuple[float, int, Command]] = []

    def run(self, sketchers: int = 1, pods: Sequence[int] = (8,), decoders: int = 1) -> float:
        """Until all is done; the seconds it took."""
        for item in self.items.values():
            self.tell(Arrived(0.0, item))
        for kind, ranks in (("pod", pods), ("sketch", (1,) * sketchers), ("decode", (1,) * decoders)):
            for slot, number in enumerate(ranks):
                self.tell(WorkerJoined(self.now_s, kind, f"{kind}-{slot}", number))
        while self._heap:
            self.now_s, _, command = heapq.heappop(self._heap)
            self.tell(self._result(command))
        return self.now_s

    def tell(self, event: Event) -> None:
        commands = self.scheduler.handle(event)
        for command in commands:
            if isinstance(command, StartSketch | StartPhase | StartDecode):
                until_s = event.time_s + self.seconds(command, self.items[command.item_key])
                heapq.heappush(self._heap, (until_s, next(self._order), command))
        self.listen(event, commands)

    def _result(self, command: Command) -> Event:
        about = self.now_s, command.item_key, command.attempt
        if failed := self.fails(command):
            own = {StartSketch: "sketch", StartPhase: "refine", StartDecode: "decode"}[type(command)]
            phase = failed if isinstance(failed, str) else own
            return Failed(*about, phase, "RuntimeError: it was told to")
        if isinstance(command, StartSketch):
            return Sketched(*about, self.decide(self.items[command.item_key]), {"sketch_s": 1.0}, "boundary")
        if isinstance(command, StartPhase):
            return PhaseDone(*about, command.stop, {"refine_s": 1.0}, "boundary")
        return Decoded(*about, CLIP)
