"""Records of made-up items."""

from __future__ import annotations

from orchestrator.types import Item, Record


def make(number: int) -> Record:
    return Record(
        item_key=f"key{number}",
        arm="dvg",
        prompt_id=f"p{number}",
        prompt="a red circle",
        seed=number,
        model="wan-mini",
        planner="dvg",
        budget=0.5,
        num_steps=30,
        guidance=1.0,
        num_frames=41,
        height=144,
        width=144,
        fps=16,
        spatial_demand=0.25,
        temporal_demand=0.5,
        spatial_weight=0.3,
        temporal_weight=0.7,
        neutral_demand=False,
        action="s0.70-f9",
        s2=0.7,
        f2=9,
        why="still, detailed",
        density=0.5,
        density_executed=0.49,
        tokens_full=891,
        stage_grids="4x8x8|7x14x14|7x18x18|11x18x18",
        stage_s="0.1|0.2|0.3|0.4",
        text_s=0.1,
        sketch_s=0.2,
        refine_s=0.9,
        denoise_s=1.1,
        decode_s=0.3,
        encode_s=0.1,
        latency_s=2.0,
        device_s=1.5,
        degree=1,
        attempts=1,
        device="cpu",
        host="here",
        video=f"videos/dvg/p{number}/{number}.mp4",
        num_bytes=10,
        sha256="00",
        finished_at="2026-01-01T00:00:00+00:00",
    )


def row_item(record: Record) -> Item:
    return Item(record.item_key, record.arm, record.prompt_id, record.prompt, record.seed)
