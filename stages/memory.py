"""GPU memory: what stays there, what comes for its turn, and what to say when it runs out.

A transformer works for minutes, a text encoder for a tenth of a second: where both do not fit beside the activations, the
encoder lives in pinned host memory and is copied to the GPU for each prompt (16 GB take about half a second).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from orchestrator import degrees
from orchestrator.arms import Arm
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import VideoShape
from stages.models.base import Model

GIB = 2**30
PARK_ORDER = ("text", "vae")
"""What leaves first: the encoders are the larger and work once a clip."""


def working_bytes(geometry: ModelGeometry, shape: VideoShape) -> int:
    """What one forward on the full grid needs beside the weights, in bf16."""
    return degrees.working_bytes(geometry, geometry.num_tokens(geometry.latent_grid(shape)))


def parked(sizes: Mapping[str, int], free: int, needed: int) -> tuple[str, ...]:
    """Which parts must live in host memory so that ``needed`` bytes are free, ``free`` being so with all of them on the GPU.

    As few as will do, in ``PARK_ORDER``; all of them where even that will not do.
    """
    leaving: list[str] = []
    for name in PARK_ORDER:
        if free >= needed:
            break
        if sizes.get(name):
            leaving.append(name)
            free += sizes[name]
    return tuple(leaving)


def free_bytes(device: torch.device) -> int:
    """What this process can still allocate on a GPU: free there, or kept by torch and unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def num_bytes(modules: Sequence[nn.Module]) -> int:
    """Bytes of all weights and buffers."""
    return sum(tensor.nbytes for tensor in _tensors(modules))


class Turns:
    """The parts of one model that may have to leave the GPU while the transformer works. On a CPU nothing ever moves."""

    def __init__(self, device: torch.device, modules: Mapping[str, Sequence[nn.Module]]) -> None:
        """``modules`` by part, all on ``device``."""
        self._device = device
        self._modules = dict(modules) if device.type == "cuda" else {}
        self._homes: dict[str, list[tuple[Tensor, Tensor]]] = {}

    @property
    def away(self) -> tuple[str, ...]:
        """The parts that live in host memory."""
        return tuple(self._homes)

    def settle(self, needed: int) -> None:
        """Send parts away, for good, until ``needed`` bytes are free or none is left."""
        sizes = {name: num_bytes(of_part) for name, of_part in self._modules.items() if name not in self._homes}
        if not any(sizes.values()):
            return
        leaving = parked(sizes, free_bytes(self._device), needed)
        self._homes |= {name: _at_home(self._modules[name]) for name in leaving}
        if leaving:
            torch.cuda.empty_cache()

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """``name`` is on the GPU within; afterwards, if it lives in host memory, its memory is free again."""
        home = self._homes.get(name, [])
        for tensor, kept in home:
            tensor.data = kept.to(self._device, non_blocking=True)
        try:
            yield
        finally:
            for tensor, kept in home:
                tensor.data = kept
            if home:
                torch.cuda.empty_cache()


def modules_of(*parts: object) -> tuple[nn.Module, ...]:
    """The modules that objects hold as attributes, each once; None holds nothing."""
    values = [value for part in parts if part is not None for value in vars(part).values()]
    return tuple({id(value): value for value in values if isinstance(value, nn.Module)}.values())


def _tensors(modules: Sequence[nn.Module]) -> list[Tensor]:
    rows = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    return list({id(tensor): tensor for tensor in rows}.values())


def _at_home(modules: Sequence[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Moves every tensor to pinned host memory; pairs of the tensor and what it keeps there."""
    homes = []
    for tensor in _tensors(modules):
        kept = tensor.data.cpu().pin_memory()
        tensor.data = kept
        homes.append((tensor, kept))
    return homes


_TRIED = re.compile(r"Tried to allocate ([\d.]+ [KMG]iB)")
_FREE = re.compile(r"([\d.]+ [KMG]iB) is free")
_TOTAL = re.compile(r"total capacity of ([\d.]+ [KMG]iB)")


def out_of_memory(error: Exception, model: Model | None, arm: Arm, doing: str) -> RuntimeError:
    """What to raise instead of torch's error: what was needed, what was free, and which knob helps.

    ``doing`` is "loading", "decoding" or "denoising" with a grid; ``model`` is None if it could not be loaded.
    """
    shape = arm.shape
    text = str(error)
    tried, free, total = (_first(pattern, text) for pattern in (_TRIED, _FREE, _TOTAL))
    size = f"{shape.num_frames} x {shape.height} x {shape.width}"
    about = "" if model is None else f"a forward on the full grid takes about {_gib(working_bytes(model.geometry, shape))}; "
    return RuntimeError(
        f"out of GPU memory while {doing} {arm.model} at {size}: {tried} more was needed, {free} of {total} was free "
        f"({about}another process on this GPU counts too). What helps: {_knobs(doing)}"
    )


def _first(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found.group(1) if found else "an unknown amount"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"


def _knobs(doing: str) -> str:
    smaller = "fewer frames (--frames) or a smaller size (--height, --width)"
    if doing.startswith("decoding"):
        return f"{smaller}, or workers for decoding only, which hold no transformer (roles in the sweep)"
    if doing.startswith("loading"):
        return "workers that load one part each (roles in the sweep), a smaller variant of the model (dvg models), a larger GPU"
    return f"{smaller}, more GPUs for one clip, or workers that hold the transformer only (roles in the sweep)"
