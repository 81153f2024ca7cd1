"""Models at their real sizes with random weights made on the GPU: speed depends on shapes, not on what the weights say.

The stock modules are diffusers' own in the dtypes that ``from_pretrained`` gives them, called as the stock pipelines call them:
text padded to its full length, with its mask. Ours are the adapters over the same kind of module.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orchestrator.geometry import ModelGeometry, model
from orchestrator.types import Grid, VideoShape
from parallel.seam import Seam
from stages.attention import choose
from stages.models.base import Branch, Condition

NUM_PROMPT = 60
"""Valid text tokens: a prompt of two sentences."""
BF16 = torch.bfloat16
DEVICE = "cuda"
Forward = Callable[[Grid], Any]
"""One stock forward of one branch on a grid of latent cells."""


@dataclass(frozen=True)
class Subject:
    """What is measured of a model, and where."""

    name: str
    shape: VideoShape
    stock_steps: int
    stock_branches: int
    """Forwards per step of the stock pipeline: 2 with classifier-free guidance."""
    branches: int
    """Likewise of ours."""

    @property
    def geometry(self) -> ModelGeometry:
        return model(self.name)

    @property
    def grid(self) -> Grid:
        return self.geometry.latent_grid(self.shape)


HV15 = VideoShape(121, 480, 848, 24)
SUBJECTS = {
    "hv": Subject("hunyuanvideo", VideoShape(125, 720, 1280, 24), 50, 1, 1),
    "hv15-t2v": Subject("hunyuanvideo-1.5", HV15, 50, 2, 2),
    "hv15-i2v": Subject("hunyuanvideo-1.5-i2v-distilled", HV15, 50, 2, 1),
    "hv15-i2v-12": Subject("hunyuanvideo-1.5-i2v-step-distilled", HV15, 50, 2, 1),
    "wan": Subject("wan2.2-a14b", VideoShape(81, 480, 832, 16), 40, 2, 2),
}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, device=DEVICE, dtype=BF16)


def transformer(subject: Subject) -> Any:
    """The stock transformer in bf16 with random weights, what diffusers keeps in float32 left so."""
    module = _on_gpu(functools.partial(_KINDS[subject.geometry.family], subject))
    kept = tuple(module._keep_in_fp32_modules or ())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.is_floating_point() and not any(part in name for part in kept) and "rope" not in name:
            tensor.data = tensor.data.to(BF16)
    return module.eval().requires_grad_(False)


def _on_gpu(make: Callable[[], Any]) -> Any:
    with torch.device(DEVICE):
        return make()


def _hunyuan(subject: Subject) -> Any:
    from diffusers import HunyuanVideoTransformer3DModel

    return HunyuanVideoTransformer3DModel()


def _hunyuan15(subject: Subject) -> Any:
    from diffusers import HunyuanVideo15Transformer3DModel

    geometry = subject.geometry
    task = "t2v" if geometry.image == "none" else "i2v"
    return HunyuanVideo15Transformer3DModel(task_type=task, use_meanflow=geometry.meanflow)


def _wan(subject: Subject) -> Any:
    from diffusers import WanTransformer3DModel

    geometry = subject.geometry
    width = geometry.heads * geometry.head_dim
    inner = (geometry.linear_macs // geometry.num_layers - 6 * width**2) // (2 * width)
    return WanTransformer3DModel(num_attention_heads=geometry.heads, num_layers=geometry.num_layers, ffn_dim=inner)


_KINDS: dict[str, Callable[[Subject], Any]] = {"hunyuan": _hunyuan, "hunyuan15": _hunyuan15, "wan": _wan}


def vae(family: str) -> Any:
    """The family's video autoencoder in bf16, its encoder left out."""
    import diffusers

    kinds = {"hunyuan": "AutoencoderKLHunyuanVideo", "hunyuan15": "AutoencoderKLHunyuanVideo15", "wan": "AutoencoderKLWan"}
    module = _on_gpu(getattr(diffusers, kinds[family])).to(BF16)
    module.encoder = None
    return module.eval().requires_grad_(False)


def stock_forward(subject: Subject, module: Any) -> Forward:
    """As the stock pipeline calls it, at batch 1, one branch."""
    return functools.partial(_STOCK[subject.geometry.family], module, subject)


def _mask(length: int, valid: int) -> Tensor:
    return (torch.arange(length, device=DEVICE) < valid)[None].to(BF16)


def _stock_hunyuan(module: Any, subject: Subject, grid: Grid) -> Any:
    told = torch.full((1,), 900.0, device=DEVICE, dtype=BF16)
    text, pooled, scale = noise(1, 256, 4096), noise(1, 768), torch.full((1,), 6000.0, device=DEVICE, dtype=BF16)
    return module(noise(1, 16, *grid), told, text, _mask(256, NUM_PROMPT), pooled, guidance=scale, return_dict=False)


def _stock_hunyuan15(module: Any, subject: Subject, grid: Grid) -> Any:
    told = torch.full((1,), 900.0, device=DEVICE, dtype=BF16)
    image = noise(1, 729, 1152) * (subject.geometry.image != "none")
    after = {"timestep_r": told - 20} if subject.geometry.meanflow else {}
    return module(
        noise(1, 65, *grid), told, noise(1, 1000, 3584), _mask(1000, NUM_PROMPT), encoder_hidden_states_2=noise(1, 256, 1472),
        encoder_attention_mask_2=_mask(256, 0), image_embeds=image, return_dict=False, **after,
    )  # fmt: skip


def _stock_wan(module: Any, subject: Subject, grid: Grid) -> Any:
    told = torch.full((1,), 900, device=DEVICE)
    return module(noise(1, 16, *grid), told, noise(1, 512, 4096), return_dict=False)


_STOCK: dict[str, Callable[[Any, Subject, Grid], Any]] = {
    "hunyuan": _stock_hunyuan,
    "hunyuan15": _stock_hunyuan15,
    "wan": _stock_wan,
}


def ours(subject: Subject, modules: tuple[Any, ...], decoder: Any = None, attention: str = "auto", compiled: bool = True) -> Any:
    """The adapter over stock modules (Wan: the high-noise expert, then the low-noise one), which it may take apart."""
    geometry = subject.geometry
    seam = Seam(choose(attention, torch.device(DEVICE), geometry.heads, geometry.head_dim))
    return _OURS[geometry.family](geometry, modules, decoder, seam, compiled)


def _our_hunyuan(geometry: ModelGeometry, modules: tuple[Any, ...], decoder: Any, seam: Seam, compiled: bool) -> Any:
    from stages.models.hunyuan import HunyuanModel, HunyuanParts
    from stages.models.hunyuan_transformer import HunyuanTransformer
    from stages.models.hunyuan_vae import HunyuanDecoder

    network = HunyuanTransformer(modules[0], seam, compiled)
    parts = HunyuanParts(transformer=network, decoder=None if decoder is None else HunyuanDecoder(decoder))
    return HunyuanModel(geometry, torch.device(DEVICE), BF16, parts)


def _our_hunyuan15(geometry: ModelGeometry, modules: tuple[Any, ...], decoder: Any, seam: Seam, compiled: bool) -> Any:
    from stages.models.hunyuan15 import Hunyuan15Model, Parts
    from stages.models.hunyuan15_transformer import Hunyuan15Transformer
    from stages.models.hunyuan15_vae import Hunyuan15Decoder

    network = Hunyuan15Transformer(modules[0], seam, compiled)
    parts = Parts(transformer=network, decoder=None if decoder is None else Hunyuan15Decoder(decoder))
    return Hunyuan15Model(geometry, torch.device(DEVICE), BF16, parts)


def _our_wan(geometry: ModelGeometry, modules: tuple[Any, ...], decoder: Any, seam: Seam, compiled: bool) -> Any:
    from stages.models.wan import WanModel, WanParts
    from stages.models.wan_decoder import WanDecoder
    from stages.models.wan_parts import Index
    from stages.models.wan_transformer import WanTransformer

    experts = tuple(WanTransformer(module, seam, compiled) for module in modules)
    parts = WanParts(experts=experts, decoder=None if decoder is None else WanDecoder(decoder))
    return WanModel(geometry, torch.device(DEVICE), BF16, Index(frozenset(), geometry.boundary, False), parts)


_OURS: dict[str, Callable[..., Any]] = {"hunyuan": _our_hunyuan, "hunyuan15": _our_hunyuan15, "wan": _our_wan}


def condition(subject: Subject, branches: int | None = None) -> Condition:
    """An encoded prompt of ``NUM_PROMPT`` tokens, its padding cut, with an image where the model needs one."""
    geometry, count = subject.geometry, subject.branches if branches is None else branches
    negative = _branch(geometry) if count == 2 else None
    guidance = geometry.default_guidance if count == 2 or geometry.family == "hunyuan" else 1.0
    latent = None
    if geometry.image == "required":
        latent = noise(1, geometry.latent_channels, 1, *subject.grid[1:]).float()
    return Condition(_branch(geometry), negative, guidance, geometry.default_guidance_low, latent=latent)


def _branch(geometry: ModelGeometry) -> Branch:
    if geometry.family == "hunyuan":
        return Branch({"text": noise(1, NUM_PROMPT, 4096), "pooled": noise(1, 768)})
    if geometry.family == "wan":
        return Branch({"text": noise(1, NUM_PROMPT, 4096)}, num_pads=512 - NUM_PROMPT)
    tensors = {"text": noise(1, NUM_PROMPT, 3584), "glyphs": noise(1, 0, 1472)}
    if geometry.image == "required":
        tensors["image"] = noise(1, 729, 1152)
    return Branch(tensors)
