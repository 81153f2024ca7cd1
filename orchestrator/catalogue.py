"""Every supported model: heads, strides, patches, timestep shifts, solvers and defaults. The one home of these facts."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.model_geometry import DVG_SHIFT_PATTERN, ModelGeometry, Shifts, shifts_from
from orchestrator.types import VideoShape

WAN_MINI_SHIFT = 3.0
WAN_MINI_CHANNELS = 16
WAN_MINI_DVG = (
    ("demand_space", "pixels"),
    ("spatial_demand", "highpass"),
    ("temporal_demand", "dense_lk"),
    ("sharpness", 4.0),
    ("fitted", (0.2637, 0.0972, 0.2821, 0.6327, -0.3288, -0.7827, -0.4327, -0.4864, 0.5944, 0.1281)),
)
"""Its latent cells each hold a whole texture period, so the released measures on the latent follow the content too little
(``experiments/LOG.md`` has the figures)."""
WAN_480P = VideoShape(81, 480, 832, 16)
HUNYUAN_HUB = "hunyuanvideo-community/HunyuanVideo"


def _constant(shift: float) -> Shifts:
    return shift, shift, shift, shift


WAN_1_3B = ModelGeometry(
    name="wan2.1-1.3b",
    heads=12,
    head_dim=128,
    num_layers=30,
    vae_stride=(4, 8, 8),
    latent_channels=16,
    patch=(1, 2, 2),
    default_shape=WAN_480P,
    default_steps=50,
    default_guidance=5.0,
    full_shift=5.0,
    stage_shifts=_constant(5.0),
    linear_macs=30 * (6 * 1536**2 + 2 * 1536 * 8960),
    num_params=1_418_996_800,
    solver="unipc",
    hub="Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
)

WAN_14B = replace(
    WAN_1_3B,
    name="wan2.1-14b",
    heads=40,
    num_layers=40,
    stage_shifts=shifts_from(5.0),
    linear_macs=40 * (6 * 5120**2 + 2 * 5120 * 13824),
    num_params=14_288_491_584,
    hub="Wan-AI/Wan2.1-T2V-14B-Diffusers",
)

WAN_A14B = replace(
    WAN_14B,
    name="wan2.2-a14b",
    default_steps=40,
    default_guidance=4.0,
    default_guidance_low=3.0,
    boundary=0.875,
    full_shift=12.0,
    stage_shifts=(5.0, 9.0, 11.0, 11.0),
    shifts_follow=False,
    hub="Wan-AI/Wan2.2-T2V-A14B-Diffusers",
)

WAN_MINI = replace(
    WAN_1_3B,
    name="wan-mini",
    heads=8,
    head_dim=32,
    num_layers=7,
    latent_channels=WAN_MINI_CHANNELS,
    default_shape=VideoShape(41, 144, 144, 16),
    default_steps=30,
    default_guidance=2.0,
    full_shift=WAN_MINI_SHIFT,
    stage_shifts=_constant(WAN_MINI_SHIFT),  # so that a full run and a reduced one share one schedule
    linear_macs=7 * (6 * 256**2 + 2 * 256 * 512),
    num_params=6_204_992,
    solver="euler",
    image="optional",
    hub="",
    dvg_defaults=WAN_MINI_DVG,
)

WAN = (
    WAN_1_3B,
    WAN_14B,
    replace(
        WAN_14B,
        name="wan2.1-i2v-14b",
        image="required",
        num_params=16_394_878_784,
        hub="Wan-AI/Wan2.1-I2V-14B-480P-Diffusers",
    ),
    WAN_A14B,
    replace(
        WAN_A14B,
        name="wan2.2-i2v-a14b",
        image="required",
        default_guidance=3.5,
        default_guidance_low=3.5,
        boundary=0.900,
        full_shift=5.0,
        hub="Wan-AI/Wan2.2-I2V-A14B-Diffusers",
    ),
    replace(
        WAN_14B,
        name="wan2.2-ti2v-5b",
        image="optional",
        heads=24,
        num_layers=30,
        vae_stride=(4, 16, 16),
        latent_channels=48,
        default_shape=VideoShape(121, 704, 1280, 24),
        linear_macs=30 * (6 * 3072**2 + 2 * 3072 * 14336),
        num_params=4_999_787_712,
        hub="Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    ),
    WAN_MINI,
)

HUNYUAN = ModelGeometry(
    name="hunyuanvideo",
    family="hunyuan",
    heads=24,
    head_dim=128,
    num_layers=60,
    vae_stride=(4, 8, 8),
    latent_channels=16,
    patch=(1, 2, 2),
    default_shape=VideoShape(125, 720, 1280, 24),
    default_steps=50,
    default_guidance=6.0,
    full_shift=7.0,
    stage_shifts=DVG_SHIFT_PATTERN,
    shifts_follow=False,
    pixel_planner=True,
    level_spacing="uniform",
    linear_macs=60 * 12 * 3072**2,
    num_params=12_821_012_544,
    text_tokens=256,
    hub=HUNYUAN_HUB,
    dvg_defaults=(("demand_match_prior", 0.15),),
)

HUNYUAN15 = ModelGeometry(
    name="hunyuanvideo-1.5",
    family="hunyuan15",
    heads=16,
    head_dim=128,
    num_layers=54,
    vae_stride=(4, 16, 16),
    latent_channels=32,
    patch=(1, 1, 1),
    default_shape=VideoShape(121, 480, 848, 24),
    default_steps=50,
    default_guidance=6.0,
    full_shift=5.0,
    stage_shifts=DVG_SHIFT_PATTERN,
    shifts_follow=False,
    level_spacing="uniform",
    linear_macs=54 * 12 * 2048**2,
    num_params=8_326_608_160,
    text_tokens=1985,  # 1,000 of Qwen, 256 of ByT5, 729 of the image
    hub=f"{HUNYUAN_HUB}-1.5-Diffusers-480p_t2v",
)


def _hunyuan15(suffix: str, hub: str, *, image: bool, shift: float, guidance: float = 6.0, large: bool = False) -> ModelGeometry:
    """A published variant of HunyuanVideo-1.5: its task, size and distillation decide shift and guidance."""
    return replace(
        HUNYUAN15,
        name=f"hunyuanvideo-1.5-{suffix}",
        image="required" if image else "none",
        full_shift=shift,
        default_guidance=guidance,
        default_shape=VideoShape(121, 720, 1280, 24) if large else HUNYUAN15.default_shape,
        hub=f"{HUNYUAN_HUB}-1.5-Diffusers-{hub}",
    )


ALL = (
    HUNYUAN,
    replace(
        HUNYUAN,
        name="hunyuanvideo-i2v",
        image="required",
        default_shape=VideoShape(129, 720, 1280, 24),
        text_tokens=1000,
        hub=f"{HUNYUAN_HUB}-I2V",
    ),
    HUNYUAN15,
    _hunyuan15("720p", "720p_t2v", image=False, shift=9.0, large=True),
    _hunyuan15("i2v", "480p_i2v", image=True, shift=5.0),
    _hunyuan15("i2v-720p", "720p_i2v", image=True, shift=7.0, large=True),
    _hunyuan15("distilled", "480p_t2v_distilled", image=False, shift=5.0, guidance=1.0),
    _hunyuan15("i2v-distilled", "480p_i2v_distilled", image=True, shift=5.0, guidance=1.0),
    _hunyuan15("i2v-720p-distilled", "720p_i2v_distilled", image=True, shift=7.0, guidance=1.0, large=True),
    replace(
        _hunyuan15("i2v-step-distilled", "480p_i2v_step_distilled", image=True, shift=7.0, guidance=1.0),
        default_steps=12,
        meanflow=True,
    ),
    *WAN,
)

MODELS: dict[str, ModelGeometry] = {geometry.name: geometry for geometry in ALL}
