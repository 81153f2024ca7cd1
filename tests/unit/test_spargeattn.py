"""SpargeAttn: the blocks that its rule keeps, by plain Python, and the package's kernel in our kernel's place."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.methods import find, read_settings
from stages.accelerators.attending import Log
from stages.accelerators.spargeattn import Rule, SpargeAttn, by_package, means, package_blocks, row_mask, similarity
from stages.sparse.kernel import attend
from stages.sparse.pattern import Pattern, in_a_row
from tests.unit.attention_calls import GEOMETRY, dense, here, masked, qkv

SIZES = (8, 4)
GRID = (3, 5, 5)
NUM = 75
"""Neither 8 nor 4 divides it."""


def made(**settings: Any) -> SpargeAttn:
    method = find("spargeattn", "accelerator")
    attending: SpargeAttn = method.make(read_settings(method, settings), GEOMETRY)
    return attending


def structured(heads: int = 2) -> tuple[Tensor, Tensor]:
    """Queries and keys ``[heads, 75, 8]``, of which some blocks point one way and others any way."""
    q, k, _ = qkv(NUM, seed=4, heads=heads)
    same = qkv(NUM, seed=5, heads=heads)[0][:, :, :1] * 4
    calm = (torch.arange(NUM) // 8 % 3 != 1)[None, None, :, None]
    return (q * 0.4 + same * calm)[0], (k * 0.4 - same * calm + 3)[0]


def blocks(x: Tensor, size: int) -> list[list[list[float]]]:
    rows = x.double().tolist()
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def mean_of(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def cosine(a: list[float], b: list[float]) -> float:
    return dot(a, b) / math.hypot(*a) / math.hypot(*b)


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def alike(rows: list[list[float]]) -> float:
    return sum(cosine(a, b) for a in rows for b in rows) / len(rows) ** 2


def restated(q: Tensor, k: Tensor, rule: Rule) -> list[list[bool]]:
    """The rule for one head, ``[tokens, d]`` each, in so many words."""
    smooth = blocks(k - k.mean(0) if rule.smooth_k else k, SIZES[1])
    rows, columns = blocks(q, SIZES[0]), blocks(k, SIZES[1])
    stands = [alike(block) > rule.similarity for block in smooth]
    kept = []
    for row in rows:
        if not alike(row) > rule.similarity or not any(stands):
            kept.append([True] * len(columns))
            continue
        scores = [math.exp(dot(mean_of(row), mean_of(column)) / math.sqrt(q.shape[1])) for column in columns]
        total = sum(score for score, stand in zip(scores, stands, strict=True) if stand)
        shares = [score / total if stand else 0.0 for score, stand in zip(scores, stands, strict=True)]
        order = sorted(range(len(columns)), key=lambda i: -shares[i])
        if rule.topk is None:
            num, mass = 0, 0.0
            while mass < rule.mass:
                mass, num = mass + shares[order[num]], num + 1
        else:
            num = max(1, int(rule.topk * len(columns)))
        kept.append([i in order[:num] or not stands[i] for i in range(len(columns))])
    return kept


@pytest.mark.parametrize(
    "rule",
    [
        Rule(0.5, 1.0, -0.1, True),
        Rule(0.2, 1.0, 0.3, True),
        Rule(0.01, 1.0, 0.3, False),
        Rule(None, 0.98, 0.6, True),
        Rule(None, 0.7, 0.3, True),
        Rule(None, 0.3, 0.9, False),
        Rule(0.2, 1.0, 1.0, True),
    ],
    ids=lambda rule: f"{rule.topk}-{rule.mass}-{rule.similarity}-{rule.smooth_k}",
)
def test_every_head_keeps_exactly_the_blocks_that_the_rule_says(rule: Rule) -> None:
    q, k = structured()
    expected = [restated(*head, rule) for head in zip(q, k, strict=True)]
    assert rule.kept(q, k, SIZES).tolist() == expected


def test_the_rule_tells_blocks_apart() -> None:
    """So that the test above does not compare all with all."""
    q, k = structured()
    kept = Rule(None, 0.7, 0.3, True).kept(q, k, SIZES)
    of_row = kept.all(2)
    assert of_row.any()
    assert not of_row.all()
    of_column = kept.all(1)
    assert of_column.any()
    assert not of_column.all()


def test_keys_that_share_a_mean_are_compared_without_it() -> None:
    """Noise about one large key: alike as it stands, and not at all beside its mean."""
    q, k = torch.ones(1, NUM, 8), qkv(NUM)[1][0, :1] + 20
    assert Rule(0.2, 1.0, 0.6, True).kept(q, k, SIZES).all()
    assert not Rule(0.2, 1.0, 0.6, False).kept(q, k, SIZES).all()


def test_a_block_of_one_direction_is_wholly_similar_and_one_of_opposites_not_at_all() -> None:
    x = torch.tensor([[[1.0, 0], [5, 0], [2, 0], [-2, 0], [0, 3.0]]])
    assert similarity(x, 2).tolist() == [[1.0, 0.0, 1.0]]
    assert means(x, 2).tolist() == [[[3.0, 0], [0, 0], [0, 3.0]]]


@pytest.mark.parametrize("settings", [{"topk": 1}, {"cdfthreshd": 1}])
def test_keeping_all_is_the_dense_kernel_to_the_bit(settings: dict[str, float]) -> None:
    q, k, v = qkv(NUM)
    log = Log(7)
    assert torch.equal(made(**settings).attend(q, k, v, here(GRID, log), dense), dense(q, k, v))
    assert log.settle(None)[0] == 0


def test_blocks_that_are_never_similar_enough_are_attended_to_in_full() -> None:
    q, k, v = qkv(300)
    log = Log(7)
    out = made(simthreshd1=1).attend(q, k, v, here((3, 10, 10), log), dense)
    torch.testing.assert_close(out, dense(q, k, v))
    assert log.settle(None)[1][0].sparsity == pytest.approx(0)


def test_what_is_kept_is_attended_to_and_text_by_all_and_all_by_text() -> None:
    q, k, v = qkv(307)
    log, attending = Log(7), made(topk=0.4)
    out = attending.attend(q, k, v, here((3, 10, 10), log), dense)
    kept = Rule(0.4, 1.0, -0.1, True).kept(q[0, :, :300], k[0, :, :300], (128, 64))
    assert kept.sum(-1).eq(2).all(), "of five"
    seen = torch.ones(2, 307, 307, dtype=torch.bool)
    seen[:, :300, :300] = kept.repeat_interleave(128, 1)[:, :300].repeat_interleave(64, 2)[:, :, :300]
    torch.testing.assert_close(out, masked(q, k, v, seen))
    assert log.settle(None)[1][0].sparsity == pytest.approx(1 - float(seen.double().mean()))


def test_no_step_and_no_layer_is_dense_by_itself_as_published() -> None:
    attending = made()
    assert not attending.is_dense(here(GRID, Log(7), step=0, layer=0))
    assert made(dense_steps=0.3).is_dense(here(GRID, Log(7), step=2))


def test_both_presets_are_the_releases() -> None:
    assert made().settings.rule == Rule(0.5, 1.0, -0.1, True)
    assert made(cdfthreshd=0.98).settings.rule == Rule(None, 0.98, 0.6, True)
    with pytest.raises(ValueError, match=r"topk is 0.5 and cdfthreshd 0.9: give one of them"):
        made(topk=0.5, cdfthreshd=0.9)


def gappy() -> tuple[Tensor, Tensor, Tensor, Pattern]:
    """Two heads of 300 image tokens and 7 of text, in blocks of their own."""
    kept = Rule(0.4, 1.0, -0.1, True).kept(qkv(307)[0][0, :, :300], qkv(307)[1][0, :, :300], (128, 64))
    pattern = Pattern(in_a_row(300, 128, kept.device), in_a_row(300, 64, kept.device), kept).with_text(7)
    return *qkv(307), pattern


def test_without_gaps_a_block_that_spans_two_keeps_what_either_does() -> None:
    *_, pattern = gappy()
    wide = Pattern(in_a_row(307, 128, pattern.keep.device), in_a_row(307, 64, pattern.keep.device), row_mask(pattern))
    assert (wide.pairs() | ~pattern.pairs()).all()
    assert torch.equal(wide.keep[:, :2, :4], pattern.keep[:, :2, :4]), "blocks of image tokens alone"
    assert wide.keep[:, 2:].all()
    assert wide.keep[:, :, 4:].all()


def package(calls: list[dict[str, Any]]) -> ModuleType:
    """One that computes what it is told to by the reference."""

    def run(q: Tensor, k: Tensor, v: Tensor, mask_id: Tensor, pvthreshd: float) -> Tensor:
        calls.append({"mask": mask_id, "pvthreshd": pvthreshd})
        sizes = (in_a_row(q.shape[2], 128, q.device), in_a_row(q.shape[2], 64, q.device))
        return attend(q, k, v, Pattern(*sizes, mask_id[0].bool()))

    module = ModuleType("spas_sage_attn")
    module.block_sparse_sage2_attn_cuda = run  # type: ignore[attr-defined]
    return module


def test_the_package_is_told_the_pattern_and_computes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "spas_sage_attn", package(calls))
    q, k, v, pattern = gappy()
    wide = row_mask(pattern).repeat_interleave(128, 1)[:, :307].repeat_interleave(64, 2)[:, :, :307]
    torch.testing.assert_close(by_package(q, k, v, pattern, 20), masked(q, k, v, wide))
    (call,) = calls
    assert call["mask"].shape == (1, 2, 3, 5)
    assert call["pvthreshd"] == 20


def test_it_is_the_package_that_computes_where_it_takes_the_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, "spas_sage_attn", package(calls))
    q, k, v = qkv(300)
    for takes in (True, False):
        monkeypatch.setattr(SpargeAttn, "_takes", lambda self, q, takes=takes: takes)
        made().attend(q, k, v, here((3, 10, 10), Log(7)), dense)
    assert len(calls) == 1


def test_on_a_processor_and_without_the_package_our_kernel_computes() -> None:
    assert not made()._takes(torch.zeros(1, 2, 300, 64, dtype=torch.bfloat16))
    assert package_blocks(torch.device("cpu")) == (128, 64)
