"""VGDFR's frame schedule: which frames of a video become one, and what grid is left (arXiv 2504.12259 and its release).

Windows of 8 or 16 frames follow each other from frame 1 on. Of a window whose frames are alike, groups of two or four frames
become one, so that it takes half or a quarter of its latent frames. Frame 0 and the last ones stand alone, so that every group
has a frame after it to be restored from. Pure arithmetic; the similarities come from ``stages.planners.vgdfr``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.actions import density, full_action
from orchestrator.geometry import ModelGeometry
from orchestrator.types import Action, Merged, Stage, VideoShape

STRIDE = 4
"""Video frames of a latent frame, after the first, which has one. All supported families have it."""
TWOS, FOURS = 8, 16
"""Frames of a window whose frames are merged by twos, and by fours."""
TAIL = 9
"""A window by twos begins before the last so many frames; one by fours as many earlier as it is longer."""
FEWEST_FRAMES = 13
"""With fewer there is no window."""
RELEASED_SHARE = 0.1
"""Of the steps, that come before the compression."""
LOOSE = 0.5
"""Merging by fours, where the schedule allows it, is for thresholds below this."""
SEARCHED, PRECISION = (0.01, 0.99), 0.001
"""Thresholds between which a ratio is looked for, and how closely."""

Likeness = Sequence[Sequence[float]]
"""``likeness[d - 1][j]``: SSIM of the frames ``j`` and ``j + d``, for d = 1, and for 2 and 3 where fours are looked for."""


def changes_nothing(keep_token_ratio: float | None, similarity_threshold: float | None) -> bool:
    """Whether these settings are the plain run."""
    return 1 in (keep_token_ratio, similarity_threshold)


def scan(likeness: Likeness, num_frames: int, threshold: float, by_fours: bool) -> Merged:
    """The windows whose least similarity is above ``threshold``, the longer ones first where ``by_fours``."""
    twos: list[int] = []
    fours: list[int] = []
    j = 1
    while j < num_frames - TAIL:
        if by_fours and j < num_frames - TAIL - TWOS and _within_fours(likeness, j) > threshold:
            fours.append(j)
            j += FOURS
            continue
        if min(likeness[0][j + o] for o in range(0, TWOS, 2)) > threshold:
            twos.append(j)
        j += TWOS
    return Merged(num_frames, tuple(twos), tuple(fours))


def _within_fours(likeness: Likeness, j: int) -> float:
    """The least similarity of any two frames of one group."""
    return min(likeness[d][j + o + i] for o in range(0, FOURS, 4) for d in range(3) for i in range(3 - d))


def scan_to_ratio(likeness: Likeness, num_frames: int, ratio: float) -> tuple[Merged, float]:
    """What keeps about ``ratio`` of the frames, by bisection on the threshold, and that threshold.

    Only whole windows are merged, so the ratio is met to within one of them, if the video is alike enough at all.
    """
    low, high = SEARCHED
    while high - low > PRECISION:
        middle = (low + high) / 2
        found = scan(likeness, num_frames, middle, middle < LOOSE)
        low, high = (middle, high) if num_kept(found) / num_frames < ratio else (low, middle)
    threshold = (low + high) / 2
    return scan(likeness, num_frames, threshold, threshold < LOOSE), threshold


def groups(merged: Merged) -> Iterator[range]:
    """The frames of the whole video, those that become one together."""
    sizes = dict.fromkeys(merged.by_twos, 2) | dict.fromkeys(merged.by_fours, 4)
    j = 0
    while j < merged.num_frames:
        size = sizes.get(j, 1)
        for start in range(j, j + 4 * size if size > 1 else j + 1, size):
            yield range(start, start + size)
        j += 4 * size if size > 1 else 1


def kept_frames(merged: Merged) -> tuple[int, ...]:
    """Where in the whole video the frames that are left stand: the first of each group."""
    return tuple(group[0] for group in groups(merged))


def num_kept(merged: Merged) -> int:
    return merged.num_frames - 4 * len(merged.by_twos) - 12 * len(merged.by_fours)


def kept_latents(merged: Merged) -> tuple[int, ...]:
    """The latent frames whose place, and whose noise, those that are left have: of each window the first."""
    dropped = {1 + j // STRIDE + i for j in merged.by_twos for i in (1,)}
    dropped |= {1 + j // STRIDE + i for j in merged.by_fours for i in (1, 2, 3)}
    return tuple(i for i in range((merged.num_frames - 1) // STRIDE + 1) if i not in dropped)


def reachable(num_frames: int, by_fours: bool) -> tuple[int, ...]:
    """Every number of latent frames that a video may be left with, the largest first."""
    dropped: dict[int, set[int]] = {}

    def beyond(j: int) -> set[int]:
        if j >= num_frames - TAIL:
            return {0}
        if j not in dropped:
            found = beyond(j + TWOS) | {n + 1 for n in beyond(j + TWOS)}
            if by_fours and j < num_frames - TAIL - TWOS:
                found |= {n + 3 for n in beyond(j + FOURS)}
            dropped[j] = found
        return dropped[j]

    return tuple(sorted(((num_frames - 1) // STRIDE + 1 - n for n in beyond(1)), reverse=True))


def steps_before(num_steps: int, asked: int | None) -> int:
    """Forwards on all frames: as asked, or a tenth of the steps as in the release's experiments.

    Of few steps two, if there are as many: what pure noise is taken for shows nothing of the video yet.
    """
    return max(1, min(num_steps - 1, max(2, int(num_steps * RELEASED_SHARE)))) if asked is None else asked


def schedule(geometry: ModelGeometry, shape: VideoShape, num_steps: int, before: int, num_latents: int) -> Action:
    """``before`` forwards on all frames, the rest on ``num_latents`` latent frames.

    The last of the former is a transition: its clean estimate is what is merged.
    """
    (full,) = full_action(geometry, shape, num_steps).stages
    stages = Stage(full.grid, before - 1, full.shift), Stage((num_latents, *full.grid[1:]), num_steps - before + 1, full.shift)
    spent = density([stage.grid for stage in stages], [stage.steps for stage in stages])
    return Action(f"t{num_latents}", stages, spent, 1.0, num_latents)
