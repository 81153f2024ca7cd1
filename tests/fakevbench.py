"""Something that looks like VBench's environment: its package, torch and cv2 as a few lines each, run by this interpreter.

A video is a text file. Its score is its number; ``crash`` ends the process, ``bad`` raises, ``hang`` says nothing, and ``none``
has no frame.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.vbench.dimensions import TABLE
from experiments.vbench.process import Runtime, Video
from experiments.vbench.weights import paths_of, roots
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.types import Record
from tests.fakerun import make_record, make_spec

PROMPTS = ["a red circle", "a blue square", "a green star", "a white dot", "an orange ring", "a cyan cross", "a pink heart"]

TORCH = """
import os
from contextlib import contextmanager
class version:
    cuda = "none"
class cuda:
    @staticmethod
    def device_count():
        return int(os.environ.get("FAKE_GPUS", 0))
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
TORCHRUN = """
import runpy, sys
script = next(index for index, word in enumerate(sys.argv) if word.endswith("evaluate.py"))
sys.argv = sys.argv[script:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Stands in for torch.distributed.run."""
LAUNCHED = """
import json, os, pathlib, sys
told = dict(zip(sys.argv[1::2], sys.argv[2::2]))
with open(os.environ["FAKE_LOG"], "a") as log:
    log.write("torchrun %s %s\\n" % (told["--dimension"], os.environ.get("NCCL_SOCKET_IFNAME")))
videos = sorted(pathlib.Path(told["--videos_path"]).iterdir())
if any(path.read_text() == "bad" for path in videos):
    sys.exit("moov atom not found")
records = [{"video_path": str(path), "video_results": float(path.read_text())} for path in videos]
score = sum(record["video_results"] for record in records) / len(records)
out = pathlib.Path(told["--output_path"]) / "results_2026-01-01-00:00:00_eval_results.json"
out.write_text(json.dumps({told["--dimension"]: [score, records]}))
"""
"""Stands in for VBench's own command."""
STATIC = """
import pathlib
class StaticFilter:
    def __init__(self, args, device): pass
    def infer(self, path):
        text = pathlib.Path(path).read_text()
        assert text != "unjudged", "no frame"
        return "moving" not in text
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
    for name, text in {
        "torch/__init__.py": TORCH,
        "torch/distributed/__init__.py": "class TCPStore: pass\n",
        "torch/distributed/run.py": TORCHRUN,
        "vbench/launch/evaluate.py": LAUNCHED,
        "vbench/cli/static_filter.py": STATIC,
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "cv2.py").write_text("def setNumThreads(number): pass\n")
    for name, function in DIMENSIONS.items():
        check = 'raise OSError("weights of another network")' if name == BROKEN else "pass"
        (package / f"{name}.py").write_text(MODULE.format(name=name, function=function, check=check))
    about = root / "vbench-0.1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vbench\nVersion: 0.1.5\n")
    (root / "omegaconf.py").write_text("")
    (root / "easydict.py").write_text("EasyDict = dict\n")
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


def text_run(root: Path, contents: Sequence[str], arms: Sequence[str] = ("full",)) -> RunPaths:
    """A run whose videos are text files that say their score."""
    records = [text_record(root, arm, index, text) for arm in arms for index, text in enumerate(contents)]
    return finished(root, records, make_spec(records) if records else {})


def text_record(root: Path, arm: str, index: int, text: str) -> Record:
    return record_of(root, make_record(arm, f"p{index}", prompt=PROMPTS[index]), text)


def record_of(root: Path, record: Record, text: str) -> Record:
    """With the video written, and its true size and digest."""
    path = root / record.video
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return dataclasses.replace(record, sha256=hashlib.sha256(text.encode()).hexdigest(), num_bytes=len(text))


def finished(root: Path, records: Sequence[Record], spec: dict[str, Any]) -> RunPaths:
    paths = RunPaths(root)
    paths.root.mkdir(parents=True, exist_ok=True)
    paths.config.write_text(json.dumps(spec))
    ledger = Ledger(paths)
    for record in records:
        ledger.append(record)
    return paths
