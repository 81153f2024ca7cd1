"""SVG2 (arXiv 2505.18875): tokens are put in clusters by meaning; clusters of queries attend to the clusters that matter to them.

Queries and keys of each head are clustered by k-means, from scratch at a layer's first sparse step of a stage and a few rounds
further at every step after it. What a cluster of queries gives to one of keys is reckoned from their means, times the number of
keys; each keeps the fewest clusters that come to ``top_p``, and never less than ``floor`` of them.

By its traffic of memory a round takes a fifteenth of a layer's dense attention, an estimate: fifty of them more than three dense
steps. So a short stage has fewer first rounds, and one too short for any use of them stays dense; that is ours.

The numbers of clusters are published for one length of sequence each (``at_tokens``); of fewer or more tokens there are
proportionally fewer or more, so that a cluster has as many on average.

Clusters have any size, blocks have one. Each cluster is padded to whole blocks of its own, whose gaps nobody attends to: exactly
the pairs of kept clusters are attended to, at the cost of half a block of each on average.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.methods import Method, Request
from orchestrator.model_geometry import ModelGeometry
from stages.accelerators.attending import Here
from stages.accelerators.block_sparse import KEY_BLOCK, QUERY_BLOCK, BlockSparse, SparseSettings
from stages.accelerators.svg import dense_steps, with_usual
from stages.sparse.choosing import largest, reaching
from stages.sparse.clusters import Clusters, clustered, first_centres, in_blocks
from stages.sparse.pattern import Pattern

WAN_TOKENS = 21 * 45 * 80
HUNYUAN_TOKENS = 33 * 45 * 80
"""Of 720p: 81 frames by Wan, 129 by HunyuanVideo."""


LEAST_ROUNDS = 10
"""From scratch: after fewer, clusters say little."""


class Svg2Settings(SparseSettings):
    """The defaults are those for HunyuanVideo; those of Wan are taken for Wan."""

    dense_steps: float = Field(0.1, ge=0, le=1)
    """Share of the clip's steps, the first ones, that attend to everything: as of svg, 0.2 on Wan, 0.35 from a first frame."""
    query_clusters: int = Field(400, ge=1)
    """Clusters of queries of a head at ``at_tokens``; 300 on Wan."""
    key_clusters: int = Field(1000, ge=1)
    """Clusters of keys."""
    at_tokens: int = Field(HUNYUAN_TOKENS, ge=1)
    """Tokens for which the numbers of clusters hold, others in proportion; 75600 on Wan."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Of a cluster of queries: the weight that the clusters of keys it keeps come to; 1: everything."""
    floor: float = Field(0.1, ge=0, le=1)
    """Share of the clusters of keys that are kept in any case, rounded up."""
    first_rounds: int = Field(50, ge=1)
    """Of k-means, from scratch, at most."""
    first_rounds_per_step: int = Field(5, ge=1)
    """First rounds for each step that is left in the stage, ours; where that comes to fewer than 10 it stays dense."""
    rounds: int = Field(2, ge=1)
    """Of k-means, at each step after that."""

    def rounds_from_scratch(self, num_steps: int) -> int:
        """For so many steps, of which the first is next; 0: they would not be worth it."""
        rounds = min(self.first_rounds, num_steps * self.first_rounds_per_step)
        return rounds if rounds >= min(self.first_rounds, LEAST_ROUNDS) else 0

    def num(self, published: int, num_tokens: int) -> int:
        """Clusters of so many tokens: one at least, and no more than tokens."""
        return min(num_tokens, max(1, round(published * num_tokens / self.at_tokens)))


def resolve(settings: Svg2Settings, request: Request) -> Svg2Settings:
    is_wan = request.geometry.family == "wan"
    usual = {"dense_steps": dense_steps(request.geometry)}
    usual |= {"query_clusters": 300, "at_tokens": WAN_TOKENS} if is_wan else {}
    found: Svg2Settings = with_usual(settings, usual)
    return found


class Svg2(BlockSparse):
    """Of one stage: centres are of its grid."""

    def __init__(self, settings: Svg2Settings, geometry: ModelGeometry) -> None:
        super().__init__(settings, geometry)
        self.settings = settings
        self._centres: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        """Of queries and keys, by branch, layer and first head."""

    def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern | None:
        place, own = (here.now.branch, here.layer, here.heads.start), self.settings
        rounds = own.rounds if place in self._centres else own.rounds_from_scratch(here.now.event.last - here.now.step + 1)
        if own.top_p == 1 or rounds == 0:
            return None
        queries, keys = (
            clustered(x, centres, rounds) for x, centres in zip((q[0], k[0]), self._begun(q[0], k[0], place), strict=True)
        )
        self._centres[place] = queries.centres, keys.centres
        kept = kept_clusters(queries.centres, keys, q.shape[-1], own.top_p, own.floor)
        return in_clusters(queries, keys, kept, (QUERY_BLOCK, KEY_BLOCK))

    def _begun(self, q: Tensor, k: Tensor, place: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Centres of the step before, or tokens where there was none."""
        if (known := self._centres.get(place)) is not None:
            return known
        pairs = ((q, self.settings.query_clusters), (k, self.settings.key_clusters))
        queries, keys = (first_centres(x, self.settings.num(num, x.shape[1])) for x, num in pairs)
        return queries, keys


def kept_clusters(queries: Tensor, keys: Clusters, head_dim: int, top_p: float, floor: float) -> Tensor:
    """By means of queries ``[heads, n, d]``, which clusters of keys: ``[heads, n, m]`` bool."""
    scores = queries @ keys.centres.transpose(1, 2) * head_dim**-0.5 + keys.counts.unsqueeze(1).log()
    weights = torch.softmax(scores, dim=-1)
    return reaching(weights, top_p) | largest(weights, math.ceil(floor * weights.shape[-1]))


def in_clusters(queries: Clusters, keys: Clusters, kept: Tensor, sizes: tuple[int, int]) -> Pattern:
    """The pattern that keeps the pairs of ``kept [heads, clusters, clusters]``, and no other."""
    rows, whose_row = in_blocks(queries.labels, queries.counts, sizes[0])
    columns, whose_column = in_blocks(keys.labels, keys.counts, sizes[1])
    kept = torch.nn.functional.pad(kept, (0, 1, 0, 1))
    keep = torch.take_along_dim(kept, whose_row.unsqueeze(2), dim=1)
    return Pattern(rows, columns, torch.take_along_dim(keep, whose_column.unsqueeze(1), dim=2))


def kept_tensors(settings: Svg2Settings, geometry: ModelGeometry) -> float:
    """Centres of every layer, in double width."""
    return 2 * geometry.num_layers * (settings.query_clusters + settings.key_clusters) / settings.at_tokens


METHODS = {
    "svg2": Method(
        "svg2", "accelerator", "attention", "SVG2, Sparse VideoGen 2, arXiv 2505.18875",
        "tokens are clustered by k-means; clusters of queries attend to the clusters of keys that matter to them", "release",
        make=Svg2,
        settings=Svg2Settings,
        resolve=resolve,
        kept_tensors=kept_tensors,
    )
}  # fmt: skip
