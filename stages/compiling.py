"""Regional compilation: one compiled program per kind of repeated block, for all layers and all grids.

What differs between layers are weights, which are arguments; what differs between grids is the number of tokens, which is
marked as varying before the first call. Compiled kernels are kept on disk, so only the first process on a machine waits long.
"""

from __future__ import annotations

import functools
import inspect
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

Fn = TypeVar("Fn", bound=Callable[..., Any])

TOKEN_DIMS: Mapping[str, int] = {"h": 1, "c": 1, "found": 1, "found_c": 1, "rope": 0, "first": 0, "is_first": 0}
"""By the name of a block's argument: the dimension of it, or of each tensor in it, that counts tokens."""

_spent_s = 0.0


def maybe_compile(fn: Fn, enabled: bool, token_dims: Mapping[str, int] = TOKEN_DIMS, backend: str = "inductor") -> Fn:
    """``fn`` itself, or compiled as one graph for any number of tokens.

    ``fn`` is a pure function of tensors, perhaps a partial one whose keywords are constants; call it with positional
    arguments. Weights among them must be ``nn.Parameter``, whose sizes are constants to the compiler.
    """
    if not enabled:
        return fn
    _keep_on_disk()
    plain, constants = (fn.func, fn.keywords) if isinstance(fn, functools.partial) else (fn, {})
    compiled = torch.compile(plain, backend=backend, fullgraph=True)
    parameters = list(inspect.signature(plain).parameters)
    marks = [(parameters.index(name), dim) for name, dim in token_dims.items() if name in parameters]

    def run(*args: Any) -> Any:
        for place, dim in marks:
            for tensor in _tensors(args[place]):
                torch._dynamo.maybe_mark_dynamic(tensor, dim)
        return _timed(compiled, args, constants)

    return cast(Fn, run)


def open_ended(fn: Callable[..., Any], most_variants: int) -> Callable[..., Any]:
    """``fn`` compiled as one graph for all sizes of its tensors, and for each value of whole numbers that it is called with.

    Left to itself torch takes a number for another one's: 2.11 ran kernels of one size of block on blocks of another. Sizes that
    happen to be equal at first are not taken for one. Beyond torch's usual 8 variants it would go on uncompiled; here there may
    be ``most_variants``, and one more raises FailOnRecompileLimitHit.
    """
    from torch.fx.experimental import _config

    shapes: Any = _config
    _keep_on_disk()
    compiled = torch.compile(fn, dynamic=True, fullgraph=True)

    def run(*args: Any, **options: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=most_variants, specialize_int=True), shapes.patch(use_duck_shape=False):
            return _timed(compiled, args, options)

    return run


def compile_seconds() -> float:
    """Seconds this process has spent in calls that compiled: warm-up, to be told apart from work."""
    return _spent_s


def num_graphs() -> int:
    """Graphs compiled by this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _timed(compiled: Callable[..., Any], args: tuple[Any, ...], constants: Mapping[str, Any]) -> Any:
    global _spent_s
    before, started_s = num_graphs(), time.perf_counter()
    out = compiled(*args, **constants)
    if num_graphs() != before:
        _spent_s += time.perf_counter() - started_s
    return out


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)


def _keep_on_disk() -> None:
    """Inductor's and Triton's caches in the user's cache, not in a temporary folder, unless the environment names one."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dvg" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
