"""The worker every shell uses, in this process or behind Ray: items and boundaries in, boundaries and clips out."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from orchestrator.arms import Arm, LoraSpec
from orchestrator.types import Clip, Decision, Grid, Item
from parallel.groups import Group, Groups
from parallel.layout import Layout, layout
from parallel.seam import Exchange
from stages import decode, sketch
from stages.accelerators import makers
from stages.denoise import Boundary, OnStep, ignore, run_stages
from stages.image import require_unchanged
from stages.memory import out_of_memory
from stages.models.base import ALL_PARTS, Lora, Model, Request, load
from stages.planners import Planner, make_planner
from stages.restore import interpolator_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Team:
    """The slice of a pod that works on a clip: this process and its neighbours, all of which do the same at the same time."""

    groups: Groups
    exchange: Exchange
    start: int
    """In the pod."""
    width: int

    def layout(self, num_branches: int) -> Layout | None:
        return layout(self.groups, self.start, self.width, num_branches)

    @property
    def leads(self) -> bool:
        """Whether this process is the slice's first rank, which answers for it."""
        return self.groups.rank == self.start


class Keeper(Protocol):
    """Keeps boundaries where a later worker finds them; :class:`orchestrator.keeper.Keeper` is the real one."""

    def keep(self, item_key: str, boundary: Boundary, made_by: Mapping[str, str]) -> None: ...

    def settle(self) -> None:
        """Wait until what was given is kept."""
        ...


ModelKey = tuple[str, str | None, tuple[LoraSpec, ...]]
"""Arms with equal keys share one model in memory."""


class ClipWorker:
    """Holds the models of the arms on one device; loads ``parts`` of each when it is first asked for.

    The same item gives the same bytes on every worker of the same device kind and thread count; on GPUs also of the same
    attention kernel, and of memory that lets the VAE decode in equal pieces.
    """

    def __init__(
        self,
        arms: Mapping[str, Arm],
        parts: frozenset[str] = ALL_PARTS,
        device: str = "cpu",
        num_threads: int | None = None,
        attention: str = "auto",
        compile_blocks: bool | None = None,
        shards: Mapping[str, Group | None] | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        """``attention`` and ``compile_blocks`` as :func:`stages.models.base.load` takes them.

        ``shards`` are the ranks that an arm's transformer is spread over, by name; arms that share a model share the widest.
        ``keeper`` is given the boundary at the end of every stage.
        """
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.arms = dict(arms)
        self.parts = parts
        self.device = device
        self.keeper = keeper
        self.attention, self.compile_blocks = attention, compile_blocks
        self.shards = {name: group for name, group in (shards or {}).items() if group is not None}
        self._models: dict[ModelKey, Model] = {}
        self._planners: dict[str, Planner] = {}

    def warm_up(self) -> None:
        """Load every arm's model now, so that the first item does not pay for it, and what restores its frames.

        Raises ValueError for bad weights.
        """
        for arm in self.arms.values():
            model = self._model(arm)
            if "vae" in self.parts:
                interpolator_of(arm.planner_settings, model.device)

    def sketch(self, item: Item, on_step: OnStep = ignore) -> tuple[Decision, dict[str, float], Boundary]:
        """Text, image, stage 1 and the decision. Needs the parts "text" and "transformer".

        Raises ValueError for an image that is not the one the item was made with.
        """
        arm, began_s = self._arm(item), time.time()
        if item.image is not None:
            require_unchanged(item.image, item.image_sha256)
        request = Request(item.prompt, arm.shape, arm.guidance, arm.negative_prompt, arm.guidance_low, item.image)
        model, planner = self._model(arm), self._planner(arm)
        with _explained(model, arm, f"denoising {_size(planner.first().grid)}"):
            decision, timings_s, boundary = sketch.sketch(model, planner, request, item.seed, on_step)
        past = dataclasses.replace(boundary.past, timings_s=timings_s, device_s=_worked_s(timings_s), began_s=began_s)
        boundary = dataclasses.replace(boundary, past=past)
        self._keep(item, boundary)
        return decision, timings_s, boundary

    def refine(
        self,
        item: Item,
        boundary: Boundary,
        on_step: OnStep = ignore,
        *,
        stop: int | None = None,
        team: Team | None = None,
    ) -> tuple[Boundary, dict[str, float]]:
        """The stages after ``boundary``, until ``stop`` of the clip's are done; None: all. Needs the part "transformer".

        Every rank of ``team`` gives and gets the same. Raises GroupMismatch when they were not given the same, GroupError when
        another rank is lost; when it raises, the last boundary that it came to is kept.
        """
        arm = self._arm(item)
        if boundary.decision is None:
            raise RuntimeError(f"item {item.item_key}: the boundary to refine from carries no decision")
        stages, model = boundary.decision.action.stages, self._model(arm)
        stop = len(stages) if stop is None else stop
        num_branches = 1 if boundary.condition.negative is None else 2
        size = _size(tuple(boundary.x.shape[2:]))
        work = f"{item.item_key} after stage {boundary.stage} (step {boundary.step}, latent {size}) until {stop} are done"
        first, answers = boundary, team is None or team.leads

        def on_boundary(reached: Boundary, timings_s: Mapping[str, float]) -> None:
            if answers:
                self._keep(item, _after(first, reached, timings_s, team))

        with (
            self._settled_on_error(),
            _explained(model, arm, f"denoising up to {_size(stages[stop - 1].grid)}"),
            _shared(model, team, num_branches, work),
        ):
            boundary, timings_s = run_stages(model, self._planner(arm), first, stop, on_step, on_boundary)
        return _after(first, boundary, timings_s, team), _with_refined(timings_s)

    def settle(self) -> None:
        """Wait until the boundary that is being kept is."""
        if self.keeper is not None:
            self.keeper.settle()

    def _keep(self, item: Item, boundary: Boundary) -> None:
        if self.keeper is not None:
            made_by = {"torch": torch.__version__, "device": self.device, "threads": str(torch.get_num_threads())}
            self.keeper.keep(item.item_key, boundary, made_by)

    @contextlib.contextmanager
    def _settled_on_error(self) -> Iterator[None]:
        """What follows a failure looks for what is kept."""
        try:
            yield
        except Exception:
            self.settle()
            raise

    def decode(self, item: Item, boundary: Boundary, path: Path, team: Team | None = None) -> Clip:
        """Frames and the mp4 at ``path``; a team's other ranks :meth:`help_decode`. Needs the part "vae"."""
        arm = self._arm(item)
        with self._decoding(item, arm, team) as model:
            return decode.decode(model, boundary, Path(path), arm.fps, interpolator_of(arm.planner_settings, model.device))

    def help_decode(self, item: Item, boundary: Boundary, team: Team) -> None:
        """What a rank but the team's first does of :meth:`decode`: it has no frames to write."""
        with self._decoding(item, self._arm(item), team) as model:
            for _ in model.decode(boundary.x):
                pass

    @contextlib.contextmanager
    def _decoding(self, item: Item, arm: Arm, team: Team | None) -> Iterator[Model]:
        model = self._model(arm)
        with _explained(model, arm, "decoding"), _shared(model, team, 1, f"{item.item_key} decoding"):
            yield model

    def _arm(self, item: Item) -> Arm:
        if item.arm not in self.arms:
            raise ValueError(f"item {item.item_key} is of arm {item.arm!r}; this worker has {', '.join(self.arms)}")
        return self.arms[item.arm]

    def _model(self, arm: Arm) -> Model:
        key = _key(arm)
        if key not in self._models:
            parts = self._parts(key)
            log.info("loading %s of %s on %s", ", ".join(sorted(parts)), arm.model, self.device)
            lora = tuple(Lora(**spec.model_dump()) for spec in arm.lora)
            with _explained(None, arm, "loading"):
                loaded = load(
                    *(arm.model, arm.weights, self.device, parts, lora),
                    *(self.compile_blocks, self.attention, self._shard(key), self._sketches_only),
                )
            self._models[key] = loaded
        return self._models[key]

    @property
    def _sketches_only(self) -> bool:
        """Sketches end at high noise, where the first of two experts works."""
        return "text" in self.parts and "vae" not in self.parts

    def _shard(self, key: ModelKey) -> Group | None:
        groups = [self.shards[arm.name] for arm in self.arms.values() if _key(arm) == key and arm.name in self.shards]
        return max(groups, key=lambda group: group.size, default=None)

    def _parts(self, key: ModelKey) -> frozenset[str]:
        """This worker's parts, with what else the phases that it runs need for any arm of this model."""
        arms = [arm for arm in self.arms.values() if _key(arm) == key]
        parts = self.parts
        if "text" in self.parts:
            parts = parts.union(*(arm.sketch_parts for arm in arms))
        if "transformer" in self.parts and "text" not in self.parts:  # which brings that encoder anyway
            parts = parts.union(*(arm.refine_parts for arm in arms))
        return parts

    def _planner(self, arm: Arm) -> Planner:
        if arm.name not in self._planners:
            geometry = arm.under_its_shift(self._model(arm).geometry)
            asked = arm.target if arm.target and arm.planner == "dvg" else arm.budget
            self._planners[arm.name] = make_planner(
                *(arm.planner, geometry, arm.shape, arm.num_steps, asked, arm.dvg, arm.solver, arm.cost),
                *(arm.planner_settings, makers(arm, geometry)),
            )
        return self._planners[arm.name]


@contextlib.contextmanager
def _shared(model: Model, team: Team | None, num_branches: int, work: str) -> Iterator[None]:
    """The model's work is the whole team's, once its ranks have found that they are about to do the same."""
    layout = None if team is None else team.layout(num_branches)
    if team is None or layout is None:
        yield
        return
    layout.whole.agree(work)
    model.attach(layout, team.exchange)
    try:
        yield
    finally:
        model.attach(None, None)


@contextlib.contextmanager
def _explained(model: Model | None, arm: Arm, doing: str) -> Iterator[None]:
    """A lack of GPU memory becomes a RuntimeError that says what was needed and what helps."""
    try:
        yield
    except torch.OutOfMemoryError as problem:
        raise out_of_memory(problem, model, arm, doing) from problem


def _after(first: Boundary, boundary: Boundary, timings_s: Mapping[str, float], team: Team | None) -> Boundary:
    """``boundary`` with what led to it: the past of ``first``, and ``timings_s`` on the ranks of ``team``."""
    before, width = first.past, team.width if team else 1
    spent_s = {name: before.timings_s.get(name, 0.0) + seconds for name, seconds in _with_refined(timings_s).items()}
    widths = before.widths + (width,) * (boundary.stage - first.stage)
    timings = {"timings_s": {**before.timings_s, **spent_s}, "began_s": before.began_s}
    device_s = before.device_s + width * sum(timings_s.values())
    past = dataclasses.replace(boundary.past, widths=widths, device_s=device_s, **timings)
    return dataclasses.replace(boundary, past=past)


def _with_refined(timings_s: Mapping[str, float]) -> dict[str, float]:
    return {"refine_s": sum(seconds for name, seconds in timings_s.items() if name.startswith("stage")), **timings_s}


def _worked_s(timings_s: Mapping[str, float]) -> float:
    """Of a sketch, whose seconds hold those of its stage."""
    return sum(timings_s.get(name, 0.0) for name in ("text_s", "sketch_s", "compile_s"))


def _size(grid: Grid | tuple[int, ...]) -> str:
    return "x".join(map(str, grid))


def _key(arm: Arm) -> ModelKey:
    return arm.model, arm.weights, arm.lora
