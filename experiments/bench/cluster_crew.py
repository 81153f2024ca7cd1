"""One crew for several runs: actors stay when a run ends, so that models are made and compiled once."""

from __future__ import annotations

import time
from typing import Any

from orchestrator.crew import START_TIMEOUT_S, Crew, Ref, Unit


class StayingCrew(Crew):
    """``close`` keeps the actors, which the next run hires again; ``end`` ends them."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._kept: dict[tuple[str, int], Unit] = {}

    def hire(self, kind: str, slot: int, generation: int) -> tuple[Unit, list[Ref]]:
        unit = self._kept.pop((kind, slot), None)
        if unit is None:
            return super().hire(kind, slot, generation)
        import ray

        self.units.append(unit)
        unit.starting, unit.deadline_s = set(range(len(unit.actors))), time.monotonic() + START_TIMEOUT_S
        return unit, [ray.put(unit.place) for _ in unit.actors]

    def close(self) -> None:
        for unit in list(self.units):
            if unit.dead or unit.starting:
                self.dismiss(unit)
            else:
                self._kept[unit.kind, unit.slot] = unit
        self.units.clear()

    def end(self) -> None:
        self.units.extend(self._kept.values())
        self._kept.clear()
        super().close()
