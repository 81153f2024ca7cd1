"""Methods that published comparisons name and this version does not have: what is said to a spec that asks for one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pydantic import ValidationError
from pydantic_core import PydanticCustomError

from orchestrator.arms import PlannerName
from orchestrator.mistakes import unknown

Kind = Literal["planner", "accelerator"]
NOT_AVAILABLE = "method_not_available"
"""What the error of an absent method is called."""


@dataclass(frozen=True)
class Method:
    """A planner decides which grid a step runs on; an accelerator makes the steps on a grid cheaper."""

    kind: Kind
    source: str


ABSENT: Mapping[str, Method] = {
    "vgdfr": Method("planner", "VGDFR, arXiv 2504.12259"),
    "jenga-prores": Method("planner", "progressive resolution of Jenga, arXiv 2505.16864"),
    "bottleneck": Method("planner", "Bottleneck Sampling, arXiv 2503.18940"),
    "fresco": Method("planner", "Fresco, arXiv 2601.07462"),
    "spargeattn": Method("accelerator", "SpargeAttn, arXiv 2502.18137"),
    "lipar": Method("accelerator", "LIPAR, arXiv 2603.05811"),
    "tome": Method("accelerator", "token merging"),
    "teacache": Method("accelerator", "TeaCache, arXiv 2411.19108"),
    "adacache": Method("accelerator", "AdaCache, arXiv 2411.02397"),
    "taylorseer": Method("accelerator", "TaylorSeer, arXiv 2503.06923"),
}
"""By the name that a spec writes. A method that the project learns leaves this table."""
AVAILABLE: Mapping[Kind, tuple[str, ...]] = {"planner": get_args(PlannerName), "accelerator": ()}


def refuse_absent(name: Any) -> Any:
    """For a field that names a method. Raises PydanticCustomError of type ``NOT_AVAILABLE`` for one of ``ABSENT``."""
    if isinstance(name, str) and (method := ABSENT.get(name)):
        told = {"name": name, "source": method.source, "choices": choices(method.kind)}
        raise PydanticCustomError(NOT_AVAILABLE, "{name} ({source}) is not available in this version; {choices}", told)
    return name


def accelerator(name: str) -> str:
    """Raises ValueError with the choices."""
    if name not in AVAILABLE["accelerator"]:
        raise ValueError(unknown("accelerator", name, [*AVAILABLE["accelerator"], "none in this version"]))
    return name


def choices(kind: Kind) -> str:
    """``planners: full, dvg, ...``."""
    return f"{kind}s: {', '.join(AVAILABLE[kind]) or 'none'}"


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
