"""Rows of ``experiments.bench.sparse``: a layer's attention through a clip's steps, under one method, beside dense attention."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from statistics import fmean, median
from typing import Any, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.bench.structured import Tensors
from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import Request, find, read_settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Attended, Grid, VideoShape
from parallel.seam import Attention
from stages.accelerators.attending import Attending, Here, Log, Stopwatch
from stages.accelerators.base import Now, StageEvent
from stages.attention import choose
from stages.compiling import num_graphs
from stages.denoise import clock_s
from stages.sampling import NoiseLevel
from stages.sparse.kernel import spread_rows

NUM_ROWS = 64
"""Queries by which recall is measured."""
AHEAD_CYCLES = 40_000_000
"""About 20 ms of a GPU in which the host asks for all that a call does: as in a model, whose other kernels keep it busy."""
LEAST = 0.001
"""Of a step that is told from a dense one by what it leaves out, or does besides."""
Row = dict[str, Any]
Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class Case:
    """A method at settings that its authors published."""

    name: str
    method: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


CASES = (
    Case("spargeattn, top 50 %", "spargeattn", {"package": False}),
    Case("spargeattn, mass 0.98", "spargeattn", {"cdfthreshd": 0.98, "package": False}),
    Case("svg", "svg"),
    Case("svg2", "svg2"),
    Case("attencarve", "attencarve"),
    Case("draft-attention", "draft-attention"),
    Case("adaspa", "adaspa"),
    Case("re-ttention", "re-ttention"),
    Case("sparse-vdit", "sparse-vdit"),
)


class Source(Protocol):
    """Queries, keys and values of a layer, step by step."""

    def at(self, step: int) -> Tensors: ...


@dataclasses.dataclass(frozen=True)
class Layer:
    """Where attention is measured."""

    geometry: ModelGeometry
    grid: Grid
    """Latent cells."""
    num_steps: int
    device: torch.device
    index: int | None = None
    """None: one in the middle."""
    dtype: torch.dtype = torch.bfloat16
    """Of its tensors on a GPU."""

    @property
    def tokens(self) -> Grid:
        t, h, w = (size // patch for size, patch in zip(self.grid, self.geometry.patch, strict=True))
        return t, h, w

    @property
    def num_tokens(self) -> int:
        return self.geometry.num_tokens(self.grid)

    @functools.cached_property
    def dense(self) -> Attention:
        """cuDNN's kernel on a GPU, where it takes the type."""
        heads, takes = (self.geometry.heads, self.geometry.head_dim), self.dtype.itemsize == 2
        return choose("cudnn", self.device, *heads) if self.device.type == "cuda" and takes else F.scaled_dot_product_attention

    def here(self, step: int, heads: int, log: Log) -> Here:
        event = StageEvent(self.grid, range(self.num_steps), self.num_steps, 0, False)
        sigma = 1 - step / self.num_steps
        now = Now(step, NoiseLevel(sigma, 1000 * sigma, 1000 * (sigma - 1 / self.num_steps)), 0, event)
        index = self.geometry.num_layers // 2 if self.index is None else self.index
        return Here(now, index, self.geometry.num_layers, range(heads), self.tokens, self.num_tokens, log)


def made(case: Case, geometry: ModelGeometry, shape: VideoShape, num_steps: int) -> Callable[[], Attending]:
    """What makes the method anew. Raises ValueError where it is not there, or does not serve the model."""
    method = find(case.method, "accelerator")
    request = Request(geometry, shape, num_steps, 1.0, "full", DvgConfig.for_model(geometry))
    settings = method.resolve(read_settings(method, case.settings), request)
    if wrong := method.mistakes(settings, request):
        raise ValueError("; ".join(wrong))

    def make() -> Attending:
        attending: Attending = method.make(settings, geometry)
        return attending

    return make


def made_twice(case: Case, *place: Any) -> tuple[Callable[[], Attending], Callable[[], Attending]]:
    """:func:`made`, to be timed and to measure recall."""
    timed = dataclasses.replace(case, settings={**case.settings, "measure_recall": False})
    return made(timed, *place), made(case, *place)


def fitted(case: Case, layer: Layer, source: Source) -> Case:
    """``case`` with patterns of heads as its own calibration chooses them on ``source``, where the method rests on one."""
    if case.method != "sparse-vdit" or "heads" in case.settings:
        return case
    from experiments.calibrate_sparse import PatternProbe
    from stages.accelerators.pattern_fits import CANDIDATES

    probe, (q, k, v) = PatternProbe((0,), 128), source.at(0)
    first = dataclasses.replace(layer, index=0)
    probe.attend(q, k, v, first.here(0, q.shape[1], Log(layer.geometry.num_layers)), layer.dense)
    balance = case.settings.get("balance", find(case.method, "accelerator").settings.model_fields["balance"].default)
    best = (probe.errors[0][0] + balance * probe.densities[0]).argmin(dim=1).tolist()
    heads = tuple(CANDIDATES[place] for place in best)
    return dataclasses.replace(case, settings={**case.settings, "heads": (heads,) * layer.geometry.num_layers})


def dense_seconds(layer: Layer, source: Source) -> float:
    """Of dense attention on one step's tensors, each call begun as a method's is (a device that works without a pause is hotter,
    and a tenth slower)."""
    tensors = source.at(0)
    return seconds(layer.device, lambda: layer.dense(*tensors), is_ahead=True)


def seconds(device: torch.device, call: Callable[[], object], rounds: int = 5, is_ahead: bool = False) -> float:
    """The median of some calls after one that is not counted; ``is_ahead``: before each the device waits for the host."""
    call()
    watches = []
    for _ in range(rounds):
        if is_ahead:
            _ahead(device)
        with Stopwatch(device) as watch:
            call()
        watches.append(watch)
    return median(watch.seconds() for watch in watches)


def _ahead(device: torch.device) -> float:
    """Waits for the device, and lets it wait for the host. When that began."""
    began_s = clock_s(device)
    if device.type == "cuda":
        torch.cuda._sleep(AHEAD_CYCLES)
    return began_s


@torch.inference_mode()
def through_a_clip(
    make: Callable[[], Attending], layer: Layer, source: Source, dense_s: float, measuring: Callable[[], Attending] | None = None
) -> Row:
    """One layer's attention at every step: what was kept, seconds of choosing and attending, and of all that a call takes.

    Seconds of the device are those it works; of calls, in another clip, those that the host waits for each. Recall is told by one
    more under ``measuring``, so that no second is spent on it; None: by the one that is timed.
    """
    warm_up(make, layer, source)
    steps, _, found = undisturbed(lambda: _clip(make, layer, source, is_ahead=True))
    walls = undisturbed(lambda: _clip(make, layer, source))[1]
    if measuring is not None:
        pairs = zip(steps, _clip(measuring, layer, source)[0], strict=True)
        steps = tuple(dataclasses.replace(one, recall=other.recall) for one, other in pairs)
    q, k, v = source.at(layer.num_steps - 1)
    expected = layer.dense(q, k, v).float()
    error = float((found.float() - expected).norm() / expected.norm())
    sparse = [one for one in steps if one.sparsity > LEAST]
    density = 1 - fmean(one.sparsity for one in sparse) if sparse else 1.0
    return {
        **summed(steps, walls, dense_s, layer.num_steps),
        "error": error,
        "best_recall": best_recall(q, k, density),
        "steps": [{**vars(one), "wall_s": wall_s} for one, wall_s in zip(steps, walls, strict=False)],
    }


def _clip(
    make: Callable[[], Attending], layer: Layer, source: Source, is_ahead: bool = False
) -> tuple[tuple[Attended, ...], list[float], Tensor]:
    """What every step kept, seconds of each, and what the last one gave. ``is_ahead``: the device first waits for the host."""
    attending, log = make(), Log(layer.geometry.num_layers)
    walls: list[float] = []
    found = torch.empty(0)
    for step in range(layer.num_steps):
        q, k, v = source.at(step)
        began_s = _ahead(layer.device) if is_ahead else clock_s(layer.device)
        found = attending.attend(q, k, v, layer.here(step, q.shape[1], log), layer.dense)
        walls.append(clock_s(layer.device) - began_s)
    return log.settle(None)[1], walls, found


def warm_up(make: Callable[[], Attending], layer: Layer, source: Source) -> None:
    """A clip's steps until one has left something out: what is compiled is compiled, before anything is timed."""
    attending, log = make(), Log(layer.geometry.num_layers)
    for step in range(layer.num_steps):
        q, k, v = source.at(step)
        attending.attend(q, k, v, layer.here(step, q.shape[1], log), layer.dense)
        if any(0 < float(call.density) < 1 for call in log.calls):
            return


def undisturbed(measure: Callable[[], Found]) -> Found:
    """What ``measure`` gives when nothing is compiled meanwhile. Raises RuntimeError where something is, again."""
    for _ in range(2):
        before = num_graphs()
        found = measure()
        if num_graphs() == before:
            return found
    raise RuntimeError("something was compiled while it was timed, twice")


def summed(steps: tuple[Attended, ...], walls: list[float], dense_s: float, num_steps: int) -> Row:
    """Sparsity and recall are of steps that left something out; ``speed`` of all that are not dense, searches and full steps too.

    Choosing counts in it. ``clip_speed``: of all steps; ``wall_speed``: with the host, which waits for each call.
    """
    sparse = [one for one in steps if one.sparsity > LEAST]
    active = [one for one in steps if abs(one.sparsity) > LEAST or one.choose_s > 0]
    recalls = [one.recall for one in sparse if one.recall is not None]
    spent_s = sum(one.choose_s + one.attend_s for one in steps) + dense_s * (num_steps - len(steps))
    row: Row = {
        "dense_s": dense_s,
        "num_sparse": len(sparse),
        "num_steps": num_steps,
        "clip_speed": num_steps * dense_s / spent_s,
        "wall_speed": num_steps * dense_s / sum(walls),
    }
    if not sparse:
        return row
    choose_s, attend_s = fmean(one.choose_s for one in active), fmean(one.attend_s for one in active)
    return row | {
        "sparsity": fmean(one.sparsity for one in sparse),
        "recall": fmean(recalls) if recalls else None,
        "choose_s": choose_s,
        "attend_s": attend_s,
        "kernel_speed": dense_s / attend_s,
        "speed": dense_s / (choose_s + attend_s),
    }


def best_recall(q: Tensor, k: Tensor, density: float) -> float:
    """The most weight that so many keys of each query could keep, chosen key by key: how much there is to leave out."""
    rows = spread_rows(q.shape[2], NUM_ROWS, q.device)
    weights = torch.softmax((q[0, :, rows].float() @ k[0].float().transpose(1, 2)) * q.shape[-1] ** -0.5, dim=-1)
    most = max(1, round(density * k.shape[2]))
    return float(weights.topk(most, dim=-1).values.sum(-1).mean())
