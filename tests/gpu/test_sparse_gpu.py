"""Attention by pattern on a GPU: what the reference on a CPU gives, compiled once for all lengths, faster than dense."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from experiments.bench.sparse_kernel import pattern as drawn
from experiments.bench.sparse_rows import Layer, seconds
from experiments.bench.structured import Recipe, Structured
from orchestrator.geometry import model as geometry_of
from orchestrator.methods import ACCELERATORS, find
from orchestrator.types import VideoShape
from stages.models.base import Model
from stages.sparse.clusters import clustered, first_centres
from stages.sparse.kernel import attend, attend_with_sums, by_mask, by_mask_with_sums
from stages.sparse.pattern import Blocks, Pattern, in_a_row, in_order, in_tiles
from stages.sparse.weighted import by_bias, weighted
from tests.gpu.clips import Clip, eager_and_compiled, unwaiting

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GRID = (5, 13, 21)
NUM = 5 * 13 * 21
HEADS = 3
SIZES = [(128, 128), (128, 64), (64, 64), (32, 32), (40, 16)]
FAR = {"svg2": 0.3}
"""Of a method's results, where a token that falls to another cluster moves many."""
TOLERANCE = {torch.float32: 5e-3, torch.bfloat16: 2e-2}
"""Products of float32 are TF32's there."""


def layouts(size: int) -> Mapping[str, Blocks]:
    orders = [torch.randperm(NUM, generator=torch.Generator().manual_seed(head)) for head in range(HEADS)]
    tile = {128: (1, 8, 16), 64: (1, 8, 8), 40: (1, 5, 8), 32: (1, 4, 8), 16: (1, 4, 4)}[size]
    return {"row": in_a_row(NUM, size, CPU), "heads": in_order(torch.stack(orders), size), "tiles": in_tiles(GRID, tile, CPU)}


def random_pattern(kind: str, sizes: tuple[int, int], num_text: int) -> Pattern:
    queries, keys = (layouts(size)[kind] for size in sizes)
    keep = torch.rand(HEADS, queries.num, keys.num, generator=torch.Generator().manual_seed(0)) < 0.4
    keep[:, :, 0] = True
    return Pattern(queries, keys, keep).with_text(num_text)


def there(found: Pattern) -> Pattern:
    queries, keys = (Blocks(blocks.slots.to(GPU), blocks.size, blocks.num_tokens) for blocks in (found.queries, found.keys))
    return Pattern(queries, keys, found.keep.to(GPU))


def tensors(num_tokens: int, head_dim: int, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 1, heads, num_tokens, head_dim, generator=torch.Generator().manual_seed(1))
    return q, k, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["row", "heads", "tiles"])
def test_blocks_give_what_the_mask_gives(kind: str, sizes: tuple[int, int], head_dim: int, dtype: torch.dtype) -> None:
    given, (q, k, v) = random_pattern(kind, sizes, 7), tensors(NUM + 7, head_dim)
    found = attend(*(x.to(GPU, dtype) for x in (q, k, v)), there(given))
    torch.testing.assert_close(found.float().cpu(), by_mask(q, k, v, given), atol=TOLERANCE[dtype], rtol=2e-2)


def test_sums_are_those_of_the_mask() -> None:
    given, (q, k, v) = random_pattern("row", (128, 128), 7), tensors(NUM + 7, 64)
    found, sums = attend_with_sums(*(x.to(GPU) for x in (q, k, v)), there(given))
    expected, expected_sums = by_mask_with_sums(q, k, v, given)
    torch.testing.assert_close(found.cpu(), expected, atol=5e-3, rtol=2e-2)
    torch.testing.assert_close(sums.cpu(), expected_sums, atol=5e-3, rtol=1e-3)


def test_weights_on_keys_are_those_of_a_bias() -> None:
    (q, k, v), weights = tensors(700, 64), torch.rand(700, generator=torch.Generator().manual_seed(2)) * 2
    found = weighted(*(x.to(GPU) for x in (q, k, v)), weights.to(GPU))
    torch.testing.assert_close(found.cpu(), by_bias(q, k, v, weights), atol=5e-3, rtol=2e-2)


def test_clusters_are_those_of_the_cpu() -> None:
    x = Structured(Recipe(), GRID, HEADS, 64, 0, CPU, torch.float32).at(0)[1][0]
    found, expected = (clustered(y, first_centres(y, 12), 4).labels.cpu() for y in (x.to(GPU), x))
    assert (found == expected).float().mean() > 0.98, "a token between two clusters may fall either way"


def test_the_kernel_is_compiled_once_for_all_lengths_and_numbers_of_heads() -> None:
    def run(num_tokens: int, heads: int) -> None:
        layer = in_a_row(num_tokens, 128, GPU)
        keep = torch.ones(heads, layer.num, layer.num, dtype=torch.bool, device=GPU)
        q, k, v = (x.to(GPU) for x in tensors(num_tokens, 32, heads))
        attend(q, k, v, Pattern(layer, layer, keep))

    def graphs() -> int:
        return int(counters["stats"]["unique_graphs"])

    run(1000, 8)  # and 8 blocks
    before = graphs()
    for num_tokens, heads in ((400, 8), (1500, 3), (4000, 12), (1000, 2)):
        run(num_tokens, heads)
    assert graphs() == before


SHAPE = VideoShape(17, 192, 192)
NUM_STEPS = 10


def attending() -> list[str]:
    """Methods of the registry that attend."""
    names = []
    for name in ACCELERATORS:
        method = find(name, "accelerator")
        if method.lever == "attention" and method.name != "freelong":
            names.append(name)
    return names


@pytest.fixture(scope="module")
def models() -> dict[bool, Model]:
    return eager_and_compiled()


def clip(model: Model, name: str, planner: str = "full") -> tuple[Tensor, float, list[float]]:
    found = Clip(SHAPE, NUM_STEPS, name, planner=planner).run(model)
    return found.x.cpu(), found.past.tflops, [step.sparsity for step in found.past.attended]


@pytest.mark.parametrize("planner", ["full", "dvg"])
@pytest.mark.parametrize("name", attending())
def test_a_method_gives_compiled_what_it_gives_block_by_block(models: dict[bool, Model], name: str, planner: str) -> None:
    eager, compiled = (clip(models[is_compiled], name, planner) for is_compiled in (False, True))
    assert compiled[2] == pytest.approx(eager[2], abs=0.05)
    assert compiled[1] == pytest.approx(eager[1], rel=0.02)
    bound = FAR.get(name, 0.1) * eager[0].abs().mean()
    assert (compiled[0] - eager[0]).abs().mean() < bound, "blocks near the bound may fall either way"


@pytest.mark.parametrize("name", attending())
def test_a_method_never_waits_for_the_gpu(models: dict[bool, Model], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clip(models[True], name)
    monkeypatch.setattr(models[True], "denoise", unwaiting(models[True].denoise))
    clip(models[True], name)


def test_a_fourth_of_the_blocks_takes_less_time_than_everything_where_there_are_many() -> None:
    layer = Layer(geometry_of("hunyuanvideo-1.5"), (31, 30, 53), 50, GPU)
    q, k, v = (x.to(GPU, torch.bfloat16) for x in tensors(layer.num_tokens, 128, layer.geometry.heads))
    given = drawn(layer, (128, 128), 0.25)
    assert seconds(GPU, lambda: attend(q, k, v, given)) < seconds(GPU, lambda: layer.dense(q, k, v))
