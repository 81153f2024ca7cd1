"""Exchanges by name: what each can share, what it needs here, and how it is made. Deciding imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from parallel.groups import Groups
    from parallel.seam import Exchange


@dataclass(frozen=True)
class _Backend:
    modules: tuple[str, ...] = ()
    """That must be installed."""
    needs_gpu: bool = False
    needs_equal_shares: bool = False
    """Every rank must have the same number of tokens."""
    ring: int = 1
    """From 4 ranks on, a group falls into this many parts: heads are shared within each, keys and values go round the parts."""


AUTO = "auto"
_BACKENDS = {
    AUTO: _Backend(),
    "native": _Backend(),
    "peer": _Backend(needs_gpu=True),
    "ulysses": _Backend(modules=("deepspeed",)),
    "usp": _Backend(modules=("xfuser", "yunchang", "triton"), needs_gpu=True, needs_equal_shares=True, ring=2),
}


def names() -> tuple[str, ...]:
    """What ``backend`` may be. The first is the default."""
    return tuple(_BACKENDS)


def settled(name: str, device_type: str) -> str:
    """What ``auto`` stands for on such a device; any other name is itself. Raises ValueError for an unknown name."""
    _named(name)
    if name != AUTO:
        return name
    return "peer" if device_type == "cuda" else "native"


def make(name: str, groups: Groups) -> Exchange:
    """The exchange for all slices of a pod; all its ranks call this with the same name, as they may have to meet for it.

    ``auto`` is the fastest that passes a trial on this pod.
    Raises ValueError for a name that is not known or that cannot run here.
    """
    if (problem := missing(name)) is not None:
        raise ValueError(f"backend {name!r} cannot run here: {problem}")
    if name == AUTO:
        from parallel.trial import fastest

        return fastest(groups)
    if name == "peer":
        from parallel.peer import Peer

        return Peer()
    if name == "ulysses":
        from parallel.ulysses import Ulysses

        return Ulysses()
    if name == "usp":
        from parallel.usp import Usp

        return Usp(groups)
    from parallel.native import Native

    return Native()


def mistakes(name: str, *, heads: int, num_tokens: Sequence[int], degree: int, device_type: str) -> list[str]:
    """Why ``degree`` ranks cannot share a model of so many attention heads over these token counts; empty if they can.

    ``num_tokens`` are sums of image and text tokens where these attend together. ``degree`` counts the ranks of one forward:
    with guidance split, half the slice. Raises ValueError for an unknown name.
    """
    name = settled(name, device_type)
    backend = _named(name)
    if degree == 1:
        return []
    found = []
    if backend.needs_gpu and device_type != "cuda":
        found.append(f"{name} needs GPUs; on {device_type} the choices are {_others()}")
    if degree < 1 or degree & (degree - 1):
        found.append(f"a degree of {degree} is not a power of 2")
    elif heads % (width := head_ranks(name, heads, degree)):
        found.append(f"{heads} heads cannot be shared evenly by {width} ranks: {heads} / {width} = {heads / width:g}")
    uneven = [count for count in num_tokens if count % degree] if backend.needs_equal_shares else []
    found += [
        f"{name} needs equal shares: {count:,} tokens / {degree} ranks = {count / degree:,.2f}; {_others()} take any number"
        for count in uneven
    ]
    return found


def head_ranks(name: str, heads: int, degree: int) -> int:
    """Ranks of ``degree`` that share the heads; the others, ``degree / head_ranks``, form a ring.

    ``usp`` lengthens its ring where the heads do not divide. Raises ValueError for an unknown name.
    """
    backend = _named(name)
    width = degree // backend.ring if degree >= 2 * backend.ring else degree
    while backend.ring > 1 and width > 1 and heads % width:
        width //= 2
    return width


def needs_equal_shares(name: str) -> bool:
    """Whether every rank must have the same number of tokens. Raises ValueError for an unknown name."""
    return _named(name).needs_equal_shares


def missing(name: str) -> str | None:
    """Why a backend cannot run on this machine; None if it can. Raises ValueError for an unknown name."""
    backend = _named(name)
    absent = [module for module in backend.modules if importlib.util.find_spec(module) is None]
    if absent:
        return f"{' and '.join(absent)} {'is' if len(absent) == 1 else 'are'} not installed"
    if backend.needs_gpu and not _has_gpu():
        return "it needs a GPU"
    return None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _named(name: str) -> _Backend:
    if name not in _BACKENDS:
        raise ValueError(f"backend {name!r} is not known. Choices: {', '.join(_BACKENDS)}")
    return _BACKENDS[name]


def _others() -> str:
    return " and ".join(name for name, backend in _BACKENDS.items() if not backend.needs_gpu and name != AUTO)
