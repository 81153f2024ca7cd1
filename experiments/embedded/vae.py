"""The embedded model's video autoencoder, and its encode and decode for whole clips.

The stock encoder and decoder run a clip in chunks that hand frames on in a cache. The cache only stands in for what lies
earlier in the clip, so one pass over all frames gives the same values for a fraction of the launches and copies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample, WanResidualBlock, patchify, unpatchify
from torch import Tensor, nn

LATENT_CHANNELS = 16
PATCH = 2
BASE_DIM, DECODER_BASE_DIM = 24, 40

#: RMS norm and SiLU of rows [N, C] with gains [C]
NormSilu = Callable[[Tensor, Tensor], Tensor]


def build(base_dim: int = BASE_DIM, decoder_base_dim: int = DECODER_BASE_DIM) -> AutoencoderKLWan:
    """4x in time, 8x in space: pixels are folded 2 x 2 first, so the costly top level runs at half the resolution."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        decoder_base_dim=decoder_base_dim,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 3],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def norm_silu(rows: Tensor, gamma: Tensor) -> Tensor:
    """SiLU of the RMS norm of rows [N, C] with gains [C]: computed in float32, returned in the rows' type."""
    wide = rows.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True).clamp_min(1e-24))
    return F.silu(wide * scale * gamma).to(rows.dtype)


def compiled_norm_silu() -> NormSilu:
    """`norm_silu` as one kernel for any number of rows; unfused, it takes most of a training step's memory traffic."""
    torch._dynamo.config.recompile_limit = 64  # one version for each channel count, type and gradient mode
    fused = torch.compile(norm_silu)

    def run(rows: Tensor, gamma: Tensor) -> Tensor:
        torch._dynamo.mark_dynamic(rows, 0)
        return fused(rows, gamma)

    return run


def encode(vae: AutoencoderKLWan, video: Tensor, act: NormSilu = norm_silu) -> tuple[Tensor, Tensor]:
    """Mean and log variance [B, 16, T, H/8, W/8] of video [B, 3, F, H, W] in [-1, 1]; equal to ``vae.encode``."""
    encoder = vae.encoder
    x = encoder.conv_in(_channels_last(patchify(video.contiguous(), PATCH)))
    for layer in encoder.down_blocks:
        x = _down(layer, x) if isinstance(layer, WanResample) else _residual(layer, x, act)
    x = _middle(encoder.mid_block, x, act)
    mean, logvar = vae.quant_conv(encoder.conv_out(_act(encoder.norm_out, x, act))).chunk(2, 1)
    return mean, logvar.clamp(-30, 20)


def decode(vae: AutoencoderKLWan, z: Tensor, act: NormSilu = norm_silu) -> Tensor:
    """Video of raw latents (not standardised); equal to ``vae.decode`` before it clamps."""
    decoder = vae.decoder
    x = decoder.conv_in(_channels_last(vae.post_quant_conv(z)))
    x = _middle(decoder.mid_block, x, act)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _residual(resnet, x, act)
        for layer in block.upsamplers or ():
            x = _up(layer, x)
    return unpatchify(decoder.conv_out(_act(decoder.norm_out, x, act)), PATCH)


def channels_last(vae: AutoencoderKLWan) -> None:
    """Lay out the convolutions' weights as tensor cores and CPUs favour."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


def _act(norm: nn.Module, x: Tensor, act: NormSilu) -> Tensor:
    last = x.permute(0, 2, 3, 4, 1)
    with torch.autocast(x.device.type, enabled=False):
        rows = act(last.reshape(-1, x.shape[1]), norm.gamma.view(-1))  # type: ignore[operator, union-attr]
    return rows.view(last.shape).permute(0, 4, 1, 2, 3)


def _residual(block: WanResidualBlock, x: Tensor, act: NormSilu) -> Tensor:
    inner = block.conv1(_act(block.norm1, x, act))
    return block.conv2(_act(block.norm2, inner, act)) + block.conv_shortcut(x)


def _middle(block: nn.Module, x: Tensor, act: NormSilu) -> Tensor:
    x = _residual(block.resnets[0], x, act)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual(resnet, attention(x), act)
    return x


def _spatial(layer: WanResample, x: Tensor) -> Tensor:
    """The layer's 2D part, frame by frame, kept channels-last throughout."""
    b, c, t, h, w = x.shape
    flat = x.permute(0, 2, 3, 4, 1).reshape(b * t, h, w, c)
    if layer.mode.startswith("upsample"):
        flat = flat.view(b * t, h, 1, w, 1, c).expand(-1, -1, 2, -1, 2, -1).reshape(b * t, 2 * h, 2 * w, c)
        out = layer.resample[1](flat.permute(0, 3, 1, 2))
    else:
        out = layer.resample(flat.permute(0, 3, 1, 2))
    return out.view(b, t, *out.shape[1:]).permute(0, 2, 1, 3, 4)


def _down(layer: WanResample, x: Tensor) -> Tensor:
    """The first frame stays; each later pair becomes one."""
    x = _spatial(layer, x)
    return torch.cat([x[:, :, :1], layer.time_conv(x)], 2) if x.shape[2] > 1 else x


def _up(layer: WanResample, x: Tensor) -> Tensor:
    """The first frame stays, unseen by the others' time convolution; each later one becomes two."""
    if x.shape[2] > 1:
        b, c, t, h, w = x[:, :, 1:].shape
        pairs = layer.time_conv(x[:, :, 1:]).permute(0, 2, 3, 4, 1).reshape(b, t, h, w, 2, c)
        rest = pairs.permute(0, 1, 4, 2, 3, 5).reshape(b, 2 * t, h, w, c).permute(0, 4, 1, 2, 3)
        x = torch.cat([x[:, :, :1], rest], 2)
    return _spatial(layer, x)
