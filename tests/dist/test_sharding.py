"""Layers whose weights are spread over ranks, against the same layers whole."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.groups import Groups
from parallel.sharding import Sharded, shard
from stages.compiling import maybe_compile
from tests.dist.gang import Gang

NUM_LAYERS, WIDTH = 5, 12


class Norm(NamedTuple):
    scale: Tensor
    shift: Tensor


class Layer(NamedTuple):
    """Of two dtypes, one tuple within another, and rows that no number of ranks divides."""

    up: Tensor
    norm: Norm
    down: Tensor
    odd: Tensor


def make_layers() -> list[Layer]:
    torch.manual_seed(0)

    def weight(*shape: int, dtype: torch.dtype = torch.bfloat16) -> nn.Parameter:
        return nn.Parameter(torch.randn(*shape, dtype=dtype) / WIDTH, requires_grad=False)

    def norm() -> Norm:
        return Norm(weight(WIDTH, dtype=torch.float32), weight(WIDTH, dtype=torch.float32))

    return [Layer(weight(48, WIDTH), norm(), weight(WIDTH, 48), weight(7)) for _ in range(NUM_LAYERS)]


def run(layer: Layer, h: Tensor) -> Tensor:
    seen = F.layer_norm(h.float(), (WIDTH,), layer.norm.scale, layer.norm.shift).bfloat16()
    return h + F.linear(F.gelu(F.linear(seen, layer.up)), layer.down) * layer.odd.mean()


def whole(h: Tensor) -> Tensor:
    for layer in make_layers():
        h = run(layer, h)
    return h


def tokens() -> Tensor:
    return torch.randn(1, 9, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16()


def sharded(groups: Groups, width: int) -> Sharded[Layer]:
    group = groups.slice(groups.rank // width * width, width)
    assert group is not None
    return shard(make_layers(), group)


def found(groups: Groups, width: int) -> tuple[list[Tensor], int]:
    layers, outputs = sharded(groups, width), []
    for _ in range(2):
        h = tokens()
        with torch.inference_mode():
            for layer in layers:
                h = run(layer, h)
        outputs.append(h.clone())
    return outputs, layers.num_bytes


@pytest.mark.parametrize("width", [2, 4])
def test_layers_gathered_in_turn_equal_whole_ones_again_and_again(gang: Gang, width: int) -> None:
    for outputs, _ in gang.run(found, width):
        for output in outputs:
            assert torch.equal(output, whole(tokens()))


@pytest.mark.parametrize("width", [2, 4])
def test_a_rank_keeps_its_share_of_the_bytes(gang: Gang, width: int) -> None:
    layers = make_layers()
    num_bytes = sum(w.numel() * w.element_size() for layer in layers for w in (layer.up, *layer.norm, layer.down, layer.odd))
    most_padding = NUM_LAYERS * 2 * (width - 1)  # of the seven rows
    for _, kept in gang.run(found, width):
        assert 0 <= kept * width - num_bytes <= width * most_padding


def sizes_in_turn(groups: Groups, width: int) -> tuple[list[list[int]], int]:
    """Bytes of every layer's gathered weights while each layer has its turn, and of what was handed in."""
    group = groups.slice(groups.rank // width * width, width)
    assert group is not None
    given = make_layers()
    layers, seen, sizes = shard(given, group), [], []
    for layer in layers:
        seen.append(layer)
        sizes.append([one.up.untyped_storage().nbytes() for one in seen])
    return sizes, sum(layer.up.numel() for layer in given)


def test_a_layer_is_let_go_after_its_turn_and_the_given_weights_at_once(gang: Gang) -> None:
    sizes, left = gang.run(sizes_in_turn, 2)[0]
    for index, row in enumerate(sizes):
        assert row == [0] * index + [48 * WIDTH * 2]
    assert left == 0


def compiled(groups: Groups) -> tuple[int, bool]:
    """Graphs made of one block for all layers, two rounds of them, and whether they are right."""
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    layers, block = sharded(groups, 2), maybe_compile(run, True, backend=backend)  # type: ignore[arg-type]
    outputs = []
    with torch.inference_mode():
        for _ in range(2):
            h = tokens()
            for layer in layers:
                h = block(layer, h)
            outputs.append(h)
    return len(graphs), all(torch.equal(h, whole(tokens())) for h in outputs)


def test_one_compiled_block_serves_all_gathered_layers(gang: Gang) -> None:
    assert set(gang.run(compiled)) == {(1, True)}


def stopped(groups: Groups) -> bool:
    """A forward that fails midway leaves the layers good for the next one."""
    layers = sharded(groups, 4)
    for _ in layers:
        break
    return torch.equal(_through(layers), whole(tokens()))


def _through(layers: Sharded[Layer]) -> Tensor:
    h = tokens()
    for layer in layers:
        h = run(layer, h)
    return h


def test_a_forward_that_all_ranks_stopped_midway_can_be_begun_again(gang: Gang) -> None:
    assert all(gang.run(stopped))


def test_a_weight_that_is_no_parameter_is_refused(gang: Gang) -> None:
    with pytest.raises(ValueError, match=r"only nn\.Parameter can be sharded, not Tensor"):
        gang.run(plain_tensor)


def plain_tensor(groups: Groups) -> None:
    group = groups.slice(groups.rank // 2 * 2, 2)
    assert group is not None
    shard([Norm(torch.ones(2), torch.ones(2))], group)
