"""Runs inside VBench's own environment: keeps one dimension's model warm and measures videos with VBench's own function.

    python -P child.py            (the standard library alone, until a dimension is loaded)

Requests come as lines of JSON on the standard input, answers go as such to the standard output, and what VBench prints to the
standard error. It ends with its input.

    {"load": {dimension, function, submodules, device, threads, takes_prompts, whole}}
        {"loaded": seconds}  or  {"unavailable": why}
    {"score": [{path, prompt, auxiliary, sha256}, ...]}
        {"begin": i} and {"row": i, "record" or "failed": ..., "seconds": s} for each video, {"done": number}
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

IMAGING_MODE = "longer"
"""VBench's default: frames whose longer side is above 512 are made smaller."""


class Loaded:
    """A dimension's function with the model it was given, for any videos."""

    def __init__(self, job: dict[str, Any], call: Callable[[list[Any]], list[dict[str, Any]]]) -> None:
        self.job, self.call = job, call

    def entry(self, video: dict[str, Any]) -> Any:
        """A video as the function's work list has it."""
        if not self.job["takes_prompts"]:
            return video["path"]
        entry = {"prompt": video["prompt"], "video_list": [video["path"]]}
        return entry if video["auxiliary"] is None else {**entry, "auxiliary_info": video["auxiliary"]}

    def rows(self, videos: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """What is to be told of each video; one that cannot be measured stops nothing."""
        told = {index: why for index, video in enumerate(videos) if (why := changed(video))}
        together = self._together([video for index, video in enumerate(videos) if index not in told])
        for index, video in enumerate(videos):
            yield {"begin": index}
            start = time.monotonic()
            if index in told:
                row: dict[str, Any] = {"failed": told[index]}
            elif together is not None:
                row = {"record": together[video["path"]]}
            else:
                row = self._one(video)
            yield {"row": index, **row, "seconds": time.monotonic() - start}

    def _together(self, videos: list[dict[str, Any]]) -> dict[str, Any] | None:
        """Records by path, of a function that would load its model for each call; None: measure one by one."""
        if not self.job["whole"] or not videos:
            return None
        try:
            records = {record["video_path"]: record for record in self.call([self.entry(video) for video in videos])}
        except Exception as error:  # noqa: BLE001  (whatever one video raised: which one it was shows one by one)
            print(f"shard of {len(videos)}: {error}", file=sys.stderr)
            return None
        return records if all(video["path"] in records for video in videos) else None

    def _one(self, video: dict[str, Any]) -> dict[str, Any]:
        try:
            records = self.call([self.entry(video)])
        except ZeroDivisionError as error:
            # color leaves out a video that does not show its object, and then divides by the number of those left
            return {"record": None} if self.job["dimension"] == "color" else {"failed": told_of(error)}
        except Exception as error:  # noqa: BLE001  (decoders raise what they like; the video is named, the others go on)
            return {"failed": told_of(error)}
        if not records:
            return {"failed": "unreadable: no frame could be decoded"}
        if not finite(records[0]["video_results"]):
            return {"failed": f"the score is {records[0]['video_results']}: it needs two frames or more"}
        return {"record": records[0]}


def finite(value: Any) -> bool:
    return math.isfinite(float(value))


def told_of(error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}"[:300] if first else f"unreadable ({type(error).__name__})"


class Fetching(RuntimeError):
    """VBench would have fetched something."""


LOADERS = ("wget", "curl")
HERE = ("", "localhost", "127.0.0.1", "::1", None)


def seclude() -> None:
    """From here on whatever would go to the network raises Fetching, and so is told as the reason."""
    sys.addaudithook(_refuse)


def _refuse(event: str, args: tuple[Any, ...]) -> None:
    if event in ("socket.getaddrinfo", "socket.connect", "subprocess.Popen", "os.system"):
        wanted = _wanted(event, args)
        if wanted:
            raise Fetching(f"{wanted} was asked for, and nothing is fetched here: a file that VBench wants is not at its place")


def _wanted(event: str, args: tuple[Any, ...]) -> str:
    """What a call would fetch, or from where; nothing for what stays on this machine."""
    if event == "socket.getaddrinfo":
        return "" if args[0] in HERE else str(args[0])
    if event == "socket.connect":
        return str(args[1][0]) if isinstance(args[1], tuple) and args[1][0] not in HERE else ""
    words = [os.fsdecode(word) for word in args[1]] if event == "subprocess.Popen" else os.fsdecode(args[0]).split()
    return next((word for word in words if "://" in word), words[0]) if Path(words[0]).name in LOADERS else ""


def changed(video: dict[str, Any]) -> str | None:
    """Why a file is not what it should be, or None."""
    path = Path(video["path"])
    if not path.is_file():
        return "the file is not there"
    if not video.get("sha256"):
        return None
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    return None if found == video["sha256"] else "the file's bytes are not those that were recorded (cut short, or replaced)"


def load(job: dict[str, Any]) -> Loaded:
    """VBench's ``compute_<dimension>`` with nothing to measure, up to the call of its function: that call has the model."""
    prepare(job["threads"])
    if job["dimension"] == "static_filter":
        return Loaded(job, _static_filter(job))
    module = importlib.import_module(f"vbench.{job['dimension']}")
    num_frames = _count_frames(module)
    args, kwargs = _caught(module, job)
    function = getattr(module, job["function"])

    def call(entries: list[Any]) -> list[dict[str, Any]]:
        import torch

        with torch.inference_mode():
            records = function(*[entries if isinstance(arg, list) else arg for arg in args], **kwargs)[1]
        if job["dimension"] == "subject_consistency":
            records = [{**record, "num_frames": num_frames[-1]} for record in records]
        return list(records)

    return Loaded(job, call)


def _caught(module: Any, job: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments that ``compute_<dimension>`` gives its function; the empty work list is the only list among them."""
    caught: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def catch(*args: Any, **kwargs: Any) -> tuple[float, list[Any]]:
        caught.append((args, kwargs))
        return 0.0, []

    import torch

    compute, function = getattr(module, f"compute_{job['dimension']}"), getattr(module, job["function"])
    options = {"imaging_quality_preprocessing_mode": IMAGING_MODE} if job["dimension"] == "imaging_quality" else {}
    setattr(module, job["function"], catch)
    try:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "empty.json").write_text("[]")
            # a device, never a word: VBench rescales by the GPU's memory where it is the word "cuda"
            compute(f"{folder}/empty.json", torch.device(job["device"]), job["submodules"], **options)
    finally:
        setattr(module, job["function"], function)
    ((args, kwargs),) = caught
    if sum(isinstance(arg, list) for arg in args) != 1:
        raise RuntimeError(
            f"vbench.{job['dimension']}.{job['function']} does not take one work list; this is VBench 0.1.5's shape"
        )
    return args, kwargs


def _count_frames(module: Any) -> list[int]:
    """The number of frames of the video read last: subject consistency weighs by it and does not tell it."""
    read = getattr(module, "load_video", None)
    last = [0]
    if read is not None:

        def counting(*args: Any, **kwargs: Any) -> Any:
            frames = read(*args, **kwargs)
            last[0] = len(frames)
            return frames

        module.load_video = counting
    return last


def _static_filter(job: dict[str, Any]) -> Callable[[list[Any]], list[dict[str, Any]]]:
    """VBench's filter of static videos, on any device."""
    import torch

    easydict: Any = importlib.import_module("easydict")
    module: Any = importlib.import_module("vbench.cli.static_filter")
    module.DEVICE = torch.device(job["device"])
    options = {"small": False, "mixed_precision": False, "alternate_corr": False}
    judge = module.StaticFilter(easydict.EasyDict(model=job["submodules"]["model"], **options), module.DEVICE)
    return lambda paths: [{"video_path": path, "video_results": bool(judge.infer(path))} for path in paths]


def prepare(num_threads: int) -> None:
    """Threads, and the operators that a torchvision built for CUDA lacks beside a torch for CPUs."""
    import torch

    torch.set_num_threads(num_threads)
    _torchvision_operators(torch)
    importlib.import_module("cv2").setNumThreads(num_threads)


def _torchvision_operators(torch: Any) -> None:
    spec = importlib.util.find_spec("torchvision")
    library = Path(spec.origin).with_name("_C.so") if spec and spec.origin else None
    if torch.version.cuda is not None or library is None:
        return
    try:
        torch.ops.load_library(str(library))
    except OSError:
        _declared.append(torch.library.Library("torchvision", "DEF"))
        for name in ("nms", "qnms"):
            _declared[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_declared: list[Any] = []
"""Operators live as long as the library object that declares them."""


def plain(value: Any) -> Any:
    """numpy's numbers as Python's."""
    return value.item()


def serve(requests: TextIO, answers: TextIO) -> None:
    def tell(row: dict[str, Any]) -> None:
        answers.write(json.dumps(row, default=plain) + "\n")
        answers.flush()

    loaded: Loaded | None = None
    for line in requests:
        request = json.loads(line)
        if "load" in request:
            start = time.monotonic()
            try:
                loaded = load(request["load"])
                tell({"loaded": time.monotonic() - start})
            except Exception as error:  # noqa: BLE001  (a package that is missing, weights that do not fit: told, and another may come)
                tell({"unavailable": told_of(error)})
        elif loaded is not None:
            for row in loaded.rows(request["score"]):
                tell(row)
            tell({"done": len(request["score"])})


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all that a terminal started; who started this ends it
    seclude()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
