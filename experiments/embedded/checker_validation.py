"""How far the checker can be trusted: rendered scenes, clean and degraded, and videos that must not pass."""

from __future__ import annotations

import argparse
import io
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace

import av
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from .checker import ATTRIBUTES, Observed, check, classify, compare, course
from .checker_things import SeenThing
from .scenes import SPEED_CLASSES, Scene, place, sample_scene

Video = NDArray[np.uint8]
Report = Callable[[str], object]
Result = dict[str, bool | None]
Tally = dict[str, tuple[int, int]]  # attribute: how many right, of how many

FULL = (41, 144, 144)
FRAME_COUNTS, SIDES = (13, 17, 21, 33, 41, 61, 81), (64, 80, 96, 112, 128, 144, 160)


def draw(scene: Scene, shape: tuple[int, int, int] = FULL) -> Video:
    """A scene as uint8 video [F, H, W, 3] of the given frames, height and width."""
    from .render import render  # torch is needed for this alone

    video = ((render([scene], *shape)[0] + 1) * 127.5).round().byte()
    return np.asarray(video.permute(1, 2, 3, 0).numpy())


def blurred(video: Video, sigma: float) -> Video:
    """Gaussian blur inside each frame, sigma in pixels."""
    return np.asarray(ndimage.gaussian_filter(video, (0, sigma, sigma, 0)))


def noisy(video: Video, deviation: float, seed: int = 0) -> Video:
    """White noise of a deviation given as a share of the range."""
    grain = np.random.default_rng(seed).normal(0, 255 * deviation, video.shape)
    return (video + grain).clip(0, 255).astype(np.uint8)


def compressed(video: Video, crf: int) -> Video:
    """There and back through H.264 yuv420p."""
    stored = io.BytesIO()
    with av.open(stored, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=16, options={"crf": str(crf), "preset": "fast", "threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *video.shape[1:3], "yuv420p"
        for frame in video:
            target.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        target.mux(stream.encode())
    stored.seek(0)
    with av.open(stored) as source:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in source.decode(video=0)])


CONDITIONS: dict[str, Callable[[Video], Video]] = {
    "clean": lambda video: video,
    "blur, sigma 0.6": lambda video: blurred(video, 0.6),
    "blur, sigma 1": lambda video: blurred(video, 1.0),
    "noise, 0.02": lambda video: noisy(video, 0.02),
    "H.264, crf 10": lambda video: compressed(video, 10),
    "H.264, crf 23": lambda video: compressed(video, 23),
    "blur 1, noise 0.02, crf 23": lambda video: compressed(noisy(blurred(video, 1.0), 0.02), 23),
}


def tally(results: Iterable[Result]) -> Tally:
    """For each attribute, how many results are True, and how many are not None."""
    right, seen = Counter[str](), Counter[str]()
    for result in results:
        right.update(name for name, value in result.items() if value)
        seen.update(name for name, value in result.items() if value is not None)
    return {name: (right[name], seen[name]) for name in ATTRIBUTES}


def truth(scene: Scene) -> Observed:
    """What `classify` should see in a video of a scene."""
    things = []
    for thing, placed in zip(scene.things, place(scene), strict=True):
        seen = (thing.colour, thing.shape, thing.size, course(thing), SPEED_CLASSES[thing.motion])
        things.append(SeenThing(*seen, placed.radius, placed.length, placed.at(0.5)))
    things.sort(key=lambda thing: -thing.radius)
    return Observed(tuple(things), scene.background, "unseen" if scene.background == "plain" else scene.camera)


def in_motion(scene: Scene) -> Scene:
    """The scene, with things that stand still made to bounce and a static camera made to pan fast."""
    things = tuple(replace(thing, motion="bounce") if thing.motion == "still" else thing for thing in scene.things)
    return replace(scene, things=things, camera="fast pan right" if scene.camera == "static" else scene.camera)


def wrong_videos(scene: Scene, video: Video, asked: Scene, number: int) -> dict[str, Result]:
    """Results of checks that should fail; `video` shows `scene`, `asked` is another one, `number` picks a tone and a seed."""
    grey = np.full_like(video, 37 * number % 256)
    return {
        "checked for another scene": check(video, asked),
        "the same, by a perfect checker": compare(truth(scene), asked),
        "its first frame, frozen": check(np.repeat(video[:1], len(video), 0), in_motion(scene)),
        "played backwards": check(video[::-1], scene),
        "one grey": check(grey, scene),
        "white noise": check(noisy(grey, 0.5, number), scene),
    }


def right_videos(scene: Scene, video: Video, report: Report, rng: random.Random) -> dict[str, Result]:
    """Results of checks that should pass: the scene's video under each of `CONDITIONS`, and in another shape."""
    videos = {name: degrade(video) for name, degrade in CONDITIONS.items()}
    shape = rng.choice(FRAME_COUNTS), rng.choice(SIDES), rng.choice(SIDES)
    videos["any length and sides"] = draw(scene, shape)
    videos["the same, blur 0.6, crf 23"] = softly_compressed(videos["any length and sides"])
    return {name: _reported(name, shown, scene, report) for name, shown in videos.items()}


def softly_compressed(video: Video) -> Video:
    """Slightly blurred, then `compressed` at crf 23."""
    return compressed(blurred(video, 0.6), 23)


def _reported(name: str, video: Video, scene: Scene, report: Report) -> Result:
    """`check`, with a line for each mistake."""
    seen = classify(video)
    result = compare(seen, scene)
    if wrong := [attribute for attribute, value in result.items() if value is False]:
        report(f"{name}, {list(video.shape[:3])}: {', '.join(wrong)} wrong in {scene}: saw {seen}")
    return result


def table(results: list[dict[str, Result]], title: str) -> Table:
    """Percentages right, of the videos where the attribute can be seen, a row for each kind of video."""
    drawn = Table("video", *ATTRIBUTES, title=title)
    for name in results[0]:
        counts = tally(result[name] for result in results).values()
        drawn.add_row(name, *(f"{100 * right / seen:.1f}" if seen else "-" for right, seen in counts))
    return drawn


def seconds_per_video(video: Video, repeats: int = 10) -> float:
    """Mean wall time of `classify`."""
    start = time.perf_counter()
    for _ in range(repeats):
        classify(video)
    return (time.perf_counter() - start) / repeats


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description="Measures the checker on rendered scenes.")
    parser.add_argument("--scenes", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mistakes", action="store_true", help="print every mistake on a scene's own video")
    options = parser.parse_args()
    console = Console(width=140)
    report: Report = console.print if options.mistakes else lambda line: None
    rng = random.Random(options.seed)
    scenes = [sample_scene(rng) for _ in range(options.scenes)]
    right, wrong = [], []
    for number, scene in enumerate(scenes):
        video = draw(scene)
        right.append(right_videos(scene, video, report, rng))
        wrong.append(wrong_videos(scene, video, scenes[number - 1], number))
    title = f"of {len(scenes)} scenes, {FULL[0]} x {FULL[1]} x {FULL[2]} unless said otherwise: % right"
    console.print(table(right, f"Videos {title}"))
    console.print(table(wrong, f"Wrong videos {title}"))
    console.print(f"{seconds_per_video(draw(sample_scene(rng))):.3f} s a video")
