"""Methods by name: planners, which decide what grid a step runs on, and accelerators, which make the steps on a grid cheaper.

A method is one file that says all about itself (``METHODS``, by name), and one line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticCustomError

from orchestrator.dvg_config import DvgConfig
from orchestrator.mistakes import from_validation, unknown
from orchestrator.model_geometry import ModelGeometry, SolverName
from orchestrator.types import Action, VideoShape

Kind = Literal["planner", "accelerator"]
Follows = Literal["release", "paper", "reconstructed"]
"""What the code here goes by: a published implementation, a paper that gives all of it, or what was pieced together."""
Lever = Literal["grid", "steps", "cache", "attention", "tokens", "reflection"]
"""What a method works on. Two of the same lever exclude each other."""
APART: Mapping[frozenset[Lever], str] = {
    frozenset[Lever]({"tokens", "cache"}): "a cache keeps what it found for all tokens, and these change from step to step",
    frozenset[Lever]({"tokens", "attention"}): "sparse attention needs all tokens of the grid where they belong",
}
"""Levers that cannot be pulled at once, and why."""
NOT_AVAILABLE = "method_not_available"
"""What the error of an absent method is called."""

PLANNERS: Mapping[str, str] = {
    "full": "stages.planners.full",
    "dvg": "stages.planners.dvg",
    "temporal-only": "stages.planners.uniform",
    "spatial-only": "stages.planners.uniform",
    "fixed": "stages.planners.uniform",
    "vgdfr": "stages.planners.vgdfr",
    "jenga-prores": "stages.planners.jenga",
    "bottleneck": "stages.planners.bottleneck",
    "changing-resolution": "stages.planners.changing",
    "spectral": "stages.planners.spectral",
    "fewer-steps": "stages.planners.fewer",
    "fresco": "stages.planners.fresco",
    "dualparal": "stages.planners.dualparal",
}
"""Where each planner lives, by the name that a spec writes."""
BUDGETED = ("dvg", "temporal-only", "spatial-only")
"""Planners that spend a budget; the others spend what they spend."""
WITHOUT_SETTINGS = ("full", *BUDGETED, "fixed")
"""Planners with nothing to set, fill in or refuse, whose schedules ``orchestrator.demands`` knows: a spec of these alone is read
without loading torch."""
ACCELERATORS: Mapping[str, str] = {
    "teacache": "stages.accelerators.teacache",
    "adacache": "stages.accelerators.adacache",
    "magcache": "stages.accelerators.magcache",
    "taylorseer": "stages.accelerators.taylorseer",
    "delta-dit": "stages.accelerators.delta_dit",
    "first-block": "stages.accelerators.first_block",
    "dbcache": "stages.accelerators.first_block",
    "pab": "stages.accelerators.pab",
    "fastercache": "stages.accelerators.fastercache",
    "attencarve": "stages.accelerators.attencarve",
    "draft-attention": "stages.accelerators.draft_attention",
    "adaspa": "stages.accelerators.adaspa",
    "lipar": "stages.accelerators.lipar",
    "ras": "stages.accelerators.ras",
    "spargeattn": "stages.accelerators.spargeattn",
    "svg": "stages.accelerators.svg",
    "svg2": "stages.accelerators.svg2",
    "freelong": "stages.accelerators.freelong",
    "re-ttention": "stages.accelerators.re_ttention",
    "sparse-vdit": "stages.accelerators.sparse_vdit",
    "w2sd": "stages.accelerators.w2sd",
    "tome": "stages.accelerators.tome",
}
"""Where each accelerator lives."""


class Settings(BaseModel):
    """What a method lets its user set; every field documented."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True)
class Request:
    """What a method is asked for, known before any device is touched."""

    geometry: ModelGeometry
    shape: VideoShape
    num_steps: int
    guidance: float
    planner: str
    config: DvgConfig
    solver: SolverName | None = None
    revision: str = ""
    """Of the weights; empty where it is not known."""


def nothing_wrong(settings: Any, request: Request) -> list[str]:
    """Of a method that serves every model, grid and width."""
    return []


def as_given(settings: Any, request: Request) -> Any:
    """Of a method whose settings hold for every model."""
    return settings


def no_actions(settings: Any, request: Request) -> tuple[Action, ...]:
    """Of an accelerator, and of the planners whose schedules ``orchestrator.demands`` knows itself."""
    return ()


def nothing_needed(settings: Any, request: Request) -> str:
    """Of a method that does not mind which rank does which branch of guidance."""
    return ""


def residual_kept(settings: Any, geometry: ModelGeometry) -> float:
    """Of a cache that keeps what all blocks add, and what it compares."""
    return 2.0


FIELD_KNOBS = ("noise_seed", "noise_hash", "noise_field")
"""Of the fixed noise field, which ``initial_noise: coordinate`` starts from."""
ENGINE_KNOBS = ("image_condition", "initial_noise", "extrapolation", "meanflow_clean")
"""Knobs of DVG that the engine heeds under every planner that changes its grid."""


@dataclass(frozen=True)
class Method:
    """All that is known of a method before it runs.

    ``make`` of a planner is called ``(settings, task, budget)`` and gives a planner; of an accelerator ``(settings, geometry)``,
    and gives a new one for one stage.
    """

    name: str
    kind: Kind
    lever: Lever
    source: str
    """Name and paper, for people."""
    summary: str
    """One line: what it does."""
    follows: Follows
    make: Callable[..., Any]
    settings: type[Settings] = Settings
    resolve: Callable[[Any, Request], Any] = as_given
    """Settings with what the model decides filled in. Raises ValueError, naming what serves instead."""
    mistakes: Callable[[Any, Request], list[str]] = nothing_wrong
    """Why it cannot serve a request, each with the alternatives."""
    excludes: Mapping[str, str] = field(default_factory=dict)
    """Other methods that it cannot be combined with, and why, beside those of its own lever."""
    actions: Callable[[Any, Request], tuple[Action, ...]] = no_actions
    """Of a planner: every schedule that a clip may come to, by arithmetic alone."""
    without: Mapping[Lever, str] = field(default_factory=dict)
    """Levers none of whose methods it can be combined with, and why."""
    knobs: tuple[str, ...] = ENGINE_KNOBS
    """Of a planner with settings of its own: the knobs of ``dvg:`` that count under it; the others are refused."""
    text_only: str = ""
    """Of a planner: why it takes no first frame; empty if it does."""
    needs: str = ""
    """Weights, packages or calibrations, in words."""
    whole_forwards: bool | Callable[[Any], bool] = True
    """Of an accelerator: it leaves out whole forwards only, so weights may be spread over ranks. It may depend on settings."""
    together: Callable[[Any, Request], str] = nothing_needed
    """Of an accelerator: why ranks must not split guidance between them; empty if they may."""
    kept_tensors: Callable[[Any, ModelGeometry], float] = residual_kept
    """Of an accelerator: tensors of a token's width that it keeps of each branch of guidance, for every token of the grid."""

    def leaves_whole_forwards(self, settings: Any) -> bool:
        return self.whole_forwards if isinstance(self.whole_forwards, bool) else self.whole_forwards(settings)


@dataclass(frozen=True)
class Absent:
    """A method that published comparisons name and this version does not have."""

    kind: Kind
    source: str


ABSENT: Mapping[str, Absent] = {
    "cache-dit": Absent("accelerator", "cache-dit 1.5 wraps the blocks that diffusers runs; dbcache is its rule on ours"),
}
"""By the name that a spec writes. A method that the project learns leaves this table."""


def available(kind: Kind) -> tuple[str, ...]:
    return tuple(PLANNERS if kind == "planner" else ACCELERATORS)


def find(name: str, kind: Kind) -> Method:
    """Raises ValueError with the choices for an unknown name."""
    module = (PLANNERS if kind == "planner" else ACCELERATORS).get(name)
    if module is None:
        raise ValueError(unknown(kind, name, [*available(kind)] or ["none in this version"]))
    methods: Mapping[str, Method] = importlib.import_module(module).METHODS
    return methods[name]


def read_settings(method: Method, given: Mapping[str, Any]) -> Any:
    """Raises ValueError with every mistake."""
    try:
        return method.settings.model_validate(dict(given))
    except ValidationError as error:
        raise ValueError("; ".join(from_validation(error, method.settings, method.name))) from error


def named(value: Any) -> tuple[str, dict[str, Any]]:
    """``teacache`` or ``{teacache: {threshold: 0.1}}``: the name and the settings. Raises ValueError for other forms."""
    if isinstance(value, str):
        return value, {}
    if isinstance(value, Mapping) and len(value) == 1:
        ((name, settings),) = value.items()
        if isinstance(name, str) and (settings is None or isinstance(settings, Mapping)):
            return name, dict(settings or {})
    raise ValueError(f"{value!r} is no method: write its name, or {{name: {{setting: value}}}}")


def refuse_absent(value: Any) -> Any:
    """For a field that names a method. Raises PydanticCustomError of type ``NOT_AVAILABLE`` for one of ``ABSENT``."""
    name = next(iter(value), None) if isinstance(value, Mapping) and len(value) == 1 else value
    if isinstance(name, str) and (method := ABSENT.get(name)):
        told = {"name": name, "source": method.source, "choices": choices(method.kind)}
        raise PydanticCustomError(NOT_AVAILABLE, "{name} ({source}) is not available in this version; {choices}", told)
    return value


def checked(kind: Kind) -> Callable[[Any], Any]:
    """For a field: a known method of this kind, in either form. The validator raises ValueError with the choices."""

    def check(value: Any) -> Any:
        name, _ = named(value)
        if name not in available(kind):
            raise ValueError(unknown(kind, name, [*available(kind)] or ["none in this version"]))
        return value

    return check


def choices(kind: Kind) -> str:
    """``planners: full, dvg, ...``."""
    return f"{kind}s: {', '.join(available(kind)) or 'none'}"


def absent_told(error: ValidationError, arms: Iterable[str]) -> list[str]:
    """One line for all absent methods that a spec asks for, and which ``arms`` need none; nothing if there is none."""
    asked = list(_asked(error))
    if not asked:
        return []
    names = ", ".join(_who(name, asked) for name in dict.fromkeys(name for _, name in asked))
    line = f"not available in this version: {names}; what is: {choices('planner')}; {choices('accelerator')}"
    without = [arm for arm in arms if arm not in {where for where, _ in asked}]
    everywhere = any(where in ("planner", "accelerators") for where, _ in asked)
    return [line if everywhere or not without else f"{line}. The other arms can be had alone: only={','.join(without)}"]


def _who(name: str, asked: Iterable[tuple[str, str]]) -> str:
    """``teacache (TeaCache, arXiv 2411.19108; for cached, cached-fast)``."""
    return f"{name} ({ABSENT[name].source}; for {', '.join(where for where, what in asked if what == name)})"


def _asked(error: ValidationError) -> Iterator[tuple[str, str]]:
    """(Arm, or key of the whole spec; method)."""
    for detail in error.errors():
        if detail["type"] == NOT_AVAILABLE:
            path = [str(part) for part in detail["loc"]]
            yield path[1] if path[0] == "arms" else path[0], detail["ctx"]["name"]
