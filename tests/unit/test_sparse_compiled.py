"""The compiled kernel of sparse attention: compiled once for all sizes, its seconds told apart; nothing quadratic on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from stages.accelerators.attending import Stopwatch
from stages.compiling import compile_seconds, num_graphs
from stages.sparse import kernel
from stages.sparse.kernel import by_blocks
from stages.sparse.pattern import Pattern, in_a_row

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What has been compiled: by a compiler that takes graphs as they are, so that sizes alone decide."""
    graphs: list[Any] = []

    def as_it_is(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    own = torch.compile
    monkeypatch.setattr(torch, "compile", lambda fn, **more: own(fn, **{**more, "backend": as_it_is}))
    torch._dynamo.reset()
    kernel.compiled.cache_clear()
    yield graphs
    kernel.compiled.cache_clear()


@torch.inference_mode()
def attend(heads: int, num_tokens: int, size: int = 16, key_size: int | None = None) -> None:
    queries, keys = in_a_row(num_tokens, size, CPU), in_a_row(num_tokens, key_size or size, CPU)
    q, k, v = torch.randn(3, 1, heads, num_tokens, 16)
    by_blocks(q, k, v, Pattern(queries, keys, torch.ones(heads, queries.num, keys.num, dtype=torch.bool)))


def test_sizes_that_are_alike_by_chance_at_first_may_differ_later(compiled: list[Any]) -> None:
    attend(4, 64)  # as many heads as blocks
    for heads, num_tokens in ((4, 100), (6, 64), (3, 128)):
        attend(heads, num_tokens)
    assert len(compiled) == 1


def numbers(graph: Any) -> tuple[Any, ...]:
    """The sizes of blocks, and those of tiles, that FlexAttention is called with."""
    call = next(node for node in graph.graph.nodes if "flex_attention" in str(node.target))
    *_, queries, keys, _ = call.args[4]
    return queries, keys, call.args[6].get("BLOCK_M"), call.args[6].get("BLOCK_N")


def test_blocks_of_another_size_are_compiled_anew_with_their_numbers(compiled: list[Any]) -> None:
    for size, key_size in ((64, 64), (16, 16), (32, 64), (64, 64), (128, 64), (256, 64), (40, 40)):
        attend(2, 300, size, key_size)
    found = [(64, 64, 32, 64), (16, 16, 16, 16), (32, 64, 32, 64), (128, 64, None, 64), (256, 64, None, 64), (48, 48, 16, 16)]
    assert [numbers(graph) for graph in compiled] == found


def test_seconds_of_compiling_the_kernel_are_told_apart_from_work() -> None:
    before_s, graphs = compile_seconds(), num_graphs()
    attend(5, 128)
    after_s = compile_seconds()
    attend(3, 144)
    assert num_graphs() == graphs + 1
    assert after_s > before_s
    assert compile_seconds() == after_s


def test_a_stopwatch_leaves_out_compiling_and_adds_up_what_it_is_entered_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, compiling = iter([10.0, 17.0, 20.0, 21.0, 30.0, 32.0]), iter([0.0, 5.0, 5.0, 5.0, 5.0, 9.0])
    monkeypatch.setattr("stages.accelerators.attending.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("stages.accelerators.attending.compile_seconds", lambda: next(compiling))
    watch = Stopwatch(CPU)
    assert watch.seconds() == 0
    told = []
    for _ in range(3):
        with watch:
            pass
        told.append(watch.seconds())
    assert told == [2.0, 3.0, 3.0], "a device that had other work meanwhile was not kept waiting for all of the compiling"
