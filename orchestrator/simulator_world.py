"""What a simulated sweep consists of: its items, the action each will choose, and how long everything will really take."""

from __future__ import annotations

import itertools
import math
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.allotment import Frontier, frontier
from orchestrator.arms import Arm
from orchestrator.demands import Demands, actions_of, decision_for
from orchestrator.policy import ArmSizing, Sizing, decode_choices, stage_choices
from orchestrator.split import Load, decode_s, sketch_s
from orchestrator.types import Action, Decision, Demand, Item

NEUTRAL = Demand(0.5, 0.5, neutral=True)
"""What is assumed where nothing was recorded."""


class Realism(BaseModel):
    """How far the simulated world is from its cost model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    noise: float = Field(0.03, ge=0, lt=2)
    """Deviation of the logarithm of real over predicted seconds, drawn once for each item's sketch, refining and decode."""
    hand_over_s: float = Field(0.03, ge=0, allow_inf_nan=False)
    """From the command to the first step: the boundary travels, the slice's ranks meet."""
    text_s: float = Field(0.1, ge=0, allow_inf_nan=False)
    """Encoding a prompt and measuring its sketch."""
    mtbf_hours: float | None = Field(None, gt=0)
    """Mean hours between failures of one GPU; None: nothing fails."""
    restart_s: float = Field(120.0, ge=0, allow_inf_nan=False)
    """Until a worker that died is back, its weights loaded."""


@dataclass(frozen=True)
class ClipCost:
    """Predicted seconds of every clip of one arm that comes to one action."""

    arm: str
    action: Action
    sketch_s: float
    stages: tuple[Mapping[int, float], ...]
    """Of each stage after the sketch: seconds by width."""
    decode: Mapping[int, float]
    """Seconds by width; width 1 is always there."""
    ways: Frontier
    """To refine it, without hand-overs."""
    load: Load
    """GPU-seconds in each pool, everything on the widths that take the fewest."""

    def refine_s(self, begin: int, stop: int, width: int) -> float:
        """Stages ``begin`` to ``stop``, counted from 0 with the sketch's, without hand-over."""
        first = self.action.num_sketched
        return sum(stage[width] for stage in self.stages[begin - first : stop - first])


def clip_cost(arm: ArmSizing, name: str, action: Action, realism: Realism) -> ClipCost:
    """Raises ValueError when a stage can run on no slice of the arm's pod."""
    choices = stage_choices(arm, action, arm.limits.max_width)
    stages = tuple({c.width: c.stage_s for c in options} for options in choices)
    decode = {c.width: c.stage_s for c in decode_choices(arm.cost, arm.limits.max_width)} or {1: decode_s(arm, action)}
    ways = frontier(choices)
    sketch = realism.text_s + sketch_s(arm, action)
    return ClipCost(name, action, sketch, stages, decode, ways, Load(sketch, ways.cheapest.gpu_s, decode[1]))


@dataclass
class World:
    """Item ``i`` costs ``costs[which[i]]`` times what was drawn for it, whoever runs it: schedules of one world compare."""

    items: Sequence[Item]
    decisions: list[Decision]
    """Of each item; items that choose alike share one."""
    costs: list[ClipCost]
    which: array[int]
    sketch: array[float]
    """Real over predicted seconds of each item's sketch, and so on."""
    refine: array[float]
    decode: array[float]
    realism: Realism
    index: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.index = {item.item_key: number for number, item in enumerate(self.items)}

    def cost(self, number: int) -> ClipCost:
        return self.costs[self.which[number]]

    def sketch_s(self, number: int) -> float:
        return self.costs[self.which[number]].sketch_s * self.sketch[number]

    def refine_s(self, number: int, begin: int, stop: int, width: int) -> float:
        return self.costs[self.which[number]].refine_s(begin, stop, width) * self.refine[number] + self.realism.hand_over_s

    def decode_s(self, number: int, width: int = 1) -> float:
        return self.costs[self.which[number]].decode[width] * self.decode[number]

    def fastest_refine_s(self, number: int) -> float:
        """On the best slice of each stage, with one hand-over."""
        return self.cost(number).ways.fastest.seconds * self.refine[number] + self.realism.hand_over_s

    def fastest_decode_s(self, number: int) -> float:
        return min(self.cost(number).decode.values()) * self.decode[number]

    def cheapest_decode_s(self, number: int) -> float:
        """GPU-seconds."""
        return min(width * seconds for width, seconds in self.cost(number).decode.items()) * self.decode[number]

    @property
    def mean_load(self) -> Load:
        """Of an item, as predicted."""
        total = Load(0.0, 0.0, 0.0)
        counts = [0] * len(self.costs)
        for kind in self.which:
            counts[kind] += 1
        for cost, count in zip(self.costs, counts, strict=True):
            total = total + cost.load * count
        return total * (1 / max(len(self.which), 1))


def make_world(
    items: Sequence[Item], arms: Sequence[Arm], sizing: Sizing, demands: Demands, realism: Realism, seed: int = 0
) -> World:
    """Demands go by prompt where the prompt was recorded, and in turn where not. Same arguments, same world.

    Raises ValueError when an arm's clips can run on no slice of its pod.
    """
    actions = {arm.name: (arm, actions_of(arm)) for arm in arms}
    rows = [row.demand for row in demands.rows] or [NEUTRAL]
    numbers = {row.prompt_id: number for number, row in reversed(list(enumerate(demands.rows)))}
    chosen: dict[tuple[str, int], Decision] = {}
    turn: dict[tuple[str, int], int] = {}
    decisions = []
    for item in items:
        row = numbers.get(item.prompt_id)
        if row is None:
            row = turn.setdefault((item.prompt_id, item.seed), len(turn)) % len(rows)
        if (item.arm, row) not in chosen:
            chosen[item.arm, row] = decision_for(*actions[item.arm], rows[row])
        decisions.append(chosen[item.arm, row])
    return world_of(items, decisions, sizing, realism, seed)


def world_of(items: Sequence[Item], decisions: list[Decision], sizing: Sizing, realism: Realism, seed: int = 0) -> World:
    """Of items whose actions are known; raises as :func:`make_world`."""
    kinds: dict[tuple[str, int], int] = {}
    costs: list[ClipCost] = []
    which = array("I")
    for item, decision in zip(items, decisions, strict=True):
        kind = kinds.get((item.arm, id(decision)))
        if kind is None:
            kind = kinds[item.arm, id(decision)] = _number_of(costs, item.arm, decision.action, sizing, realism)
        which.append(kind)
    sketch, refine, decode = (_drawn(realism.noise, len(items), f"{seed} {part}") for part in ("sketch", "refine", "decode"))
    return World(items, decisions, costs, which, sketch, refine, decode, realism)


def _number_of(costs: list[ClipCost], arm: str, action: Action, sizing: Sizing, realism: Realism) -> int:
    """Of the cost in the list, where it is appended if it is new."""
    found = next((number for number, cost in enumerate(costs) if (cost.arm, cost.action) == (arm, action)), len(costs))
    if found == len(costs):
        costs.append(clip_cost(sizing.arms[arm], arm, action, realism))
    return found


def _drawn(noise: float, number: int, seed: str) -> array[float]:
    gauss = random.Random(seed).gauss
    return array("d", (math.exp(gauss(0.0, noise)) for _ in range(number)))


def repeated(items: Sequence[Item], number: int) -> tuple[Item, ...]:
    """The first ``number`` of the items, and of the same again under further seeds. Keys are as good as real ones here."""
    if number <= len(items):
        return tuple(items[:number])
    step = 1 + max(item.seed for item in items)
    return tuple(itertools.islice(_again(items, step), number))


def _again(items: Sequence[Item], step: int) -> Iterator[Item]:
    yield from items
    for lap in itertools.count(1):
        for item in items:
            yield Item(f"{item.item_key}-{lap}", item.arm, item.prompt_id, item.prompt, item.seed + lap * step)
