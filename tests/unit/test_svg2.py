"""SVG2: k-means, clusters in blocks, the clusters that are kept, and what is attended to, by the definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model
from orchestrator.methods import Request, find, read_settings
from stages.accelerators import svg2
from stages.accelerators.attending import Log
from stages.accelerators.svg2 import Svg2, Svg2Settings, in_clusters, kept_clusters
from stages.sparse.clusters import Clusters, clustered, first_centres, in_blocks, nearest, with_ones
from stages.sparse.kernel import attend, by_blocks
from stages.sparse.pattern import NO_TOKEN
from tests.unit.attention_calls import GEOMETRY, dense, here, masked, qkv

GRID = (3, 5, 7)
NUM = 105
SMALL = {"dense_steps": 0, "dense_layers": 0, "query_clusters": 5, "key_clusters": 9, "at_tokens": NUM, "top_p": 0.6}


def made(**settings: object) -> Svg2:
    method = find("svg2", "accelerator")
    attending: Svg2 = method.make(read_settings(method, {**SMALL, **settings}), GEOMETRY)
    return attending


def lumps(num_tokens: int = NUM, heads: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values that lie about a few points, shuffled among the tokens."""
    q, k, v = qkv(num_tokens, heads=heads)
    which = torch.randperm(num_tokens, generator=torch.Generator().manual_seed(7)) % 6
    points = qkv(6, seed=3, heads=heads)
    return q * 0.4 + 2 * points[0][:, :, which], k * 0.4 + 2 * points[1][:, :, which], v


def by_hand(x: list[list[float]], centres: list[list[float]], rounds: int) -> tuple[list[int], list[list[float]]]:
    """k-means in so many words."""
    labels: list[int] = []
    for _ in range(rounds):
        labels = [min(range(len(centres)), key=lambda c: math.dist(row, centres[c])) for row in x]
        for c in range(len(centres)):
            mine = [row for row, label in zip(x, labels, strict=True) if label == c]
            if mine:
                centres[c] = [sum(column) / len(mine) for column in zip(*mine, strict=True)]
    return labels, centres


@pytest.mark.parametrize("rounds", [1, 2, 7])
def test_k_means_are_those_of_the_textbook_head_by_head(rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = lumps()[1][0]
    found = clustered(x, first_centres(x, 9), rounds)
    for head in range(2):
        rows = x[head].double().tolist()
        first = [rows[(2 * i + 1) * NUM // 18] for i in range(9)]
        labels, centres = by_hand(rows, first, rounds)
        assert found.labels[head].tolist() == labels
        torch.testing.assert_close(found.centres[head].double(), torch.tensor(centres, dtype=torch.float64), atol=1e-5, rtol=0)
        assert found.counts[head].tolist() == [labels.count(c) for c in range(9)]
    monkeypatch.setattr("stages.sparse.clusters.MOST_DISTANCES", 1)
    assert torch.equal(clustered(x, first_centres(x, 9), rounds).labels, found.labels), "one head after the other"


def test_a_cluster_without_tokens_keeps_its_centre() -> None:
    x = torch.tensor([[[0.0], [1.0], [2.0]]])
    found = clustered(x, torch.tensor([[[1.0], [50.0]]]), 3)
    assert found.centres.tolist() == [[[1.0], [50.0]]]
    assert found.counts.tolist() == [[3, 0]]


@given(st.lists(st.lists(st.integers(0, 4), min_size=11, max_size=11), min_size=1, max_size=3), st.sampled_from([1, 2, 4, 16]))
def test_every_token_lies_in_a_block_of_its_cluster_and_no_block_mixes_two(labels: list[list[int]], size: int) -> None:
    given_labels = torch.tensor(labels)
    counts = torch.nn.functional.one_hot(given_labels, 5).sum(1)
    blocks, whose = in_blocks(given_labels, counts, size)
    for slots, owners, mine in zip(blocks.slots.tolist(), whose.tolist(), labels, strict=True):
        held = [slot for slot in slots if slot != NO_TOKEN]
        assert sorted(held) == list(range(11))
        parts = [slots[i : i + size] for i in range(0, len(slots), size)]
        for part, owner in zip(parts, owners, strict=True):
            assert {mine[slot] for slot in part if slot != NO_TOKEN} == ({owner} if owner < 5 else set())
        assert sum(owner < 5 for owner in owners) == sum(math.ceil(mine.count(c) / size) for c in range(5))


def restated(queries: Tensor, keys: Clusters, head: int, top_p: float, floor: float) -> list[list[bool]]:
    counts, centres = keys.counts[head].tolist(), keys.centres[head].tolist()
    kept = []
    for row in queries[head].tolist():
        pairs = zip(centres, counts, strict=True)
        masses = [num * math.exp(sum(a * b for a, b in zip(row, c, strict=True)) / math.sqrt(len(row))) for c, num in pairs]
        order = sorted(range(len(masses)), key=lambda i: -masses[i])
        num, mass = 0, 0.0
        while mass < top_p * sum(masses):
            mass, num = mass + masses[order[num]], num + 1
        kept.append([i in order[: max(num, math.ceil(floor * len(masses)))] for i in range(len(masses))])
    return kept


@pytest.mark.parametrize(("top_p", "floor"), [(0.9, 0.1), (0.6, 0.0), (0.3, 0.5)])
def test_a_cluster_of_queries_keeps_the_fewest_clusters_that_come_to_its_mass_and_never_less_than_the_floor(
    top_p: float, floor: float
) -> None:
    q, k, _ = lumps()
    queries, keys = (clustered(x[0], first_centres(x[0], num), 4) for x, num in ((q, 5), (k, 9)))
    found = kept_clusters(queries.centres, keys, 8, top_p, floor)
    assert found.tolist() == [restated(queries.centres, keys, head, top_p, floor) for head in range(2)]


def test_exactly_the_pairs_of_kept_clusters_are_attended_to_and_text_by_all() -> None:
    q, k, v = lumps(NUM + 6)
    log, attending = Log(7), made()
    out = attending.attend(q, k, v, here(GRID, log), dense)
    queries, keys = (clustered(x[0, :, :NUM], first_centres(x[0, :, :NUM], num), 50) for x, num in ((q, 5), (k, 9)))
    seen = torch.ones(2, NUM + 6, NUM + 6, dtype=torch.bool)
    for head in range(2):
        kept = torch.tensor(restated(queries.centres, keys, head, 0.6, 0.1))
        seen[head, :NUM, :NUM] = kept[queries.labels[head]][:, keys.labels[head]]
    assert 0.2 < seen.double().mean() < 0.9
    torch.testing.assert_close(out, masked(q, k, v, seen))
    assert log.settle(None)[1][0].sparsity == pytest.approx(1 - float(seen.double().mean()))


def test_block_by_block_it_comes_to_the_same_gaps_and_empty_blocks_and_all() -> None:
    q, k, v = lumps()
    queries, keys = (clustered(x[0], first_centres(x[0], num), 4) for x, num in ((q, 5), (k, 9)))
    pattern = in_clusters(queries, keys, kept_clusters(queries.centres, keys, 8, 0.6, 0.1), (16, 16))
    assert (pattern.queries.counts == 0).any()
    torch.testing.assert_close(by_blocks(q, k, v, pattern, run=flex_attention), attend(q, k, v, pattern))


def test_centres_are_found_once_for_a_branch_and_a_layer_and_followed_from_step_to_step(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []

    def noted(x: Tensor, centres: Tensor, rounds: int) -> Clusters:
        told.append((centres.shape[1], rounds))
        return clustered(x, centres, rounds)

    monkeypatch.setattr(svg2, "clustered", noted)
    attending, log = made(first_rounds_per_step=25), Log(7)
    for step, layer, branch in ((0, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 0), (1, 1, 0), (1, 0, 1)):
        attending.attend(*lumps(), here(GRID, log, step, layer, branch), dense)
    assert told == [(5, 50), (9, 50)] * 3 + [(5, 2), (9, 2)] * 3
    attending.attend(*lumps(), here(GRID, log, 1, 0, heads=range(2, 4)), dense)
    assert told[-2:] == [(5, 50), (9, 50)], "other heads of the same layer"
    made(first_rounds_per_step=25).attend(*lumps(), here(GRID, log, 2), dense)
    assert told[-2:] == [(5, 50), (9, 50)], "another stage"


def test_a_short_stage_has_fewer_first_rounds_and_the_shortest_none() -> None:
    found = [Svg2Settings().rounds_from_scratch(num) for num in (1, 2, 9, 10, 50)]
    assert found == [0, 10, 45, 50, 50]
    assert Svg2Settings(first_rounds=4).rounds_from_scratch(1) == 4


def test_a_stage_stays_dense_whose_steps_would_not_cover_the_first_rounds_and_others_have_as_many_as_they_cover() -> None:
    q, k, v = lumps()
    log, attending = Log(7), made()
    assert torch.equal(attending.attend(q, k, v, here(GRID, log, 4, steps=range(4, 5)), dense), dense(q, k, v))
    assert [call.density for call in log.calls] == [1.0]
    attending.attend(q, k, v, here(GRID, log, 7, steps=range(4, 10)), dense)
    expected = clustered(k[0], first_centres(k[0], 9), 15).centres
    torch.testing.assert_close(attending._centres[0, 0, 0][1], expected)
    attending.attend(q, k, v, here(GRID, log, 9, steps=range(4, 10)), dense)
    assert float(log.calls[-1].density) < 1, "its last step goes on from the centres there are"


def test_the_nearest_centre_is_found_in_half_width_too() -> None:
    """Centres far from 0 and close together: of their squares every digit counts."""
    x, centres = (torch.randn(2, num, 8, generator=torch.Generator().manual_seed(num)).bfloat16() for num in (200, 30))
    x, centres = x + 9, (centres * 0.5 + 9)
    found = nearest(with_ones(x), centres.float())
    squares = (x.double().unsqueeze(2) - centres.double().unsqueeze(1)).square().sum(-1)
    assert torch.equal(squares.gather(2, found.unsqueeze(2)).squeeze(2), squares.min(-1).values)


def test_a_step_goes_on_from_the_centres_of_the_step_before() -> None:
    attending, log = made(first_rounds=1, rounds=1), Log(7)
    q, k, v = lumps()
    attending.attend(q, k, v, here(GRID, log, 0), dense)
    attending.attend(q, k, v, here(GRID, log, 1), dense)
    expected = clustered(k[0], first_centres(k[0], 9), 2).centres
    torch.testing.assert_close(attending._centres[0, 0, 0][1], expected)


def test_all_of_the_mass_is_the_dense_kernel_to_the_bit() -> None:
    q, k, v = lumps()
    assert torch.equal(made(top_p=1).attend(q, k, v, here(GRID, Log(7)), dense), dense(q, k, v))


def test_shorter_sequences_have_proportionally_fewer_clusters() -> None:
    settings = Svg2Settings()
    assert [settings.num(400, num) for num in (118_800, 59_400, 1_000, 10, 1)] == [400, 200, 3, 1, 1]
    assert settings.num(1000, 118_800 * 2) == 2000
    assert Svg2Settings(at_tokens=1).num(1000, 7) == 7


@pytest.mark.parametrize(
    ("name", "queries", "tokens", "dense_steps"),
    [("hunyuanvideo", 400, 118_800, 0.1), ("wan2.1-14b", 300, 75_600, 0.2), ("wan2.2-i2v-a14b", 300, 75_600, 0.35)],
)
def test_a_model_has_what_is_published_for_its_family(name: str, queries: int, tokens: int, dense_steps: float) -> None:
    method, geometry = find("svg2", "accelerator"), model(name)
    request = Request(geometry, geometry.default_shape, 50, 1.0, "full", DvgConfig())
    found = method.resolve(read_settings(method, {}), request)
    assert (found.query_clusters, found.key_clusters, found.at_tokens) == (queries, 1000, tokens)
    assert (found.dense_steps, found.dense_layers, found.top_p, found.floor) == (dense_steps, 0.03, 0.9, 0.1)
    assert (found.first_rounds, found.rounds) == (50, 2)
    assert method.resolve(read_settings(method, {"query_clusters": 7}), request).query_clusters == 7
