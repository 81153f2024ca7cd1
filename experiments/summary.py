"""What a run comes to: one CSV row per item with its quality joined, and one table row per arm."""

from __future__ import annotations

QUALITY_COLUMNS = (
    *("arm", "n", "density", "text s", "sketch s", "refine s", "decode s", "speedup", "PSNR dB", "SSIM"),
    *("device s", "videos /h"),
)


def _cells(stat: ArmStats) -> tuple[str, ...]:
    return (
        stat.arm,
        f"{stat.num_videos}" + (f"/{stat.num_videos + stat.num_failed}" if stat.num_failed else ""),
        f"{stat.density:.3f}",
        *(f"{seconds:.2f}" for seconds in (stat.text_s, stat.sketch_s, stat.refine_s, stat.decode_s + stat.encode_s)),
        number(stat.speedup, "{:.2f}x"),
        number(stat.psnr, "{:.2f}"),
        number(stat.ssim, "{:.3f}"),
        f"{stat.device_s:.2f}",
        f"{stat.videos_per_device_hour:.0f}",
    )


def number(value: float | None, form: str) -> str:
    return NO_VALUE if value is None else form.format(value)
