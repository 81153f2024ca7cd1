"""Something that looks like VBench's environment: its package, torch and cv2 as a few lines each, run by this interpreter.

A video is a text file. Its score is its number; ``crash`` ends the process, ``bad`` raises, ``hang`` says nothing, and ``none``
has no frame.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.vbench.dimensions import TABLE
from experiments.vbench.process import Runtime, Video
from experiments.vbench.weights import paths_of, roots

TORCH = """
from contextlib import contextmanager
class version:
    cuda = "none"
def set_num_threads(number): pass
def device(name): return name
@contextmanager
def inference_mode(): yield
"""
MODULE = """
import json, os, pathlib, sys, time
class Model:
    def __init__(self, where):
        self.where = where
        with open(os.environ["FAKE_LOG"], "a") as log:
            log.write("load {name} %d\\n" % os.getpid())
def read(path):
    said = pathlib.Path(path).read_text().split()
    print("a line that VBench prints")
    if said[0] == "crash":
        sys.stderr.write("Segmentation fault in the decoder\\n"); sys.stderr.flush(); os._exit(7)
    if said[0] == "hang":
        time.sleep(60)
    if said[0] == "bad":
        raise RuntimeError("moov atom not found")
    return said
def {function}(*args):
    work = next(arg for arg in args if isinstance(arg, list))
    records = []
    for entry in work:
        for path in (entry["video_list"] if isinstance(entry, dict) else [entry]):
            said = read(path)
            if said[0] == "none":
                continue
            record = {{"video_path": path, "video_results": float(said[0])}}
            if isinstance(entry, dict):
                record["prompt"] = entry["prompt"]
                record["auxiliary"] = entry.get("auxiliary_info")
            records.append(record)
    return sum(r["video_results"] for r in records) / len(records) if records else float("nan"), records
def compute_{name}(json_dir, device, submodules, **kwargs):
    {check}
    return {function}(Model(submodules), json.load(open(json_dir)), device)
"""
DIMENSIONS = {
    "temporal_flickering": "temporal_flickering",
    "motion_smoothness": "motion_smoothness",
    "aesthetic_quality": "laion_aesthetic",
    "overall_consistency": "overall_consistency",
    "human_action": "human_action",
    "dynamic_degree": "dynamic_degree",
}
BROKEN = "dynamic_degree"
"""Cannot be loaded."""


def write_environment(root: Path) -> Runtime:
    """The packages in ``root``; what is loaded is told in its ``log``."""
    package = root / "vbench"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (root / "torch.py").write_text(TORCH)
    (root / "cv2.py").write_text("def setNumThreads(number): pass\n")
    for name, function in DIMENSIONS.items():
        check = 'raise OSError("weights of another network")' if name == BROKEN else "pass"
        (package / f"{name}.py").write_text(MODULE.format(name=name, function=function, check=check))
    about = root / "vbench-0.1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vbench\nVersion: 0.1.5\n")
    for name in ("omegaconf", "easydict"):
        (root / f"{name}.py").write_text("")
    python = root / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{root}" FAKE_LOG="{root}/log" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return Runtime(str(python), str(package))


def write_weights(cache: Path, *names: str) -> None:
    """Files where VBench reads the weights of these dimensions."""
    for weights in (weights for name in names for weights in TABLE[name].weights):
        for path in paths_of(weights, roots({"VBENCH_CACHE_DIR": str(cache)})):
            if path.is_relative_to(cache):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(weights.what)


def loads(root: Path) -> list[str]:
    """The dimension of every model that was loaded."""
    log = root / "log"
    return [line.split()[1] for line in log.read_text().splitlines()] if log.exists() else []


def write_videos(folder: Path, contents: Sequence[str]) -> list[Video]:
    folder.mkdir(parents=True, exist_ok=True)
    videos = []
    for index, text in enumerate(contents):
        path = folder / f"clip {index}-0.mp4"
        path.write_text(text)
        videos.append(Video(str(path), f"clip {index}"))
    return videos
