"""Methods that attend in the kernel's place: what they are given, layer by layer, and how what they keep is counted."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.flops import attention_share
from orchestrator.geometry import model
from orchestrator.types import Grid
from parallel.groups import Group
from parallel.layout import Layout
from parallel.seam import Attention, Seam
from stages.accelerators.attending import Attending, Here, Log
from stages.accelerators.base import Boost, Now, StageEvent
from stages.accelerators.block_sparse import BlockSparse, SparseSettings
from stages.accelerators.trunk import Trunk
from stages.sampling import NoiseLevel
from stages.sparse.pattern import Pattern, in_a_row

GEOMETRY = model("wan-mini")
GRID: Grid = (3, 8, 8)
TOKENS = 3 * 4 * 4
EVENT = StageEvent(GRID, range(10), 10, 0, crosses=False)
LEVEL = NoiseLevel(0.5, 500.0, 450.0)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def qkv(num_tokens: int = TOKENS, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 1, heads, num_tokens, 8, generator=torch.Generator().manual_seed(1))
    return q, k, v


class Told:
    """Attends as it would have been, and says what it was given."""

    def __init__(self) -> None:
        self.here: list[Here] = []
        self.seen: list[Tensor] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        self.here.append(here)
        self.seen.append(q)
        here.log.add(here, 0.25, recall=torch.tensor(0.5))
        return dense(q, k, v)


def boosted(told: Any, seam: Seam, event: StageEvent = EVENT) -> Boost:
    boost = Boost((lambda: told,), event, GEOMETRY)
    boost.attach(seam)
    boost.at(event.steps[0], LEVEL)
    return boost


def trunk(seam: Seam, num_blocks: int = 3, **more: Any) -> Trunk:
    """Blocks that attend and do nothing else."""

    def block(index: int, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seam(*qkv())
        return state

    def whole() -> Tensor:
        for index in range(num_blocks):
            block(index, (x,))
        return x

    x = torch.zeros(1, TOKENS, 4)
    parts: dict[str, Any] = {"attend": block, "finish": lambda index, state, found: state, "image": lambda state: state[0]}
    return Trunk((x,), num_blocks, whole, block, **parts, signals={}, attention_share=0.5, owner="net", **more)


def test_layers_are_numbered_in_the_order_in_which_a_forward_comes_by_them() -> None:
    told, seam = Told(), Seam(dense)
    boost = boosted(told, seam)
    seam.cut(TOKENS)
    for _ in range(2):
        boost(trunk(seam))
    assert [here.layer for here in told.here] == [0, 1, 2, 0, 1, 2]
    assert {here.tokens for here in told.here} == {(3, 4, 4)}
    assert {here.heads for here in told.here} == {range(2)}


class SomeBlocks:
    """A cache that computes two blocks of three, out of turn."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        trunk.run(trunk.inputs, 2, 3)
        trunk.run_attend(1, trunk.inputs)
        return trunk.inputs[0]


def test_under_a_cache_attention_knows_which_block_it_is_in() -> None:
    told, seam = Told(), Seam(dense)
    boost = Boost((lambda: told, SomeBlocks), EVENT, GEOMETRY)
    boost.attach(seam)
    boost.at(0, LEVEL)
    seam.cut(TOKENS)
    boost(trunk(seam))
    assert [here.layer for here in told.here] == [2, 1]


def test_heads_are_shared_by_the_ranks_of_the_seam_not_by_all_that_gather_weights_together() -> None:
    """Where guidance is split, some of these have the same heads of the other branch."""
    told, seam = Told(), Seam(dense)
    mine, all_ranks = (Group(range(size), 0, None, torch.device("cpu")) for size in (2, 4))
    for sequence in (mine, None):
        boost = boosted(told, seam)
        seam.attach(Layout(all_ranks, sequence, branch=0), exchange=None)
        seam.cut(2 * TOKENS)
        boost(trunk(seam, sequence=all_ranks))
        assert all(here.sequence is sequence for here in told.here)
        told.here.clear()


def test_without_a_method_the_seam_calls_its_kernel_and_after_a_stage_again() -> None:
    from stages.models.adapter import Adapter

    seam = Seam(dense)
    adapter = Adapter(GEOMETRY, torch.device("cpu"), torch.float32, None, {}, seam)
    boost = Boost((Told,), EVENT, GEOMETRY)
    adapter.accelerate(boost)
    assert seam.instead is not None
    adapter.accelerate(None)
    assert seam.instead is None
    adapter.accelerate(Boost((SomeBlocks,), EVENT, GEOMETRY))
    assert seam.instead is None


class Ranks(Seam):
    """A seam of rank 1 of 2, whose exchange finds the other rank's tokens in the order of ranks."""

    def __init__(self, image: tuple[int, int], text: tuple[int, int]) -> None:
        super().__init__(dense)
        self.layout = SimpleNamespace(sequence=SimpleNamespace(rank=1, size=2), key=0)  # type: ignore[assignment]
        self.exchange = self._exchanged  # type: ignore[assignment]
        self._image_counts = image
        self._counts = tuple(map(sum, zip(image, text, strict=True)))

    def _exchanged(self, q: Tensor, k: Tensor, v: Tensor, local: Attention, group: Any, counts: tuple[int, ...]) -> Tensor:
        return torch.cat([local(x, x, x) for x in (q[:, :1], q[:, 1:2])], dim=1)


@pytest.mark.parametrize("text", [(0, 0), (2, 1)])
def test_on_ranks_a_method_is_given_image_tokens_first_and_the_heads_of_each_chunk(text: tuple[int, int]) -> None:
    told, seam = Told(), Ranks((3, 2), text)
    seam.instead = boosted(told, seam).attention
    by_rank = [0, 1, 2, *[10, 11][: text[0]], 3, 4, *[12][: text[1]]]
    x = torch.tensor(by_rank, dtype=torch.float32).view(1, 1, -1, 1).expand(1, 4, -1, 1)
    seam(x, x, x)
    wanted = [0, 1, 2, 3, 4, *[10, 11][: text[0]], *[12][: text[1]]]
    assert [seen[0, 0, :, 0].tolist() for seen in told.seen] == [wanted, wanted]
    assert [here.heads for here in told.here] == [range(2, 3), range(3, 4)]
    assert {here.num_image for here in told.here} == {5}


def test_what_a_method_finds_goes_back_in_the_order_of_ranks() -> None:
    seam = Ranks((3, 2), (2, 1))

    class Same(Told):
        def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
            return q

    seam.instead = boosted(Same(), seam).attention
    x = torch.randn(1, 2, 8, 3)
    assert torch.equal(seam(x, x, x), x)


def test_more_than_one_way_to_attend_is_refused() -> None:
    with pytest.raises(ValueError, match="2 ways to attend were asked for: a stage has one at most"):
        Boost((Told, Told), EVENT, GEOMETRY)


def test_operations_fall_by_the_share_of_attention_that_was_left_out() -> None:
    told, seam = Told(), Seam(dense)
    boost = boosted(told, seam)
    seam.cut(TOKENS)
    boost(trunk(seam, GEOMETRY.num_layers))
    (step,) = boost.attended()
    assert (step.step, step.sparsity, step.recall) == (0, pytest.approx(0.75), pytest.approx(0.5))
    assert boost.share == pytest.approx(1 - 0.75 * attention_share(GEOMETRY, GRID))


def here(log: Log, heads: range, step: int = 0, layer: int = 0) -> Here:
    return Here(Now(step, LEVEL, 0, EVENT), layer, log.num_layers, heads, (3, 4, 4), TOKENS, log)


def test_chunks_of_heads_weigh_as_many_heads_as_they_have() -> None:
    log = Log(num_layers=2)
    log.add(here(log, range(4, 7)), 0.2, torch.tensor(0.9))
    log.add(here(log, range(7, 8)), torch.tensor(0.6), torch.tensor(0.5))
    log.add(here(log, range(4, 7), step=1), 1.0)
    log.add(here(log, range(7, 8), step=1), 1.0)
    saved, steps = log.settle(None)
    assert saved == pytest.approx((0.8 * 3 + 0.4) / 4 / 2)
    assert [(row.step, row.sparsity, row.recall) for row in steps] == [
        (0, pytest.approx(0.7), pytest.approx(0.8)),
        (1, pytest.approx(0.0), None),
    ]


def test_operations_are_those_executed_though_fewer_pairs_were_kept() -> None:
    log = Log(num_layers=2)
    log.add(here(log, range(2)), torch.tensor(0.2), executed=torch.tensor(0.3))
    log.add(here(log, range(2), layer=1), 1.0)
    saved, (step,) = log.settle(None)
    assert saved == pytest.approx(0.7 / 2)
    assert step.sparsity == pytest.approx(0.8 / 2)


def test_empty_slots_of_a_pattern_count_as_operations() -> None:
    log = Log(num_layers=1)
    Uneven(SparseSettings(dense_steps=0, dense_layers=0), GEOMETRY).attend(*qkv(), here(log, range(2)), dense)
    saved, (step,) = log.settle(None)
    assert step.sparsity == pytest.approx(1 - (20 * 20 + 20 * 20 + 8 * 8) / 48**2)
    assert saved == pytest.approx(1 - 3 * 20 * 20 / 48**2)


class Diagonal(BlockSparse):
    """Every block of 16 sees itself."""

    def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern | None:
        blocks = in_a_row(here.num_image, 16, q.device)
        return Pattern(blocks, blocks, torch.eye(blocks.num, dtype=torch.bool).expand(q.shape[1], -1, -1))


class Uneven(BlockSparse):
    """Every block of 20 sees itself; the last has 8 tokens."""

    def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern | None:
        blocks = in_a_row(here.num_image, 20, q.device)
        return Pattern(blocks, blocks, torch.eye(blocks.num, dtype=torch.bool).expand(q.shape[1], -1, -1))


def attended(settings: SparseSettings, step: int, layer: int, num_text: int = 0) -> tuple[Tensor, Log]:
    log, attend = Log(8), Diagonal(settings, GEOMETRY).attend
    return attend(*qkv(TOKENS + num_text), here(log, range(2), step, layer), dense), log


@pytest.mark.parametrize(
    ("step", "layer", "is_dense"), [(0, 5, True), (1, 5, True), (2, 5, False), (2, 0, True), (2, 1, False), (9, 7, False)]
)
def test_the_first_steps_and_layers_attend_to_everything_bit_for_bit(step: int, layer: int, is_dense: bool) -> None:
    found, log = attended(SparseSettings(dense_steps=0.2, dense_layers=0.03), step, layer)
    assert torch.equal(found, dense(*qkv())) == is_dense
    assert float(log.calls[0].density) == pytest.approx(1.0 if is_dense else 1 / 3)


def test_image_tokens_see_their_pattern_and_the_text_which_sees_all() -> None:
    found, _ = attended(SparseSettings(dense_steps=0, dense_layers=0), 0, 0, num_text=5)
    q, k, v = qkv(TOKENS + 5)
    seen = torch.zeros(TOKENS + 5, TOKENS + 5, dtype=torch.bool)
    for start in range(0, TOKENS, 16):
        seen[start : start + 16, start : start + 16] = True
    seen[TOKENS:], seen[:, TOKENS:] = True, True
    scores = (q @ k.transpose(2, 3) / math.sqrt(8)).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(found, torch.softmax(scores, dim=-1) @ v)


def test_recall_is_measured_unless_told_otherwise() -> None:
    assert attended(SparseSettings(dense_steps=0, dense_layers=0), 0, 0)[1].calls[0].recall is not None
    assert attended(SparseSettings(dense_steps=0, dense_layers=0, measure_recall=False), 0, 0)[1].calls[0].recall is None


def test_another_expert_has_a_method_of_its_own() -> None:
    made: list[Told] = []

    def make() -> Told:
        made.append(Told())
        return made[-1]

    seam = Seam(dense)
    boost = Boost((make,), EVENT, GEOMETRY)
    boost.attach(seam)
    seam.cut(TOKENS)
    for step, owner in ((0, "high"), (1, "high"), (2, "low")):
        boost.at(step, LEVEL)
        boost.tokens(owner, None)
        seam(*qkv())
    assert [len(told.here) for told in made] == [2, 1]
    assert made[1].here[0].now.event.steps == range(2, 10)


def test_roles_are_told_by_what_an_object_can_do() -> None:
    assert isinstance(Told(), Attending)
    assert not isinstance(SomeBlocks(), Attending)


def test_a_step_that_the_other_branch_alone_attended_in_is_told_and_steps_without_are_not() -> None:
    log = Log(num_layers=1)
    log.add(here(log, range(2), step=4), 0.5, torch.tensor(0.75))
    other = torch.tensor([[0.0] * 5, [1.0, 0.2, 0.0, 0.0, 0.8], [0.0] * 5], dtype=torch.float64)

    def gather_rows(rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        return torch.cat([rows, other.unsqueeze(0)])

    group: Any = SimpleNamespace(size=2, device=torch.device("cpu"), gather_rows=gather_rows)
    saved, steps = log.settle(group, [3, 5, 4])
    assert saved == pytest.approx((0.5 + 0.8) / 2)
    assert [(row.step, row.sparsity, row.recall) for row in steps] == [(5, pytest.approx(0.8), None), (4, 0.5, 0.75)]
