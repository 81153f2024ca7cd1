"""Attention kernels by name, and the one that a short measurement finds fastest on this GPU.

Names do not tell: on an H200 torch's flash kernel is FlashAttention 2, 1.7 times slower than cuDNN's. A measurement takes a
second, once per GPU model and shape of head: its result is kept in a small file.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from parallel.seam import Attention

log = logging.getLogger(__name__)

AUTO = "auto"
LENGTHS = (1_024, 4_096, 16_384)
"""Tokens of the measurement: a small grid, where launches cost, to one bound by arithmetic alone."""
NUM_ROUNDS = 5
FEW = 256
"""Tokens enough to make a kernel compile itself."""

Rates = dict[str, dict[str, float]]
"""TFLOP/s by kernel, by number of tokens (as text, as in the file)."""


def _torch_kernel(backend: SDPBackend) -> Attention:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def _tokens_first(function: Callable[..., object]) -> Attention:
    """Tri Dao's interface, ``[B, tokens, heads, head_dim]``; newer versions return the row sums too."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        found = function(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        out: Tensor = found[0] if isinstance(found, tuple) else found  # type: ignore[assignment]
        return out.transpose(1, 2)

    return attend


def _flash3() -> Attention:
    return _tokens_first(importlib.import_module("flash_attn_interface").flash_attn_func)


def _flash4() -> Attention:
    return _tokens_first(importlib.import_module("flash_attn.cute").flash_attn_func)


KERNELS: dict[str, tuple[str, Callable[[], Attention]]] = {
    "cudnn": ("torch", lambda: _torch_kernel(SDPBackend.CUDNN_ATTENTION)),
    "flash": ("torch", lambda: _torch_kernel(SDPBackend.FLASH_ATTENTION)),
    "flash3": ("flash_attn_interface", _flash3),
    "flash4": ("flash_attn.cute", _flash4),
    "efficient": ("torch", lambda: _torch_kernel(SDPBackend.EFFICIENT_ATTENTION)),
    "math": ("torch", lambda: _torch_kernel(SDPBackend.MATH)),
}
"""The module that each kernel needs, and the kernel. ``flash`` is torch's own, FlashAttention 2."""
TOO_SLOW = frozenset({"efficient", "math"})
"""Never the fastest, and ``math`` would not fit: not measured."""


def names() -> tuple[str, ...]:
    """What ``--attention`` takes."""
    return AUTO, *KERNELS


def installed() -> tuple[str, ...]:
    """The kernels whose module is there. Some still refuse a GPU they were not made for."""
    return tuple(name for name, (module, _) in KERNELS.items() if _importable(module))


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the parent package of a dotted name
        return False


def usable() -> tuple[str, ...]:
    """The installed kernels whose module really imports; a broken installation is told in the log and left out."""
    return tuple(name for name in installed() if _imports(name))


def _imports(name: str) -> bool:
    try:
        KERNELS[name][1]()
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        log.warning("attention kernel %s is installed but cannot be imported, so it is not used: %s", name, error)
        return False
    return True


def choose(name: str, device: torch.device, heads: int, head_dim: int, dtype: torch.dtype = torch.bfloat16) -> Attention:
    """The kernel ``name``, or for ``auto`` the fastest one for these heads, measured at most once per GPU model.

    What a block calls is this, or a seam around it, :func:`in_blocks`. On a CPU it is torch's own choice.
    Raises ValueError for a kernel that is not known or not installed here.
    """
    if name not in names():
        raise ValueError(f"attention {name!r} is not known. Choices: {', '.join(names())}")
    if name != AUTO:
        return _on_request(name, device)
    if device.type != "cuda" or dtype == torch.float32:
        return F.scaled_dot_product_attention
    sample = torch.empty(1, FEW, heads, head_dim, device=device, dtype=dtype)
    return _by_length(fastest(device, heads, head_dim, dtype), sample)


def _on_request(name: str, device: torch.device) -> Attention:
    module, make = KERNELS[name]
    if name not in installed():
        raise ValueError(f"attention {name!r} needs the module {module}, which is not installed. Here: {', '.join(installed())}")
    if device.type != "cuda" and name != "math":
        raise ValueError(f"attention {name!r} needs a GPU; on {device.type} the choices are auto and math")
    return make()


def _by_length(chosen: Mapping[int, str], sample: Tensor) -> Attention:
    """The kernel that is best for the nearest of the lengths measured, by the number of keys.

    Each runs once on ``sample [B, tokens, heads, head_dim]``: those that compile themselves do it now, not within a clip.
    """
    made = {name: KERNELS[name][1]() for name in set(chosen.values())}
    for kernel in made.values():
        kernel(*[sample.transpose(1, 2)] * 3)
    kernels = {length: made[name] for length, name in chosen.items()}

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return kernels[nearest_length(k.shape[2], kernels)](q, k, v)

    return attend


def nearest_length(num_keys: int, lengths: Iterable[int]) -> int:
    """The one with the ratio nearest 1 to ``num_keys``."""
    return min(lengths, key=lambda length: max(length / num_keys, num_keys / length))


def fastest(device: torch.device, heads: int, head_dim: int, dtype: torch.dtype) -> dict[int, str]:
    """The name of the fastest kernel for each length, from the file of earlier measurements or measured now.

    A kernel that cannot be imported is not in the key: once repaired, it is measured.
    """
    found = ", ".join(usable())
    key = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, {heads} x {head_dim} {str(dtype)[6:]}, {found}"
    known = measurements()
    if key not in known:
        known[key] = {str(length): measure(length, device, heads, head_dim, dtype) for length in LENGTHS}
        _keep(known)
    return {int(length): best(rates) for length, rates in known[key].items()}


def best(rates: Mapping[str, float]) -> str:
    """The kernel with the highest rate; ties go to the first. Raises RuntimeError if none ran."""
    if not rates:
        raise RuntimeError("no attention kernel runs on this GPU: name one with --attention to see its error")
    return max(rates, key=lambda name: rates[name])


def measure(length: int, device: torch.device, heads: int, head_dim: int, dtype: torch.dtype) -> dict[str, float]:
    """TFLOP/s of each installed kernel on ``length`` tokens, best of ``NUM_ROUNDS``; those that fail are left out."""
    own = torch.Generator(device).manual_seed(0)  # the process's goes on alike, whether this is measured or known
    shape = 1, length, heads, head_dim
    q, k, v = (torch.randn(shape, device=device, dtype=dtype, generator=own).transpose(1, 2) for _ in range(3))
    flops = 4.0 * length**2 * heads * head_dim
    rates = {}
    for name in installed():
        if name not in TOO_SLOW and (seconds := _seconds(KERNELS[name][1], q, k, v)):
            rates[name] = round(flops / seconds / 1e12, 1)
    return rates


def _seconds(make: Callable[[], Attention], q: Tensor, k: Tensor, v: Tensor) -> float | None:
    """Best of a few calls; None for a kernel that refuses these tensors or this GPU."""
    try:
        kernel = make()
        kernel(q, k, v)
    except (RuntimeError, ImportError, NotImplementedError, AssertionError, ValueError, TypeError):
        return None
    return min(_timed(kernel, q, k, v) for _ in range(NUM_ROUNDS))


def _timed(kernel: Attention, q: Tensor, k: Tensor, v: Tensor) -> float:
    torch.cuda.synchronize(q.device)
    started_s = time.perf_counter()
    kernel(q, k, v)
    torch.cuda.synchronize(q.device)
    return time.perf_counter() - started_s


def cache_file() -> Path:
    """Where measurements are kept, in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dvg" / "attention.json"


def measurements() -> dict[str, Rates]:
    """By GPU model, torch version, heads and the kernels that import; empty before the first measurement."""
    try:
        known: dict[str, Rates] = json.loads(cache_file().read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return known


def _keep(known: Mapping[str, Rates]) -> None:
    """Written whole, then renamed: workers may do so at once."""
    path = cache_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}")
    partial.write_text(json.dumps(known, indent=2) + "\n")
    partial.replace(path)


_OPAQUE: list[Attention] = []


@torch.library.custom_op("dvg::attend", mutates_args=())
def _attend(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    out = _OPAQUE[kernel](q, k, v)
    return out.transpose(1, 2).contiguous().transpose(1, 2)


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, kernel: int) -> Tensor:
    return torch.empty_like(q.transpose(1, 2), memory_format=torch.contiguous_format).transpose(1, 2)


def in_blocks(attention: Attention, device: torch.device, compiled: bool) -> Attention:
    """A kernel, or the seam around it, as blocks call it: :func:`opaque` on a GPU or where they are compiled."""
    return opaque(attention) if compiled or device.type == "cuda" else attention


@functools.cache
def opaque(kernel: Attention) -> Attention:
    """``kernel`` as one node that a compiler does not look into, its output laid out ``[B, tokens, heads, head_dim]``.

    So any kernel, and a group's all-to-all around it, works inside a block that is compiled whole; what a seam is attached to
    is no part of the compiled program. The same for the same kernel, so that transformers may share their blocks.
    """
    index = len(_OPAQUE)
    _OPAQUE.append(kernel)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = _attend(q, k, v, index)
        return out

    return attend
