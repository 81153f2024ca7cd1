"""How long a worker may stand still before it is given up as hung: a multiple of what its work should, or was seen to, take.

Far below the timeout of a collective where steps are short, so that nobody waits for one; never above it.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.events import Command, StartDecode, StartPhase
from orchestrator.geometry import model
from orchestrator.policy import Policy, Sizing
from orchestrator.types import Decision, Item, Stage


class PatienceConfig(BaseModel):
    """After which silence a worker is taken for hung, killed and replaced, and what it did is tried again, twice as patiently."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    factor: float = Field(20, ge=2, allow_inf_nan=False)
    """Times the predicted seconds of a step, or the longest seen of a sketch or a decode."""
    least_step_s: float = Field(120, gt=0, allow_inf_nan=False)
    """A step may always take so long: its first of a kind compiles."""
    least_s: float = Field(300, gt=0, allow_inf_nan=False)
    """So may a sketch or a decode."""
    most_s: float = Field(3600, gt=0, allow_inf_nan=False)
    """None of these may take longer. Where nothing is known yet, it may take as long."""


class Patience:
    """Learns from what was seen; the larger of that and of what was predicted counts."""

    def __init__(self, config: PatienceConfig, policy: Policy, most_step_s: float) -> None:
        self.config = config
        self.policy = policy
        self.most_step_s = most_step_s
        """Where steps have no prediction; at most so long anyway."""
        self._seen_s: dict[tuple[type[Command], str], float] = {}

    def saw(self, command: Command, item: Item, seconds: float) -> None:
        """A sketch or decode that ended well."""
        key = type(command), item.arm
        self._seen_s[key] = max(seconds, self._seen_s.get(key, 0.0))

    def step_s(self, command: StartPhase, item: Item, decision: Decision | None) -> float:
        """Between two steps of a phase."""
        stages = decision.action.stages[command.begin : command.stop] if decision else ()
        predicted_s = self._step_s(item, stages, command.slice.width)
        if predicted_s is None:
            return self.most_step_s
        wanted_s = max(self.config.least_step_s, self.config.factor * predicted_s) * 2.0 ** (command.attempt - 1)
        return min(self.most_step_s, wanted_s)

    def _step_s(self, item: Item, stages: Sequence[Stage], width: int) -> float | None:
        """The longest step of any of the stages, all branches of guidance together."""
        arm = self.policy.arms.get(item.arm) if isinstance(self.policy, Sizing) else None
        if arm is None or not stages:
            return None
        geometry = model(arm.model)
        return max(max(stage.work, 1.0) * arm.cost.step_s(geometry.num_tokens(stage.seen), width) for stage in stages)

    def whole_s(self, command: Command, item: Item) -> float:
        """For a whole sketch or decode."""
        known_s = max(self._seen_s.get((type(command), item.arm), 0.0), self._decode_s(command, item))
        if not known_s:
            return self.config.most_s
        wanted_s = max(self.config.least_s, self.config.factor * known_s) * 2.0 ** (command.attempt - 1)
        return min(self.config.most_s, wanted_s)

    def _decode_s(self, command: Command, item: Item) -> float:
        arm = self.policy.arms.get(item.arm) if isinstance(self.policy, Sizing) else None
        return (arm.cost.decode_s or 0.0) if arm and isinstance(command, StartDecode) else 0.0
