"""The contact sheet: arms as columns, prompts as rows, a few frames of every video, in one PNG."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from experiments.report.charts import thinned
from experiments.report.clips import Clip, Prompt
from experiments.report.material import Home
from orchestrator.files import write_atomic
from orchestrator.mistakes import RunError
from stages.video import read_frames

MOST_PROMPTS, MOST_ARMS = 12, 8
NUM_FRAMES = 3
"""Of a video: its first, its last, and evenly between them."""
MOST_PIXELS = 150
"""Longer side of a frame on the sheet."""
MARGIN, GAP, TEXT, HEAD = 20, 3, 230, 34
PAPER, INK, SOFT, HOLE = "#ffffff", "#16181d", "#5b616e", "#eceef1"
_CHARS = 34
"""Of a line of a prompt."""


def write_sheet(path: Path, prompts: Sequence[Prompt], homes: Mapping[str, Home], arms: Sequence[str]) -> bool:
    """Whether there was anything to show. Of many prompts, some evenly chosen; a video that cannot be read is a named hole."""
    shown = chosen(prompts)
    if not shown:
        return False
    buffer = io.BytesIO()
    _drawn(shown, homes, list(arms)[:MOST_ARMS]).save(buffer, "PNG", optimize=True)
    write_atomic(path, buffer.getvalue())
    return True


def chosen(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Of those with a video, where they suffice those that the most arms have answered."""
    num_made = {prompt.key: sum(clip.record is not None for clip in prompt.clips) for prompt in prompts}
    most = max(num_made.values(), default=0)
    whole = [prompt for prompt in prompts if num_made[prompt.key] == most > 0]
    some = [prompt for prompt in prompts if num_made[prompt.key] > 0]
    return thinned(whole if len(whole) >= MOST_PROMPTS else some, MOST_PROMPTS)


def _drawn(prompts: Sequence[Prompt], homes: Mapping[str, Home], arms: Sequence[str]) -> Image.Image:
    width, height = _frame_size(prompts)
    cell = NUM_FRAMES * (width + GAP) + MARGIN
    row = max(height, 96) + MARGIN
    sheet = Image.new("RGB", (2 * MARGIN + TEXT + len(arms) * cell, MARGIN + HEAD + len(prompts) * row), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, arm in enumerate(arms):
        draw.text((MARGIN + TEXT + column * cell, MARGIN), _plain(arm), INK, _font(17))
    for index, prompt in enumerate(prompts):
        top = MARGIN + HEAD + index * row
        _tell(draw, prompt, top)
        for clip in prompt.clips:
            if clip.arm in arms:
                _put(sheet, clip, homes, (MARGIN + TEXT + arms.index(clip.arm) * cell, top), (width, height))
    return sheet


def _frame_size(prompts: Sequence[Prompt]) -> tuple[int, int]:
    """(width, height) of a frame on the sheet: the first video's shape."""
    record = next(clip.record for prompt in prompts for clip in prompt.clips if clip.record)
    share = MOST_PIXELS / max(record.width, record.height)
    return max(1, round(record.width * share)), max(1, round(record.height * share))


def _tell(draw: ImageDraw.ImageDraw, prompt: Prompt, top: int) -> None:
    lines = textwrap.wrap(_plain(prompt.text or prompt.prompt_id), _CHARS) or [""]
    told = lines[:4] if len(lines) <= 4 else [*lines[:3], f"{lines[3][: _CHARS - 2]} …"]
    draw.multiline_text((MARGIN, top), "\n".join(told), INK, _font(13), spacing=4)
    draw.text(
        (MARGIN, top + 18 * len(told) + 4), _plain(f"{prompt.prompt_id}, seed {prompt.seed}")[: _CHARS + 4], SOFT, _font(12)
    )


def _put(sheet: Image.Image, clip: Clip, homes: Mapping[str, Home], at: tuple[int, int], size: tuple[int, int]) -> None:
    frames, trouble = _frames(clip, homes)
    for index, frame in enumerate(frames):
        tile = frame.resize(_within(frame.size, size), Image.Resampling.LANCZOS)
        left = at[0] + index * (size[0] + GAP)
        sheet.paste(tile, (left + (size[0] - tile.width) // 2, at[1] + (size[1] - tile.height) // 2))
    if trouble:
        right = at[0] + NUM_FRAMES * (size[0] + GAP) - GAP
        draw = ImageDraw.Draw(sheet)
        draw.rectangle((*at, right, at[1] + size[1]), HOLE)
        draw.multiline_text((at[0] + 10, at[1] + 10), textwrap.fill(_plain(trouble)[:160], 44), SOFT, _font(13))


def _within(size: tuple[int, int], most: tuple[int, int]) -> tuple[int, int]:
    share = min(most[0] / size[0], most[1] / size[1])
    return max(1, round(size[0] * share)), max(1, round(size[1] * share))


def _frames(clip: Clip, homes: Mapping[str, Home]) -> tuple[list[Image.Image], str]:
    """The frames, or why there are none."""
    if clip.record is None:
        return [], f"given up: {clip.error}" if clip.error else "no video"
    home = homes[clip.record.item_key]
    last = clip.record.num_frames - 1
    wanted = {round(last * index / (NUM_FRAMES - 1)) for index in range(NUM_FRAMES)}
    try:
        with home.store.fetched(home.video) as path:
            found = [Image.fromarray(frame) for index, frame in enumerate(read_frames(path)) if index in wanted]
    except FileNotFoundError:
        return [], "the video file is missing"
    except (ValueError, OSError, RunError) as error:
        return [], f"the video cannot be read: {error}"
    return found, "" if found else "the video has no frames"


def _plain(text: str) -> str:
    """In one line; the sheet's font has no control characters."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
