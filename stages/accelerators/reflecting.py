"""What moves a latent before a step is taken from it, by forwards that are no steps of the clip's."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from torch import Tensor

from stages.sampling import NoiseLevel

if TYPE_CHECKING:
    from stages.accelerators.base import Now

Velocity = Callable[[Tensor, NoiseLevel, float | None], Tensor]
"""Of a latent at a noise level, under another guidance or, with None, the clip's own: with both branches, computed in full."""


@runtime_checkable
class Reflecting(Protocol):
    """Used for one stage of one clip by one expert; never asked at a transition or a clip's last step."""

    def reflect(self, x: Tensor, now: Now, onward: NoiseLevel, velocity: Velocity) -> Tensor | None:
        """``x [1, C, T, H, W]`` at ``now.level``, moved at that level; None: as it is. ``onward`` is where the step leads to."""
        ...
