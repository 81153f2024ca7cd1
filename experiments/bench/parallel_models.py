"""The models of ``experiments.bench.parallel``: of real size with random weights, or tiny ones for a rehearsal on CPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.bench import single_gpu_models
from experiments.bench.parallel_cases import CHUNKS, LOCAL, NATIVE, PEER, Subject
from experiments.bench.parallel_rig import Rig
from experiments.calibrate import num_text
from orchestrator.geometry import ModelGeometry
from orchestrator.types import Grid
from parallel.groups import Group
from parallel.native import Native
from parallel.peer import Peer
from parallel.seam import Attention, Exchange, Seam
from stages import attention
from stages.models import tiny
from stages.models.base import Condition, Model, Request, load
from stages.resize import nested_axes
from stages.sampling import NoiseLevel

LEVEL = NoiseLevel(0.9, 900.0, 880.0)
SINGLE = {"wan": "wan", "hv": "hv", "hv15": "hv15-t2v"}
"""The subjects of ``single_gpu_models``."""
SHARPER = 3.0
MOST_CELLS = 1 << 14
"""Of an axis, so that Wan takes grids of p x 1 x 1 patches. Its published tables end at 1,024."""


@dataclass(eq=False)
class Loaded:
    """A model, the same on every rank, and what its forwards take."""

    subject: Subject
    model: Any
    conditions: dict[int, Condition]
    """By the number of branches."""

    @property
    def num_text(self) -> int:
        """Condition tokens that join the video's in attention."""
        if self.subject.geometry.family == "wan":
            return 0
        return num_text(self.conditions[1])

    def forward(self, grid: Grid, num_branches: int = 1) -> Callable[[], Tensor]:
        """One step's velocity on ``grid``, of the same latent on every rank."""
        model: Model = self.model
        placed = model.place(self.conditions[num_branches], nested_axes((grid,))[0], "index")
        generator = torch.Generator(model.device).manual_seed(0)
        x = torch.randn(1, model.geometry.latent_channels, *grid, device=model.device, generator=generator)
        return lambda: model.denoise(x, LEVEL, placed)


def loaded(rig: Rig, kind: str, subject: Subject) -> Loaded:
    """Its blocks compiled by a first forward."""
    torch.manual_seed(0)
    found = _tiny(rig, subject) if rig.is_tiny else _real(rig, kind, subject)
    with torch.inference_mode():
        found.forward(min(subject.grids, key=subject.tokens))()
    rig.settle()
    return found


def _real(rig: Rig, kind: str, subject: Subject) -> Loaded:
    """All ranks measure attention kernels at once and then go by the same file."""
    geometry = subject.geometry
    attention.fastest(rig.device, geometry.heads, geometry.head_dim, single_gpu_models.BF16)
    rig.settle()
    chosen = single_gpu_models.SUBJECTS[SINGLE[kind]]
    module = single_gpu_models.transformer(chosen)
    _sharpen(module)
    if kind == "wan":
        module.rope = long_rope(module, geometry).to(rig.device)
    model = single_gpu_models.ours(chosen, (module,))
    torch.manual_seed(1)
    return Loaded(subject, model, {num: single_gpu_models.condition(chosen, branches=num) for num in (1, 2)})


def long_rope(module: Any, geometry: ModelGeometry) -> Any:
    """Wan's positions, for axes longer than any of a video."""
    return type(module.rope)(geometry.head_dim, geometry.patch, MOST_CELLS)


def _sharpen(module: Any) -> None:
    """Attention with random weights is all but uniform, and hardly differs from that over a part of the tokens."""
    for name, weight in module.named_parameters():
        if name.endswith(("norm_q.weight", "norm_added_q.weight")):
            weight.data.mul_(SHARPER)


def _tiny(rig: Rig, subject: Subject) -> Loaded:
    folder = rig.folder / subject.name
    if rig.rank == 0:
        tiny.build(subject.name, folder)
    rig.settle()
    model = load(subject.name, str(folder), str(rig.device), compile_blocks=False)
    shape = subject.geometry.default_shape
    requests = {1: Request("a red circle", shape, 1.0), 2: Request("a red circle", shape, 5.0, "grey")}
    return Loaded(subject, model, {num: model.encode(request) for num, request in requests.items()})


_KINDS: dict[str, Any] = {NATIVE: Native, PEER: Peer}


@dataclass(eq=False)
class Named:
    """An exchange under another name, which tells recordings apart."""

    exchange: Exchange
    name: str

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, local: Attention, group: Group, counts: tuple[int, ...]) -> Tensor:
        return self.exchange(q, k, v, local, group, counts)


class Exchanges:
    """By name, each made once. ``found`` are the names that run here, of those ``wanted``."""

    def __init__(self, rig: Rig, wanted: Sequence[str]) -> None:
        self._rig = rig
        self._made: dict[str, Exchange | None] = {LOCAL: None, NATIVE: Native()}
        self.found: tuple[str, ...] = tuple(name for name in wanted if self._runs(name))
        for name, (base, num) in CHUNKS.items():
            if base in self.found:
                self._made[name] = Named(_KINDS[base](num), name)

    def _runs(self, name: str) -> bool:
        row = self._rig.attempt({"section": "backends", "backend": name}, 30.0, lambda: self._make(name))
        return "distance" in row

    def _make(self, name: str) -> dict[str, Any]:
        """Made, and tried on all ranks: one that does not work at all is not measured."""
        from parallel import backends

        if name in _KINDS:
            reason = "it needs GPUs" if name == PEER and not self._rig.is_cuda else None
        else:
            reason = backends.missing(name)
        if reason is not None:
            return {"missing": reason}
        self._made[name] = _KINDS[name]() if name in _KINDS else backends.make(name, self._rig.groups)
        return {"distance": self._tried(name)}

    def _tried(self, name: str) -> float:
        """Relative distance of a small attention to native's. Raises RuntimeError where it is large."""
        rig = self._rig
        seam = Seam(F.scaled_dot_product_attention)
        dtype = torch.bfloat16 if rig.is_cuda else torch.float32
        generator = torch.Generator(rig.device).manual_seed(rig.rank)
        q, k, v = (torch.randn(1, 8, 64, 128, device=rig.device, generator=generator).to(dtype) for _ in range(3))
        found = []
        for exchange in (Native(), self._made[name]):
            seam.attach(rig.layout(rig.num_ranks), exchange)
            seam.cut(64 * rig.num_ranks)
            found.append(seam(q, k, v).float())
        distance = float((found[1] - found[0]).norm() / found[0].norm())
        if not distance < 0.02:
            raise RuntimeError(f"{name} is {distance:.3g} from native")
        return distance

    def __getitem__(self, name: str) -> Exchange | None:
        return self._made[name]

    def refusal(self, name: str, found: Loaded, grid: Grid, degree: int) -> str | None:
        """Why a backend cannot, told at planning time; None where it can."""
        geometry = found.subject.geometry
        if name in (NATIVE, PEER, LOCAL, *CHUNKS):
            return None
        from parallel import backends

        found = backends.mistakes(
            name,
            heads=geometry.heads,
            num_tokens=[geometry.num_tokens(grid) + found.num_text],
            degree=degree,
            device_type=self._rig.device.type,
        )
        return "; ".join(found) or None
