"""One attention over image and text tokens, both cut over the ranks of a slice: what models with two streams add to a seam."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from parallel.seam import Attention, Seam

FEWEST_ROWS = 2
"""Of text on a rank. A compiler takes 0 and 1 for constants, so fewer rows would have the blocks compiled anew."""


@dataclass(frozen=True)
class Share:
    """This rank's part of one forward's tokens."""

    image: range
    text: range
    among: Hashable
    """Whom it is shared with and what they have: recordings of the same part among others must not be mixed up."""

    @property
    def num_rows(self) -> int:
        """Rows of both streams, with those added to a short text."""
        return len(self.image) + max(len(self.text), FEWEST_ROWS)

    def text_rows(self, rows: Tensor) -> Tensor:
        """Of all text rows ``[1, L, D]`` this rank's, and zeros after them where there are fewer than ``FEWEST_ROWS``."""
        mine = rows[0, self.text.start : self.text.stop].unsqueeze(0)  # strided as if these were all: one program for both
        missing = FEWEST_ROWS - len(self.text)
        return mine if missing <= 0 else F.pad(mine, (0, 0, 0, missing))


class JointSeam(Seam):
    """A seam where the last rows may be no tokens: attention leaves them out and gives zeros for them."""

    def __init__(self, local: Attention) -> None:
        super().__init__(local)
        self._share = functools.lru_cache(maxsize=64)(Share)

    def share(self, num_image: int, num_text: int, unit: int = 1) -> Share:
        """This rank's part, before each forward: attention goes by it. The same object for the same part among the same."""
        image, text = self.cut(num_image, num_text, unit)
        return self._share(range(image.start, image.stop), range(text.start, text.stop), (self.key, self._counts))

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        num = self._counts[0 if self.sequence is None else self.sequence.rank]
        spare = q.shape[2] - num
        if spare == 0:
            return super().__call__(q, k, v)
        found = super().__call__(q[:, :, :num], k[:, :, :num], v[:, :, :num])
        return F.pad(found, (0, 0, 0, spare))
