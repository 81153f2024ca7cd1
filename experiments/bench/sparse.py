"""Sparse attention on one GPU, in one command: which method beats dense cuDNN by how much, and what DVG gains by it.

``python -m experiments.bench.sparse --out FOLDER``; ``--toy`` tries all of it on a CPU, at sizes whose seconds say nothing. Every
row is a file of the folder as soon as it is measured; ``report.md`` is made of them, again at every row. In order, as far as
``--minutes`` go: HunyuanVideo-1.5's attention at its full grid, method by method, on structured tensors; that model with random
weights, with DVG and without, alone and with methods that were faster than dense there; HunyuanVideo at its full grid; smaller
grids; recall on what wan-mini attends to; the kernel's parts and settings.
"""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from experiments.bench import sparse_kernel, sparse_model
from experiments.bench.common import save
from experiments.bench.sparse_report import report, rows_of, worthwhile
from experiments.bench.sparse_rows import (
    CASES,
    Case,
    Layer,
    Row,
    dense_seconds,
    fitted,
    made_twice,
    seconds,
    through_a_clip,
    undisturbed,
)
from experiments.bench.structured import Recipe, Structured
from orchestrator.geometry import model as geometry_of
from orchestrator.methods import find
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Grid, VideoShape
from stages.models.base import Condition, Model, Request, load

NUM_TEXT = 60


@dataclasses.dataclass(frozen=True)
class Place:
    """A model's attention on one grid."""

    model: str
    shape: VideoShape
    grid: Grid
    """Latent cells."""
    num_steps: int

    @property
    def geometry(self) -> ModelGeometry:
        return geometry_of(self.model)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured where."""

    full: Place
    small: tuple[Place, ...]
    large: Place | None
    clip_steps: int
    """Of DVG's clips."""
    recorded: VideoShape
    recorded_steps: int


HV15 = VideoShape(121, 480, 848, 24)
HV = VideoShape(125, 720, 1280, 24)
REAL = Sizes(
    full=Place("hunyuanvideo-1.5", HV15, (31, 30, 53), 50),
    small=(Place("hunyuanvideo-1.5", HV15, (22, 21, 37), 50), Place("hunyuanvideo-1.5", HV15, (16, 15, 26), 50)),
    large=Place("hunyuanvideo", HV, (32, 90, 160), 50),
    clip_steps=20,
    recorded=VideoShape(41, 144, 144, 16),
    recorded_steps=12,
)
"""Grids of DVG's stages among them."""
TOY_SHAPE = VideoShape(17, 96, 128, 16)
TOY = Sizes(
    full=Place("wan-mini", TOY_SHAPE, (5, 12, 16), 6),
    small=(),
    large=None,
    clip_steps=8,
    recorded=VideoShape(9, 64, 64, 16),
    recorded_steps=6,
)


class Bench:
    """Writes each row to a folder, and leaves what there is no time for."""

    def __init__(
        self, out: pathlib.Path, minutes: float, sizes: Sizes, device: torch.device, cases: Sequence[Case] = CASES
    ) -> None:
        self.out, self.sizes, self.device, self.cases = out, sizes, device, cases
        self.deadline_s = time.monotonic() + 60 * minutes
        self.recipe = Recipe()

    @property
    def left_s(self) -> float:
        return self.deadline_s - time.monotonic()

    def row(self, section: str, name: str, measure: Callable[[], Row], needs_s: float = 10.0, **told: Any) -> Row | None:
        """What ``measure`` gives, or why it gave nothing, as a file; None for the latter."""
        began_s, found = time.monotonic(), {"section": section, "name": name, **told}
        try:
            if self.left_s < needs_s:
                raise TimeoutError(f"{max(self.left_s, 0):.0f} s are left, and it needs about {needs_s:.0f}")
            found |= measure()
        except Exception as problem:  # noqa: BLE001  (what one kernel's compiler refuses must not cost the other rows)
            found["left"] = " ".join(f"{type(problem).__name__}: {problem}".split())[:400]
        found["took_s"] = round(time.monotonic() - began_s, 2)
        slug = "".join(letter if letter.isalnum() else "-" for letter in f"{section}-{told.get('tokens', '')}-{name}")
        save(self.out / f"{slug}.json", "sparse", found)
        (self.out / "report.md").write_text(report(rows_of(self.out), self.recipe))
        print(_brief(found), flush=True)
        return None if "left" in found else found

    def run(self, sections: Sequence[str] | None = None) -> None:
        """All sections in order, or some."""
        large = (self.sizes.large,) if self.sizes.large else ()
        every: dict[str, Callable[[], None]] = {
            "full": lambda: self.methods([self.sizes.full]),
            "clips": self.clips,
            "large": lambda: self.methods(large, needs_s=45.0),
            "small": lambda: self.methods(self.sizes.small, needs_s=8.0),
            "recorded": self.on_recorded,
            "kernels": lambda: self.kernels(self.sizes.full),
        }
        for name in sections or every:
            every[name]()

    def methods(self, places: Sequence[Place], needs_s: float = 10.0) -> None:
        """Every method on each grid."""
        for place in places:
            self._methods(place, needs_s)

    def _methods(self, place: Place, needs_s: float) -> None:
        layer = Layer(place.geometry, place.grid, place.num_steps, self.device)
        told = {"model": place.model, "tokens": layer.num_tokens, "heads": place.geometry.heads}
        source: Structured | None = None
        dense_s = 0.0

        def measure(case: Case) -> Row:
            nonlocal source, dense_s
            find(case.method, "accelerator")
            if source is None:
                source = self._structured(place, layer)
                dense_s = dense_seconds(layer, source)
            make, measuring = made_twice(fitted(case, layer, source), place.geometry, place.shape, place.num_steps)
            return through_a_clip(make, layer, source, dense_s, measuring)

        for case in self.cases:
            self.row("methods", case.name, lambda case=case: measure(case), needs_s, **told)  # type: ignore[misc]

    def _structured(self, place: Place, layer: Layer) -> Structured:
        geometry, dtype = place.geometry, torch.bfloat16 if self.device.type == "cuda" else torch.float32
        return Structured(self.recipe, layer.tokens, geometry.heads, geometry.head_dim, NUM_TEXT, self.device, dtype)

    def clips(self) -> None:
        """The model of the full grid, with DVG and without: alone, and with methods that were faster than dense there."""
        place, steps = self.sizes.full, self.sizes.clip_steps
        best = worthwhile(rows_of(self.out), self.cases, place.model)
        first, others = [None, *best[:1]], best[1:]
        arms = [*(("dvg", case) for case in first), *(("full", case) for case in first), *(("dvg", case) for case in others)]
        tables = sparse_model.Tables(self.recipe)
        prepared: list[Any] = []

        def measure(planner: str, case: Case | None) -> Row:
            if not prepared:
                model, condition = self._model(place)
                prepared.extend((model, condition, warmed_and_sketched(model, condition)))
            model, condition, sketch = prepared
            if case is not None and case.method == "sparse-vdit":
                layer = Layer(place.geometry, place.grid, place.num_steps, self.device)
                case = fitted(case, layer, self._structured(place, layer))
            makers = sparse_model.makers_of(case, model, place.shape, steps, tables)
            small = VideoShape(33, 256, 256, place.shape.fps)
            warm_s = sparse_model.warmed(model, makers, small, condition) if case and self.device.type == "cuda" else 0.0
            told = makers, place.shape, steps, tables
            if planner == "full":
                return {"warm_s": warm_s, **undisturbed(lambda: sparse_model.whole(model, condition, *told))}
            return {"warm_s": warm_s, **undisturbed(lambda: sparse_model.refined(model, sketch, *told))}

        def warmed_and_sketched(model: Model, condition: Condition) -> Any:
            """What is planned or compiled for a shape is so before anything is timed."""
            if self.device.type == "cuda":
                sparse_model.warmed(model, (), place.shape, condition)
            sparse_model.sketched(model, condition, place.shape, steps)
            return sparse_model.sketched(model, condition, place.shape, steps)

        for arm in arms:
            name = f"{arm[0]} + {arm[1].name}" if arm[1] else arm[0]
            self.row("clips", name, lambda arm=arm: measure(*arm), 40.0 if prepared else 120.0, model=place.model)  # type: ignore[misc]

    def _model(self, place: Place) -> tuple[Model, Condition]:
        if self.device.type != "cuda":
            model = load(place.model, None, "cpu", compile_blocks=False)
            return model, model.encode(Request(sparse_model.PROMPT, place.shape, 1.0))
        from experiments.bench import single_gpu_models as large

        subject = dataclasses.replace(large.SUBJECTS["hv15-t2v"], branches=1)
        return large.ours(subject, (large.transformer(subject),)), large.condition(subject)

    def on_recorded(self) -> None:
        """Recall where a trained model really looks."""
        shape, steps = self.sizes.recorded, self.sizes.recorded_steps
        kept: list[Any] = []

        def measure(case: Case) -> Row:
            if not kept:
                kept.extend(sparse_model.recorded(shape, steps, self.device))
            return {"layers": sparse_model.on_recorded(case, kept[0], kept[1], shape, steps)}

        for case in self.cases:
            self.row("recorded", case.name, lambda case=case: measure(case), 5.0, model=sparse_model.NAME)  # type: ignore[misc]

    def kernels(self, place: Place) -> None:
        """Parts and settings of the kernel, on random patterns."""
        layer = Layer(place.geometry, place.grid, place.num_steps, self.device)
        told = {"tokens": layer.num_tokens, "heads": place.geometry.heads}
        source = self._structured(place, layer)
        tensors = source.at(0)
        dense_s = seconds(layer.device, lambda: layer.dense(*tensors))
        for name, sizes, density in kernel_cases():
            self.row("kernel", name, lambda s=sizes, d=density: sparse_kernel.parts(layer, tensors, s, d, dense_s), **told)  # type: ignore[misc]
        for name in sparse_kernel.OPTIONS if self.device.type == "cuda" else ():
            self.row("options", name, lambda name=name: sparse_kernel.option(layer, tensors, name), 20.0, **told)  # type: ignore[misc]


def _brief(row: Row) -> str:
    told = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
    return " ".join(f"{name}={value}" for name, value in told.items() if not isinstance(value, list | dict))


def kernel_cases() -> Iterator[tuple[str, tuple[int, int], float]]:
    for sizes in sparse_kernel.BLOCKS:
        for density in sparse_kernel.DENSITIES:
            yield f"{sizes[0]} x {sizes[1]}, {density:g}", sizes, density


def main() -> None:
    """As the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder")
    parser.add_argument("--toy", action="store_true", help="a tiny model on a CPU")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--only", nargs="*", help="methods by name")
    parser.add_argument("--sections", nargs="*", help="of the order above; all without")
    args = parser.parse_args()
    cases = [case for case in CASES if args.only is None or case.method in args.only]
    device = torch.device("cpu" if args.toy else "cuda")
    args.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(args.out, args.minutes, TOY if args.toy else REAL, device, cases)
    bench.run(args.sections)
    print(report(rows_of(args.out), bench.recipe))


if __name__ == "__main__":
    main()
