"""One crew for several runs: actors stay when a run ends, so that models are made and compiled once."""

from __future__ import annotations

import time
from typing import Any

from orchestrator.crew import START_TIMEOUT_S, Crew, Ref, Unit


class StayingCrew(Crew):
    """``close`` keeps the actors, which the next run starts again; ``end`` ends them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._kept: dict[tuple[str, int], Unit] = {}

    def ask(self, kind: str, slot: int, generation: int = 0, group: Any = None) -> Unit:
        kept = self._kept.get((kind, slot))
        return super().ask(kind, slot, kept.generation if kept else generation, kept.group if kept else group)

    def start(self, unit: Unit) -> list[Ref]:
        kept = self._kept.pop((unit.kind, unit.slot), None)
        if kept is None:
            return super().start(unit)
        import ray

        unit.actors, unit.starting = kept.actors, set(range(len(kept.actors)))
        unit.deadline_s = time.monotonic() + START_TIMEOUT_S
        return [ray.put(kept.place) for _ in kept.actors]

    def close(self) -> None:
        for unit in list(self.units.values()):
            if unit.ready:
                self._kept[unit.kind, unit.slot] = self.units.pop(unit.name)
            else:
                self.dismiss(unit)

    def end(self) -> None:
        self.units |= {unit.name: unit for unit in self._kept.values()}
        self._kept.clear()
        super().close()
