"""What ``experiments.bench.parallel`` measures, and what it should come to: pure arithmetic."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.geometry import ModelGeometry, model
from orchestrator.types import Grid

LONG_TOKENS = 50_000
NUM_MOST_TELLING = 3

SECTIONS = ("forwards", "guided", "switch", "equality", "profile", "stock", "decode", "wires", "kernels")
"""In the order in which they run, by default all. The first five share one loaded model."""
OF_A_MODEL = SECTIONS[:5]
NATIVE, PEER = "native", "peer"
OTHERS = ("ulysses", "usp")
CHUNKS: Mapping[str, tuple[str, int]] = {f"{name}-{num}": (name, num) for name in (NATIVE, PEER) for num in (1, 2)}
"""Exchanges of ours with a fixed number of chunks, to find out from where two pay."""
LOCAL = "local"
"""Attention left on its rank: the control that must differ."""
RATE = 600e12
"""Floating-point operations per second, for a guess of how long something will take."""
CALL_S = 0.03


@dataclass(frozen=True)
class Subject:
    """A model, and the latent grids to measure it on, the most telling first."""

    name: str
    grids: tuple[Grid, ...]
    num_telling: int = 5
    """Of the first grids: several exchanges are measured on these, on the others one."""

    @property
    def geometry(self) -> ModelGeometry:
        return model(self.name)

    def tokens(self, grid: Grid) -> int:
        return self.geometry.num_tokens(grid)


REAL = {
    "wan": Subject(
        "wan2.2-a14b",
        (
            *((21, 60, 104), (13, 44, 80), (11437, 2, 2), (15, 40, 26), (4, 30, 32)),  # 32,760, 11,440, a prime, 3,900, 960
            *((21, 44, 80), (18, 30, 52), (8, 30, 32), (3907, 2, 2)),  # 18,480, 7,020, 1,920, a prime
            *((32749, 2, 2), (21, 90, 160)),  # a prime, 75,600
        ),
    ),
    "hv": Subject(
        "hunyuanvideo",
        (
            *((32, 90, 160), (16, 44, 80), (14081, 2, 2), (4, 30, 32), (11, 32, 40)),  # 115,200, 14,080, a prime, 960, 3,520
            *((11, 40, 64), (7, 32, 32), (32, 44, 80), (16, 90, 160)),  # 7,040, 1,792, 28,160, 57,600
        ),
    ),
    "hv15": Subject(
        "hunyuanvideo-1.5",
        (
            *((31, 30, 53), (22, 21, 37), (1, 1, 17093), (16, 15, 26), (4, 15, 16)),  # 49,290, 17,094, a prime, 6,240, 960
            *((16, 21, 37), (8, 15, 26), (8, 15, 16), (14, 25, 26), (12, 25, 26)),  # 12,432, 3,120, 1,920, 9,100, 7,800
            *((31, 30, 31), (31, 45, 80)),  # 28,830, 111,600
        ),
    ),
}
"""A grid of p x 1 x 1 patches makes a prime number of tokens: no grid of a video has one above a thousand."""
TINY = {
    "wan": Subject("wan2.2-a14b", ((3, 6, 8), (7, 2, 2), (5, 4, 6))),
    "hv": Subject("hunyuanvideo", ((3, 6, 8), (7, 2, 2))),
    "hv15": Subject("hunyuanvideo-1.5", ((3, 3, 4), (1, 1, 7))),
}
STOCK_GRIDS: tuple[Grid, ...] = ((21, 60, 104), (13, 44, 80), (15, 40, 26), (11437, 2, 2))
"""Of stock Wan: 32,760, 11,440, 3,900 tokens, and a prime number."""
TINY_STOCK_GRIDS: tuple[Grid, ...] = ((3, 8, 8), (3, 6, 6))
KERNEL_TOKENS = {"wan": 32_760, "hv": 38_192, "hv15": 49_290}


def subjects(is_tiny: bool) -> Mapping[str, Subject]:
    return TINY if is_tiny else REAL


def degrees(num_ranks: int) -> tuple[int, ...]:
    """Powers of two up to ``num_ranks``."""
    return tuple(1 << power for power in range(num_ranks.bit_length()) if 1 << power <= num_ranks)


def settled(found: Sequence[str]) -> str:
    """The exchange that clips go through where ``found`` run."""
    return PEER if PEER in found else NATIVE


def exchanges(subject: Subject, grid: Grid, degree: int, num_ranks: int, found: Sequence[str]) -> tuple[str, ...]:
    """Names of the exchanges to measure on a grid at a degree, of those ``found`` here; one rank has none to make.

    The settled one everywhere; where it tells something, native beside it; and, on the most telling grids by all ranks, both
    with the number of chunks that they would not choose, and all others.
    """
    from parallel.native import OVERLAP_ELEMENTS

    place, tokens = subject.grids.index(grid), subject.tokens(grid)
    if degree == 1:
        return (NATIVE,)
    ours = tuple(name for name in (PEER, NATIVE) if name in found)
    if place >= subject.num_telling or (tokens >= LONG_TOKENS and degree < num_ranks):
        return ours[:1]
    if place >= NUM_MOST_TELLING or degree < num_ranks or tokens >= LONG_TOKENS:
        return ours
    is_long = tokens * subject.geometry.heads * subject.geometry.head_dim >= OVERLAP_ELEMENTS
    unchosen = tuple(f"{name}-{1 if is_long else 2}" for name in ours)
    return (*ours, *unchosen, *(name for name in found if name not in ours))


def cases(subject: Subject, num_ranks: int, found: Sequence[str]) -> Iterator[tuple[Grid, int, str]]:
    """Grid, degree and exchange: a grid at all degrees, then the next grid."""
    for grid in subject.grids:
        for degree in degrees(num_ranks):
            for name in exchanges(subject, grid, degree, num_ranks, found):
                yield grid, degree, name


def narrowed(subject: Subject, most_tokens: int, num_grids: int) -> Subject:
    """The first grids among those of at most ``most_tokens``. Raises ValueError if there are none."""
    found = tuple(grid for grid in subject.grids if subject.tokens(grid) <= most_tokens)[:num_grids]
    if not found:
        raise ValueError(f"{subject.name} has no grid of at most {most_tokens:,} tokens")
    return dataclasses.replace(subject, grids=found)


def traced_grids(subject: Subject) -> tuple[Grid, ...]:
    """Two whose forwards are short enough to be looked into, the most telling first."""
    found = (grid for grid in subject.grids if subject.tokens(grid) < LONG_TOKENS and subject.tokens(grid) % 2 == 0)
    return tuple(itertools.islice(found, 2))


def odd_and_small(subject: Subject) -> tuple[Grid, ...]:
    """The first grid with an odd number of tokens, and the smallest one."""
    odd = [grid for grid in subject.grids if subject.tokens(grid) % 2]
    return tuple(dict.fromkeys((*odd[:1], min(subject.grids, key=subject.tokens))))


def forward_flops(geometry: ModelGeometry, num_tokens: int) -> float:
    """Floating-point operations of one forward of one branch, condition tokens left out."""
    width = geometry.heads * geometry.head_dim
    return 2.0 * geometry.linear_macs * num_tokens + 4.0 * width * geometry.num_layers * num_tokens**2


def about_s(geometry: ModelGeometry, num_tokens: int, degree: int, num_calls: int = 3) -> float:
    """A guess of the seconds that a case takes, so that none is begun that cannot end in time."""
    return num_calls * (CALL_S + forward_flops(geometry, num_tokens) / degree / RATE)


def repeats(first_s: float) -> tuple[int, int]:
    """Further warm-up calls, and timed ones, after a warm second call that took ``first_s``: the longer, the fewer.

    No further one: that call counts.
    """
    for least_s, num_warm, num in ((3.0, 0, 0), (1.0, 0, 2), (0.3, 0, 3), (0.05, 1, 5)):
        if first_s > least_s:
            return num_warm, num
    return 2, 9


def sent_bytes(geometry: ModelGeometry, num_tokens: int, degree: int, num_text: int = 0, size: int = 2) -> int:
    """Bytes that one rank sends in one forward: queries, keys and values out and what was found back in every layer.

    Of its own tokens a rank keeps one part in ``degree``. ``num_text`` are tokens that join the video's in attention.
    """
    width = geometry.heads * geometry.head_dim
    own = (num_tokens + num_text) / degree
    return round(geometry.num_layers * 4 * own * width * size * (degree - 1) / degree)


def efficiency(one_s: float, degree: int, seconds: float) -> float:
    """Of ``degree`` ranks against one."""
    return one_s / (degree * seconds)
