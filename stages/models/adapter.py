"""What the adapters of all families share: parts that may be missing, ranks, guidance, decoding, halves of a VAE."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.geometry import ModelGeometry
from parallel.decoding import handed_on
from parallel.groups import Group
from parallel.layout import Layout
from parallel.seam import Exchange, Seam
from stages.accelerators.base import Boost
from stages.memory import Turns
from stages.models.base import Branch, Condition, Loading
from stages.models.pretrained import pretrained

Part = TypeVar("Part")


class Decoder(Protocol):
    """The half of a VAE that makes video of latents."""

    group: Group | None
    """The ranks that decode together; None: this one alone."""

    def runs(self, latent: Tensor) -> Iterator[Tensor]:
        """Video ``[1, 3, f, H, W]`` float32 in [-1, 1] of a latent as the transformer sees it, some frames at a time."""
        ...


Encoder = Callable[[Tensor], Tensor]
"""The other half: video ``[1, 3, F, H, W]`` in [-1, 1] to a latent as the transformer sees it."""


class Adapter:
    """One set of weights on one device. Asking for the work of a part that was not loaded raises RuntimeError."""

    def __init__(
        self,
        geometry: ModelGeometry,
        device: torch.device,
        dtype: torch.dtype,
        decoder: Decoder | None,
        modules: Mapping[str, Sequence[nn.Module]],
        seam: Seam | None = None,
        encoder: Encoder | None = None,
    ) -> None:
        """``modules`` are those that can leave a GPU, by part: "text" and "vae". ``seam`` is the one of all transformers."""
        self.geometry = geometry
        self.device = device
        self.dtype = dtype
        self.turns = Turns(device, modules)
        self.seam = seam
        self.boost: Boost | None = None
        self._decoder = decoder
        self._encoder = encoder

    def attach(self, layout: Layout | None, exchange: Exchange | None) -> None:
        if self.seam is not None:
            self.seam.attach(layout, exchange)
        if self._decoder is not None:
            self._decoder.group = None if layout is None else layout.whole

    @property
    def attached(self) -> tuple[Layout | None, Exchange | None]:
        return (None, None) if self.seam is None else (self.seam.layout, self.seam.exchange)

    def accelerate(self, boost: Boost | None) -> None:
        if self.boost is not None:
            self.boost.let_go()
        if self.seam is not None:
            self.seam.instead = None
        self.boost = boost
        if boost is not None:
            boost.attach(self.seam)

    def _guided(self, condition: Condition, forward: Callable[[Branch], Tensor]) -> tuple[Tensor, Tensor | None]:
        """What ``forward`` finds for the prompt, and for the negative one if there is one, ``[1, ...]`` each.

        With guidance split over ranks one call finds both, ``[2, ...]``: that of this rank's own branch.
        Raises RuntimeError if it is split and there is no negative prompt.
        """
        layout = None if self.seam is None else self.seam.layout
        if layout is None or layout.branch is None:
            v = self._branch_of(0, condition.positive, forward)
            return v, condition.negative and self._negative(v, condition.negative, forward)
        if condition.negative is None:
            raise RuntimeError("guidance is split over ranks, but this clip has one branch: its slice was laid out for two")
        branch = (condition.positive, condition.negative)[layout.branch]
        positive, plain = self._branch_of(layout.branch, branch, forward).chunk(2)
        return positive, plain

    def _branch_of(self, number: int, branch: Branch, forward: Callable[[Branch], Tensor]) -> Tensor:
        if self.boost is not None:
            self.boost.branch = number
        return forward(branch)

    def _negative(self, v: Tensor, branch: Branch, forward: Callable[[Branch], Tensor]) -> Tensor:
        def compute() -> Tensor:
            return self._branch_of(1, branch, forward)

        return compute() if self.boost is None else self.boost.negative(v, compute)

    @torch.inference_mode()
    def pixels(self, latent: Tensor) -> Tensor:
        decoder = self._part(self._decoder, "vae")
        with self.turns.turn("vae"):
            return handed_on(decoder.group, decoder.runs(latent.to(self.device)))

    def preview(self, latent: Tensor) -> Tensor:
        return self.pixels(latent)

    @torch.inference_mode()
    def latent_of(self, video: Tensor) -> Tensor:
        encoder = self._part(self._encoder, "encoder")
        with self.turns.turn("vae"):
            return encoder(video.to(self.device))

    def decode(self, latent: Tensor) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        return self._frames(self._part(self._decoder, "vae"), latent)

    @torch.inference_mode()
    def _frames(self, decoder: Decoder, latent: Tensor) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        with self.turns.turn("vae"):
            for run in decoder.runs(latent.to(self.device)):
                yield to_frames(run)

    def _part(self, part: Part | None, name: str) -> Part:
        if part is None:
            raise RuntimeError(f"this worker loaded {self.geometry.name} without its {name!r} part")
        return part


def load_halves(kind: Any, folder: Path, loading: Loading, *, encodes: bool, decodes: bool) -> Any:
    """The autoencoder ``kind`` in ``folder / "vae"``, in the model's dtype, with the halves that are asked for."""
    vae = pretrained(kind, folder / "vae", loading.dtype)
    if not encodes:
        vae.encoder = None
    if not decodes:
        vae.decoder = None
    return vae.to(loading.device).requires_grad_(False)


def to_frames(video: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Frames ``[F, H, W, 3]`` of video ``[1, 3, F, H, W]`` in [-1, 1].

    Raises RuntimeError for video that is not finite: as bytes it would pass for a picture.
    """
    if not bool(video.isfinite().all()):
        raise RuntimeError("the decoded video is not finite: the weights of the VAE are at fault")
    return video[0].permute(1, 2, 3, 0).add(1).mul(127.5).round().to(torch.uint8).cpu().numpy()
