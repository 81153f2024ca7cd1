"""What an accelerator is: something that decides, forward by forward, how much of a transformer's blocks is computed.

A stage event (another grid, another schedule, another expert) makes everything kept useless. The engine makes accelerators anew
for every stage, so there is nothing to reset between stages; within one, another expert begins anew too.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

from torch import Tensor

from orchestrator.flops import attention_share
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Attended, Grid
from parallel.seam import Seam
from stages.accelerators.attending import Attending, ByLayer, Here, Log
from stages.accelerators.reflecting import Reflecting, Velocity
from stages.accelerators.trunk import State, Trunk
from stages.sampling import NoiseLevel
from stages.token_sets import TokenSet


@dataclass(frozen=True)
class StageEvent:
    """Where a clip is from now on."""

    grid: Grid
    """Latent cells."""
    steps: range
    """The solver steps whose forwards run there, from 0 for the clip's first; a transition's forward is the last."""
    num_steps: int
    """Of the whole clip."""
    stage: int
    """From 0."""
    crosses: bool
    """Whether the last of the steps is a transition, whose forward gives the clean estimate that everything after rests on."""

    @property
    def last(self) -> int:
        return self.steps[-1]

    @property
    def in_stages(self) -> bool:
        """Whether the clip has other stages: this one is short then, and what it reuses must not be old."""
        return self.crosses or self.stage > 0


@dataclass(frozen=True)
class Now:
    """One forward."""

    step: int
    level: NoiseLevel
    branch: int
    """0: with the prompt; 1: without."""
    event: StageEvent

    @property
    def since(self) -> int:
        """Steps since the stage began; the first has 0."""
        return self.step - self.event.steps[0]

    @property
    def must_compute(self) -> bool:
        """The first step of a stage, which has nothing to go by, its transition, and the clip's last step."""
        return self.since == 0 or self.step == self.event.last


@runtime_checkable
class Accelerator(Protocol):
    """Used for one stage of one clip by one expert; keeps the state of each branch of guidance apart."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        """The image tokens ``[1, n, D]`` after all blocks, computed or reckoned from what is kept.

        Ranks that share the tokens must all decide alike: decide by ``trunk.total``, or by the step alone.
        """
        ...


@runtime_checkable
class Guided(Protocol):
    """An accelerator that may spare the whole branch without the prompt."""

    def negative(self, v: Tensor, now: Now, forward: Callable[[], Tensor]) -> Tensor:
        """The velocity without the prompt ``[1, C, T, H, W]``, given ``v`` with it: ``forward()``, or reckoned from ``v``."""
        ...


@runtime_checkable
class Choosing(Protocol):
    """An accelerator that has the transformers see other tokens than the grid's, in every forward anew."""

    work: float
    """Of a forward on the whole grid: the operations of one on the tokens chosen last."""

    def tokens(self, now: Now, grid: Grid) -> TokenSet | None:
        """Which, of ``grid`` along (time, height, width); None: all as they come. The same on all ranks."""
        ...

    def saw(self, x: Tensor, v: Tensor, now: Now) -> None:
        """Told after each step's forwards: the latent and the guided velocity, ``[1, C, T, H, W]`` each."""
        ...


class Everything:
    """The accelerator of a stage whose blocks are all computed."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        return trunk.compute()


class Boost:
    """The accelerators of a stage, attached to a model; what the transformers call in place of their blocks."""

    def __init__(self, makers: Sequence[Callable[[], Any]], event: StageEvent, geometry: ModelGeometry | None = None) -> None:
        """What is made has one role or more (``ROLES``); those of attention and tokens need ``geometry``.

        Raises ValueError for more than one of a role.
        """
        self.event = event
        self.branch = 0
        self.geometry = geometry
        self.attention: ByLayer | None = None
        self._makers = tuple(makers)
        self._parts = self._made()
        self._owner: Hashable = None
        self._told = event
        self._step = event.steps[0]
        self._level: NoiseLevel | None = None
        self._log = Log(geometry.num_layers if geometry else 1)
        self._seam: Seam | None = None
        self._saved = 0.0
        self._work: list[float] = []
        self._num_forwards = 0
        self._is_aside = False

    @property
    def is_on(self) -> bool:
        return bool(self._makers)

    @property
    def share(self) -> float:
        """Of the operations of all forwards of the stage so far: those that were executed. 1 without an accelerator.

        Sparse attention counts once it has been settled (:meth:`attended`).
        """
        return (sum(self._work) - self._saved) / self._num_forwards if self._num_forwards else 1.0

    def attach(self, seam: Seam | None) -> None:
        """Has a method that attends otherwise take the kernel's place at ``seam``, or gives it back."""
        if seam is None or self._part(Attending) is None:
            return
        if self.geometry is None:
            raise RuntimeError("attention needs to be told the model's geometry")
        self.attention = ByLayer(lambda: self._part(Attending), functools.partial(self._here, seam), seam.local)
        seam.instead, self._seam = self.attention, seam

    def let_go(self) -> None:
        """Of all that is kept: the stage is over, and what comes next needs the memory."""
        self._parts = ()
        self.attention = None

    def attended(self) -> tuple[Attended, ...]:
        """What attention kept, step by step, over heads and branches of all ranks of the slice, which call this alike."""
        if self._seam is None:
            return ()
        layout = self._seam.layout
        left_out, steps = self._log.settle(None if layout is None else layout.whole, self.event.steps)
        self._log.calls.clear()
        if self.geometry is not None:
            self._saved += left_out * attention_share(self.geometry, self.event.grid)
        return steps

    def at(self, step: int, level: NoiseLevel) -> None:
        """The next forwards are of this solver step."""
        self._step, self._level = step, level

    def tokens(self, owner: Hashable, given: TokenSet | None) -> TokenSet | None:
        """What this forward of ``owner`` is to see; called before anything of it is computed.

        Raises RuntimeError where a planner has chosen tokens already.
        """
        self._begin(owner)
        choosing = self._part(Choosing)
        if choosing is None:
            return given
        if given is not None:
            raise RuntimeError("a planner that mixes grids chooses the tokens itself")
        return cast("TokenSet | None", choosing.tokens(self._now(), self._tokens))

    def reflected(self, x: Tensor, onward: NoiseLevel, velocity: Velocity) -> Tensor | None:
        """What a method that reflects makes of ``x``, before its step; None: it stays. Its forwards count; no cache sees them."""
        reflecting = self._part(Reflecting)
        if reflecting is None:
            return None

        def aside(x: Tensor, level: NoiseLevel, guidance: float | None) -> Tensor:
            self._is_aside = True
            try:
                return velocity(x, level, guidance)
            finally:
                self._is_aside = False

        return cast("Tensor | None", reflecting.reflect(x, self._now(), onward, aside))

    def saw(self, x: Tensor, v: Tensor) -> None:
        """After each step's forwards."""
        if (choosing := self._part(Choosing)) is not None:
            choosing.saw(x, v, self._now())

    def __call__(self, trunk: Trunk) -> Tensor:
        """Raises RuntimeError for an answer of the wrong shape: a residual of another grid."""
        self._begin(trunk.owner)
        accelerator = self._part(Accelerator) or Everything()
        out: Tensor = accelerator.forward(self._numbered(trunk), self._now())
        choosing = self._part(Choosing)
        self._count(sum(trunk.work) * (1.0 if choosing is None else choosing.work))
        if out.shape != trunk.inputs[0].shape:
            raise RuntimeError(f"a cache answered {tuple(out.shape)} on a grid that needs {tuple(trunk.inputs[0].shape)}")
        return out

    def negative(self, v: Tensor, forward: Callable[[], Tensor]) -> Tensor:
        """The velocity without the prompt, right after ``v`` with it."""
        guided = self._part(Guided)
        if guided is None:
            return forward()
        before, self.branch = self._num_forwards, 1
        plain: Tensor = guided.negative(v, self._now(), forward)
        if self._num_forwards == before:
            self._count(0.0)
        return plain

    def _now(self) -> Now:
        if self._level is None:
            raise RuntimeError("a forward came before its step was told")
        return Now(self._step, self._level, self.branch, self._told)

    def _count(self, work: float) -> None:
        """A forward aside is no forward of the stage's, which are those that are shared out."""
        self._work.append(work)
        self._num_forwards += not self._is_aside

    def _made(self) -> tuple[Any, ...]:
        parts = tuple(make() for make in self._makers)
        for role, name in ROLES.items():
            if (num := sum(isinstance(part, role) for part in parts)) > 1:
                raise ValueError(f"{num} {name} were asked for: a stage has one at most")
        return parts

    def _part(self, role: type) -> Any:
        return None if self._is_aside else next((part for part in self._parts if isinstance(part, role)), None)

    def _begin(self, owner: Hashable) -> None:
        """A stage that changes its expert begins anew, at that step; what the other one left is let go."""
        if owner == self._owner or self._is_aside:
            return
        if self._owner is not None:
            self._parts = self._made()
            self._told = dataclasses.replace(self.event, steps=range(self._step, self.event.steps.stop))
        self._owner = owner

    def _numbered(self, trunk: Trunk) -> Trunk:
        """With attention told which layer it is in."""
        attention = self.attention
        if attention is None:
            return trunk

        def whole() -> Tensor:
            attention.go_to(0)
            return trunk.whole()

        def at(part: Callable[..., State]) -> Callable[..., State]:
            def run(index: int, *given: Any) -> State:
                attention.go_to(index)
                return part(index, *given)

            return run

        parts = at(trunk.block), at(trunk.attend), at(trunk.attend_on)
        return dataclasses.replace(trunk, whole=whole, block=parts[0], attend=parts[1], attend_on=parts[2])

    @property
    def _tokens(self) -> Grid:
        if self.geometry is None:
            raise RuntimeError("tokens need to be told the model's geometry")
        t, h, w = (size // patch for size, patch in zip(self.event.grid, self.geometry.patch, strict=True))
        return t, h, w

    def _here(self, seam: Seam, heads: range, num_image: int, layer: int) -> Here:
        return Here(self._now(), layer, self._log.num_layers, heads, self._tokens, num_image, self._log, seam.sequence)


ROLES: dict[type, str] = {Accelerator: "caches", Attending: "ways to attend", Choosing: "token sets", Reflecting: "reflections"}
