"""Where a transformer's tokens are cut, attended to and joined again. With nothing attached it is the local kernel alone.

One seam per model: blocks call it for attention, so the same compiled blocks serve every degree, and a clip's width is a matter
of :meth:`Seam.attach`.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from parallel.groups import Group
from parallel.layout import Layout
from parallel.shares import piece, shares

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Self-attention over ``[B, heads, tokens, head_dim]`` queries, keys and values."""


class Exchange(Protocol):
    """Attention over the ranks of a group, each of which has all heads of its own tokens."""

    @property
    def name(self) -> str: ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, local: Attention, group: Group, counts: tuple[int, ...]) -> Tensor:
        """``q, k, v [1, heads, counts[group.rank], head_dim]`` to the same, every token having seen those of all ranks.

        ``local`` is the kernel of one GPU. The order of tokens is that of the ranks; attention does not mind.
        """
        ...


class Instead(Protocol):
    """What takes the place of the local kernel."""

    def begin(self) -> None:
        """The attention of the next layer begins; calls for its heads follow."""
        ...

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: range, num_image: int) -> Tensor:
        """``[1, heads, tokens, head_dim]`` to the same: image tokens in their own order, then text. ``heads`` are the model's."""
        ...


class Seam:
    """Callable as attention over ``[1, heads, this rank's tokens, head_dim]``."""

    def __init__(self, local: Attention) -> None:
        self.local = local
        self.layout: Layout | None = None
        self.exchange: Exchange | None = None
        self.instead: Instead | None = None
        self._counts: tuple[int, ...] = ()
        self._image_counts: tuple[int, ...] = ()
        self._joined: tuple[int, ...] = ()

    def attach(self, layout: Layout | None, exchange: Exchange | None) -> None:
        """From the next forward on, share its tokens over ``layout``; None: this process alone. Free of cost.

        A layout without an exchange leaves attention on each rank, which is wrong: the control of tests.
        """
        self.layout, self.exchange = layout, exchange

    @property
    def sequence(self) -> Group | None:
        """The ranks that share the tokens; None when this one has them all."""
        return None if self.layout is None else self.layout.sequence

    @property
    def key(self) -> Hashable:
        """Tells apart what must not be mixed up between forwards: tables per share, recordings of a group's collectives."""
        return None if self.layout is None else (self.layout.key, self.exchange.name if self.exchange else None)

    def cut(self, num_image: int, num_text: int = 0, unit: int = 1) -> tuple[slice, slice]:
        """This rank's rows of ``num_image`` tokens and of ``num_text`` tokens that join them in attention.

        To be called before each forward: attention goes by it. ``unit`` image tokens after each other stay together.
        """
        degree = 1 if self.layout is None else self.layout.degree
        rank = 0 if self.sequence is None else self.sequence.rank
        image, text = shares(num_image, degree, unit=unit), shares(num_text, degree, spare_last=True)
        self._image_counts = self._joined = image
        self._counts = tuple(map(sum, zip(image, text, strict=True)))
        return piece(image, rank), piece(text, rank)

    @contextmanager
    def holding(self, image_counts: tuple[int, ...]) -> Iterator[None]:
        """Attention within is over so many image tokens of each rank, and the text that there is."""
        whole, counts = self._image_counts, self._counts
        pairs = zip(counts, whole, image_counts, strict=True)
        self._image_counts, self._counts = image_counts, tuple(count - image + held for count, image, held in pairs)
        try:
            yield
        finally:
            self._image_counts, self._counts = whole, counts

    def join(self, rows: Tensor) -> Tensor:
        """This rank's image rows ``[1, n, C]`` to all ``[branches, num_image, C]``: one branch, or both with guidance split."""
        if self.layout is None:
            return rows
        counts = self._joined * self.layout.num_branches
        return torch.unflatten(self.layout.whole.gather_rows(rows[0], counts), 0, (self.layout.num_branches, -1))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        local = self.local if self.instead is None else self._chosen(self.instead, q.shape[1])
        if self.sequence is None or self.exchange is None:
            return local(q, k, v)
        return self.exchange(q, k, v, local, self.sequence, self._counts)

    def _chosen(self, instead: Instead, num_heads: int) -> Attention:
        """``instead`` as an exchange calls it: for some of this rank's heads after the other, tokens in the order of ranks."""
        rank, size = (0, 1) if self.sequence is None else (self.sequence.rank, self.sequence.size)
        first = rank * (num_heads // size)
        instead.begin()

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            nonlocal first
            heads, first = range(first, first + q.shape[1]), first + q.shape[1]
            q, k, v = (self._image_first(x) for x in (q, k, v))
            return self._by_rank(instead(q, k, v, heads, sum(self._image_counts)))

        return attend

    @property
    def _is_sorted(self) -> bool:
        """Whether all image tokens come before all text tokens as they are."""
        return len(self._counts) == 1 or self._counts == self._image_counts

    def _image_first(self, x: Tensor) -> Tensor:
        if self._is_sorted:
            return x
        texts = (count - image for count, image in zip(self._counts, self._image_counts, strict=True))
        pairs = zip(self._image_counts, texts, strict=True)
        parts = x.split_with_sizes([num for pair in pairs for num in pair], 2)
        return torch.cat([*parts[0::2], *parts[1::2]], dim=2)

    def _by_rank(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`_image_first`."""
        if self._is_sorted:
            return x
        texts = [count - image for count, image in zip(self._counts, self._image_counts, strict=True)]
        parts = x.split_with_sizes([*self._image_counts, *texts], 2)
        num = len(texts)
        return torch.cat([part for pair in zip(parts[:num], parts[num:], strict=True) for part in pair], dim=2)
