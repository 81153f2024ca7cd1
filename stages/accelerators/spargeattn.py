"""SpargeAttn (arXiv 2502.18137): blocks of keys are kept by attention among the means of blocks, where means stand for blocks.

A block stands for its tokens while these point the same way: its self-similarity, the mean cosine between any two of them, is
above ``simthreshd1``. A block of queries that is not self-similar attends to everything, and a block of keys that is not is
attended to by all; the others are ranked by a softmax over the means of self-similar blocks of keys. Subtracting the mean key
moves a row of scores as a whole, so it counts in self-similarity alone.

Our own kernel computes the kept blocks as they are. The package, where it is installed and knows the shape of head, computes the
same pattern with queries and keys in eight bits, and leaves out what is below ``pvthreshd`` besides.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from orchestrator.methods import Method
from orchestrator.model_geometry import ModelGeometry
from stages.accelerators.attending import Here
from stages.accelerators.block_sparse import KEY_BLOCK, QUERY_BLOCK, BlockSparse, SparseSettings
from stages.sparse.choosing import largest, reaching
from stages.sparse.pattern import Blocks, Pattern, in_a_row

TOPK, TOPK_SIMILARITY = 0.5, -0.1
CDF_SIMILARITY = 0.6
"""The two presets of the release: top-k of .5, and a cumulative mass of .98, each with its ``simthreshd1``."""
PACKAGE = "spas_sage_attn"
PACKAGE_HEADS = (64, 128)
PACKAGE_TOKENS = 128
"""Fewest tokens that the package takes."""
HOPPER = (9, 0)


class SpargeSettings(SparseSettings):
    """The defaults are the release's preset by top-k; ``cdfthreshd: 0.98`` is the other one."""

    dense_steps: float = Field(0.0, ge=0, le=1)
    """Share of the clip's steps, the first ones, that attend to everything."""
    dense_layers: float = Field(0.0, ge=0, le=1)
    """Share of the layers, the first ones, that always attend to everything; rounded up."""
    topk: float | None = Field(None, ge=0, le=1)
    """Share of the blocks of keys that each block of queries keeps, one at least; 1: all. None: 0.5, unless by mass."""
    cdfthreshd: float | None = Field(None, gt=0, le=1)
    """Instead: the fewest blocks whose weights come to this; published with 0.98; 1: all."""
    simthreshd1: float | None = Field(None, ge=-1, le=1)
    """Blocks of this self-similarity or less attend, and are attended to, in full. None: -0.1 by top-k, 0.6 by mass."""
    smooth_k: bool = True
    """Whether the mean key is subtracted before keys are compared."""
    package: bool = True
    """Whether spas_sage_attn computes what is kept, on GPUs where it is installed; it computes in eight bits."""
    pvthreshd: float = Field(50, gt=0)
    """Of the package: weights whose logits are so far below the largest are not used."""

    @model_validator(mode="after")
    def _check(self) -> SpargeSettings:
        if self.topk is not None and self.cdfthreshd is not None:
            raise ValueError(f"topk is {self.topk} and cdfthreshd {self.cdfthreshd}: give one of them")
        return self

    @property
    def rule(self) -> Rule:
        if self.cdfthreshd is not None:
            return Rule(None, self.cdfthreshd, CDF_SIMILARITY if self.simthreshd1 is None else self.simthreshd1, self.smooth_k)
        topk = TOPK if self.topk is None else self.topk
        return Rule(topk, 1.0, TOPK_SIMILARITY if self.simthreshd1 is None else self.simthreshd1, self.smooth_k)


@dataclass(frozen=True)
class Rule:
    """Which blocks of keys a block of queries keeps."""

    topk: float | None
    mass: float
    similarity: float
    smooth_k: bool

    @property
    def keeps_all(self) -> bool:
        return (self.mass if self.topk is None else self.topk) == 1

    def kept(self, q: Tensor, k: Tensor, sizes: tuple[int, int]) -> Tensor:
        """``[heads, tokens, d]`` each, and tokens of a block of either, to ``[heads, blocks of q, blocks of k]`` bool."""
        scores = means(q, sizes[0]) @ means(k, sizes[1]).transpose(1, 2) * q.shape[-1] ** -0.5
        if self.similarity < 0:
            return self._ranked(torch.softmax(scores, dim=-1))
        smooth = k - k.mean(dim=1, keepdim=True) if self.smooth_k else k
        all_of_row = (similarity(q, sizes[0]) <= self.similarity).unsqueeze(2)
        all_of_column = (similarity(smooth, sizes[1]) <= self.similarity).unsqueeze(1)
        weights = torch.softmax(scores.masked_fill(all_of_column, -torch.inf), dim=-1).nan_to_num(0)
        return self._ranked(weights) | all_of_row | all_of_column

    def _ranked(self, weights: Tensor) -> Tensor:
        if self.topk is None:
            return reaching(weights, self.mass)
        return largest(weights, max(1, int(self.topk * weights.shape[-1])))


def means(x: Tensor, size: int) -> Tensor:
    """Of blocks of ``size`` tokens in a row: ``[heads, tokens, d]`` to ``[heads, blocks, d]`` float32."""
    return _by_blocks(x, size).sum(2, dtype=torch.float32) / _counts(x, size)


def similarity(x: Tensor, size: int) -> Tensor:
    """The mean cosine between any two tokens of a block, each with itself too: ``[heads, tokens, d]`` to ``[heads, blocks]``.

    It is the square of the mean of the tokens' directions.
    """
    lengths = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp(min=1e-12)
    weights = _by_blocks(lengths.reciprocal().to(x.dtype), size).transpose(2, 3)
    direction = (weights @ _by_blocks(x, size)).squeeze(2).float() / _counts(x, size)
    return direction.square().sum(-1)


def _by_blocks(x: Tensor, size: int) -> Tensor:
    """``[heads, tokens, d]`` to ``[heads, blocks, size, d]``, zeros where there is no token; no copy where it divides."""
    missing = -x.shape[1] % size
    return torch.unflatten(F.pad(x, (0, 0, 0, missing)) if missing else x, 1, (-1, size))


def _counts(x: Tensor, size: int) -> Tensor:
    """Tokens of each block, ``[blocks, 1]``."""
    starts = torch.arange(0, x.shape[1], size, device=x.device).unsqueeze(1)
    return (x.shape[1] - starts).clamp(max=size)


class SpargeAttn(BlockSparse):
    """Of one stage."""

    def __init__(self, settings: SpargeSettings, geometry: ModelGeometry) -> None:
        super().__init__(settings, geometry)
        self.settings = settings

    def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern | None:
        rule = self.settings.rule
        if rule.keeps_all:
            return None
        sizes = package_blocks(q.device) if self._takes(q) else (QUERY_BLOCK, KEY_BLOCK)
        queries, keys = (in_a_row(here.num_image, size, q.device) for size in sizes)
        return Pattern(queries, keys, rule.kept(q[0], k[0], sizes))

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        sizes = pattern.queries.size, pattern.keys.size
        if not self._takes(q) or sizes != package_blocks(q.device):
            return super().kernel(q, k, v, pattern)
        return by_package(q, k, v, pattern, self.settings.pvthreshd)

    def _takes(self, q: Tensor) -> bool:
        """Whether the package computes attention for such queries."""
        fits = q.is_cuda and q.dtype in (torch.float16, torch.bfloat16)
        return self.settings.package and fits and q.shape[-1] in PACKAGE_HEADS and q.shape[2] >= PACKAGE_TOKENS and has_package()


@functools.cache
def has_package() -> bool:
    return importlib.util.find_spec(PACKAGE) is not None


def package_blocks(device: torch.device) -> tuple[int, int]:
    """Tokens of a block of queries and of keys in the package's kernels."""
    is_hopper = device.type == "cuda" and torch.cuda.get_device_capability(device) == HOPPER
    return (KEY_BLOCK, QUERY_BLOCK) if is_hopper else (QUERY_BLOCK, KEY_BLOCK)


def by_package(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, pvthreshd: float = 50) -> Tensor:
    """By the package's kernel for any pattern of blocks, which wants all tokens in a row.

    A block of it that spans two of the pattern's, where text begins, keeps what either of them keeps.
    """
    run = importlib.import_module(PACKAGE).block_sparse_sage2_attn_cuda
    found: Tensor = run(q, k, v, mask_id=row_mask(pattern).unsqueeze(0).to(torch.int8), pvthreshd=pvthreshd)
    return found


def row_mask(pattern: Pattern) -> Tensor:
    """``pattern``, of tokens in their own order with gaps, for blocks without: ``[heads, blocks, blocks]`` bool."""
    rows, columns = _spanned(pattern.queries), _spanned(pattern.keys)
    parts = [pattern.keep[:, row][:, :, column] for row in rows for column in columns]
    return torch.stack(parts).any(0)


def _spanned(blocks: Blocks) -> Tensor:
    """Into which of ``blocks`` the first and the last token of each block without gaps fall: ``[2, blocks]``."""
    first = torch.arange(0, blocks.num_tokens, blocks.size, device=blocks.slots.device)
    ends = torch.stack([first, (first + blocks.size - 1).clamp(max=blocks.num_tokens - 1)])
    return blocks.places[0][ends] // blocks.size


METHODS = {
    "spargeattn": Method(
        "spargeattn", "accelerator", "attention", "SpargeAttn, arXiv 2502.18137",
        "blocks of keys are kept by attention among means of blocks, where these stand for their tokens", "release",
        make=SpargeAttn,
        settings=SpargeSettings,
        needs="nothing; where spas_sage_attn is installed, GPUs compute what is kept by its eight-bit kernels",
        kept_tensors=lambda settings, geometry: 0.0,
    )
}  # fmt: skip
