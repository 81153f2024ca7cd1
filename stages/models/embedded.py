"""The small text-to-video model that ships with the project."""

from __future__ import annotations

from pathlib import Path

NAME = "wan-mini"
FOLDER = Path(__file__).parents[1] / "embedded" / "wan_mini"
"""In diffusers' Wan format: stock ``WanPipeline.from_pretrained`` loads it."""
