"""What the stages ask of a model: text and image in, velocities, frames out. Every adapter speaks in sigma and latents."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from orchestrator.geometry import ModelGeometry, model
from orchestrator.types import VideoShape
from parallel.groups import Group
from parallel.layout import Layout
from parallel.seam import Exchange
from stages.accelerators.base import Boost
from stages.resize import Axes
from stages.sampling import NoiseLevel
from stages.token_sets import TokenSet

ALL_PARTS = frozenset({"text", "transformer", "vae"})
"""``text`` holds every encoder of the prompt and the image. Beside these there is ``encoder``, the VAE's encoder alone, for
workers that place images and encode no prompts, or encode video."""

ImageMode = Literal["index", "encode"]
"""How an image condition follows the grid: cells of the full-size latent, or the image resized and encoded again."""


@dataclass(frozen=True, eq=False)
class Branch:
    """One branch of guidance: the encoded prompt, as the adapter's own named tensors.

    ``num_pads`` is how many zero rows the model expects after the text tokens.
    """

    tensors: Mapping[str, Tensor]
    num_pads: int = 0


@dataclass(frozen=True, eq=False)
class Condition:
    """What a clip is made from, on no grid in particular. ``negative`` is None without classifier-free guidance."""

    positive: Branch
    negative: Branch | None
    guidance: float
    guidance_low: float | None = None
    """Guidance of the low-noise expert; None: the same."""
    image: Tensor | None = None
    """First frame ``[1, 3, 1, H, W]`` in [-1, 1], at the video's full size."""
    latent: Tensor | None = None
    """Its latent on the full grid ``[1, C, T or 1, H, W]``, normalised as the transformer sees it."""

    def pack(self) -> dict[str, Any]:
        """Plain numpy arrays and numbers, for another process."""
        packed = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("positive", "negative"):
            branch = packed[name]
            packed[name] = branch and ({k: _pack(v) for k, v in branch.tensors.items()}, branch.num_pads)
        return {**packed, "image": _pack(self.image), "latent": _pack(self.latent)}

    @staticmethod
    def unpack(packed: dict[str, Any]) -> Condition:
        """Inverse of :meth:`pack`, on the CPU. The arrays are copied: shared memory of another process is read-only."""
        fields = {**packed, "image": _unpack(packed["image"]), "latent": _unpack(packed["latent"])}
        for name in ("positive", "negative"):
            if packed[name]:
                tensors, num_pads = packed[name]
                fields[name] = Branch({k: v for k, row in tensors.items() if (v := _unpack(row)) is not None}, num_pads)
        return Condition(**fields)


def _pack(x: Tensor | None) -> tuple[np.ndarray[Any, Any], str] | None:
    """float32 holds every bf16 and fp16 value exactly."""
    if x is None:
        return None
    values = x.float() if x.is_floating_point() else x
    return values.cpu().numpy(), str(x.dtype).removeprefix("torch.")


def _unpack(packed: tuple[np.ndarray[Any, Any], str] | None) -> Tensor | None:
    if packed is None:
        return None
    values, dtype = packed
    return torch.from_numpy(np.array(values)).to(getattr(torch, dtype))


@dataclass(frozen=True)
class Positions:
    """Where a latent's frames are in the whole video. ``layers`` rotate by that; the others count the frames from 0."""

    frames: tuple[int, ...]
    layers: frozenset[int]


@dataclass(frozen=True, eq=False)
class Placed:
    """A condition on one stage's grid."""

    condition: Condition
    latent: Tensor | None = None
    """Channels that the network takes beside the noisy latent ``[1, C, T, H, W]``."""
    pinned: Tensor | None = None
    """Clean first latent frame ``[1, C, 1, H, W]``, held in place at every step."""
    positions: Positions | None = None
    """None: every layer counts the latent's frames from 0."""
    mixed: TokenSet | None = None
    """The tokens, if they are of two grids at once."""

    def pin(self, x: Tensor) -> Tensor:
        """``x`` with its first frame replaced by the clean one, where there is one."""
        return x if self.pinned is None else torch.cat([self.pinned.to(x), x[:, :, 1:]], dim=2)


@dataclass(frozen=True)
class Request:
    """What a user asks of the encoders. ``image`` is the path of the first frame."""

    prompt: str
    shape: VideoShape
    guidance: float
    negative: str = ""
    guidance_low: float | None = None
    image: str | None = None


class Model(Protocol):
    """One set of weights on one device. Latents are float32 ``[1, C, T, H, W]``."""

    geometry: ModelGeometry
    device: torch.device
    dtype: torch.dtype

    def attach(self, layout: Layout | None, exchange: Exchange | None) -> None:
        """From the next forward or decoding on, share it over ``layout``, the ranks of which then do all alike.

        None: this process alone. Free of cost.
        """
        ...

    @property
    def attached(self) -> tuple[Layout | None, Exchange | None]:
        """What :meth:`attach` was given last."""
        ...

    def accelerate(self, boost: Boost | None) -> None:
        """From the next forward on, let ``boost`` decide what of it is computed; None: all, exactly as without this call."""
        ...

    def encode(self, request: Request) -> Condition:
        """Text and image, once per clip. Needs the part "text". ``negative`` counts only when ``guidance`` is above 1.

        Raises ValueError for an image that is missing, unwanted or cannot be read.
        """
        ...

    def place(self, condition: Condition, axes: Axes, mode: ImageMode) -> Placed:
        """The condition on the cells ``axes`` of the final grid. ``encode`` needs the part "text" or "encoder"."""
        ...

    def start(self, noise: Tensor, placed: Placed) -> Tensor:
        """The first latent, of pure noise on the first stage's grid: pinned, or mixed with the image where a model does so."""
        ...

    def denoise(self, x: Tensor, level: NoiseLevel, placed: Placed) -> Tensor:
        """The guided velocity at a noise level. Needs the part "transformer". Never waits for the device."""
        ...

    def pixels(self, latent: Tensor) -> Tensor:
        """Video ``[1, 3, F, H, W]`` in [-1, 1] of a clean latent, on every rank. Needs the part "vae"."""
        ...

    def preview(self, latent: Tensor) -> Tensor:
        """As :meth:`pixels`, but at half the height and width where that is much cheaper."""
        ...

    def latent_of(self, video: Tensor) -> Tensor:
        """Latent of a video ``[1, 3, 4 k + 1, H, W]`` in [-1, 1], of the size that :meth:`preview` gives. Needs "encoder"."""
        ...

    def decode(self, latent: Tensor) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        """Frames ``[F, H, W, 3]`` of a clean latent, in runs as they are ready. Needs the part "vae".

        Of several ranks the first yields them; the others yield nothing, and are to be drained too.
        """
        ...


@dataclass(frozen=True)
class Lora:
    """A low-rank adapter merged into the transformer on loading (diffusers' loader): a file, folder or repository id."""

    path: str
    scale: float = 1.0
    expert: Literal["both", "high", "low"] = "both"
    """Of a model with two transformers: which ones it is merged into."""


@dataclass(frozen=True)
class Loading:
    """What to load and how."""

    parts: frozenset[str] = ALL_PARTS
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    lora: tuple[Lora, ...] = ()
    compile: bool = False
    """Compile the repeated block, once for all grids (CUDA)."""
    attention: str = "auto"
    """Attention kernel by name; ``auto`` measures (``stages.attention``)."""
    shard: Group | None = None
    """The ranks that keep one copy of the transformer's layers between them; None: this one keeps them all."""
    late: bool = False
    """Of a model with two transformers, the second is read when it is first needed: sketches end before it is."""

    @property
    def home(self) -> torch.device:
        """Where a transformer is read to: one to be sharded may not fit on the device."""
        return self.device if self.shard is None else torch.device("cpu")


def encodes(parts: frozenset[str], takes_image: bool) -> bool:
    """Whether these parts bring the VAE's encoder: asked for by name, or with the prompt's encoders for a first frame."""
    return "encoder" in parts or (takes_image and "text" in parts)


def load(
    name: str,
    weights: str | None,
    device: str = "cpu",
    parts: frozenset[str] = ALL_PARTS,
    lora: tuple[Lora, ...] = (),
    compile_blocks: bool | None = None,
    attention: str = "auto",
    shard: Group | None = None,
    late: bool = False,
) -> Model:
    """Load ``parts`` of a model; ``weights`` is a folder or repository in diffusers format, None for the embedded model.

    Weights are float32 on a CPU and for the embedded model, bfloat16 elsewhere. ``compile_blocks`` None: on a GPU only.
    With ``shard`` the model runs on slices that all ranks of this group are in, and on no narrower ones. ``late`` as in
    :class:`Loading`.
    Raises ValueError for weights that do not fit the model's geometry.
    """
    from stages.models import embedded, families
    from stages.models.weights import find_weights

    geometry = model(name)
    on = torch.device(device)
    exact = on.type == "cpu" or name == embedded.NAME
    compiled = on.type == "cuda" if compile_blocks is None else compile_blocks
    loading = Loading(parts, on, torch.float32 if exact else torch.bfloat16, lora, compiled, attention, shard, late)
    folder = embedded.FOLDER if weights is None and name == embedded.NAME else find_weights(geometry, weights, parts)
    return families.load_family(geometry, folder, loading)
