"""VBench's own torchrun mode, dimension by dimension, for those who want its numbers to the letter.

It needs CUDA, since its collectives are NCCL's; it measures on the GPUs of one machine, one dimension after another, and a video
that cannot be read ends its dimension. Every dimension gets a folder of the very videos that it is to measure. One that has its
file, of the same videos, is not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.vbench import outcome
from experiments.vbench.campaign import Campaign, Options, only_one
from experiments.vbench.names import video_name
from experiments.vbench.probe import Environment
from experiments.vbench.process import Runtime
from experiments.vbench.reduce import OFFICIAL_TORCHRUN
from experiments.vbench.results import ENDING
from experiments.vbench.shards import Task
from experiments.vbench.surroundings import shut_in
from experiments.vbench.view import CUSTOM, View
from experiments.vbench.work import FLICKERING, missing
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.paths import RunPaths

COUNT = "import torch; print(torch.cuda.device_count())"
TAIL_LINES = 3
LOOPBACK = Path(__file__).with_name("loopback.py")


@dataclass(frozen=True)
class Job:
    """One dimension of one arm. ``names``: the task of each file in ``folder/videos``, under the name that VBench looks for."""

    dimension: str
    folder: Path
    names: Mapping[str, Task]
    is_custom: bool

    @property
    def videos(self) -> Path:
        return self.folder / "videos"


def command(found: Environment, job: Job, num_gpus: int) -> list[str]:
    """VBench's own script under torchrun; what they listen on is the loopback."""
    launch = [str(LOOPBACK), "torch.distributed.run", "--nnodes=1", f"--nproc_per_node={num_gpus}"]
    meeting = ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "--local_addr=127.0.0.1"]
    script = [str(LOOPBACK), str(Path(found.package) / "launch" / "evaluate.py")]
    where = ["--videos_path", str(job.videos), "--output_path", str(job.folder), "--dimension", job.dimension]
    mode = ["--mode", "custom_input", "--prompt_file", str(job.folder / "prompts.json")] if job.is_custom else []
    return [found.python, "-P", *launch, *meeting, *script, *where, *mode]


def run_torchrun(paths: RunPaths, options: Options, tell: Callable[[str], None]) -> dict[str, outcome.ArmOutcome]:
    """Measure what has no file yet. Raises ConfigError without a GPU, RunError when VBench's script fails."""
    campaign = Campaign(paths, replace(options, reduce=OFFICIAL_TORCHRUN), tell)
    num_gpus = _num_gpus(campaign.found)
    with only_one(paths):
        campaign.look()
        for view in (campaign.views | campaign.absent).values():
            campaign.check(view)
        campaign.judge()
        every = campaign.views | campaign.absent
        return {arm: _of_arm(campaign, every[arm], num_gpus) for arm in campaign.arms}


def _num_gpus(found: Environment) -> int:
    """Raises ConfigError without any."""
    done = subprocess.run([found.python, "-P", "-c", COUNT], capture_output=True, text=True, check=False)
    number = int(done.stdout.strip() or 0) if done.returncode == 0 else 0
    if not number:
        told = f"torch {found.torch} of {found.python} sees none; --runner ray measures on CPUs too"
        raise ConfigError([f"--runner torchrun: VBench's torchrun mode talks over NCCL and so needs GPUs; {told}"])
    return number


def _of_arm(campaign: Campaign, view: View, num_gpus: int) -> outcome.ArmOutcome:
    results: dict[str, Any] = {}
    for dimension in campaign.dimensions:
        job = job_of(campaign, view, dimension)
        if job.names and dimension not in campaign.evaluation.unavailable:
            score, records = measured(job) or _measure(command(campaign.found, job, num_gpus), job, campaign)
            results[dimension] = (score, [_under_our_name(record, job) for record in records])
    found = of_results(view, results, campaign)
    outcome.write(campaign.paths, found)
    return found


def job_of(campaign: Campaign, view: View, dimension: str) -> Job:
    """Of the videos that are whole; other bytes, another choice of the static filter, or other weights make another folder."""
    tasks = [task for task in campaign.tasks_of(view, dimension) if not _flaw(campaign, view, task)]
    is_custom = view.suite.name == CUSTOM
    names = {Path(task.video.path).name: task for task in tasks}
    if view.suite.static_filter and dimension == FLICKERING:
        names = renumbered(tasks)
    of_these = hashlib.sha256("".join(task.key for task in tasks).encode()).hexdigest()[:12]
    folder = campaign.paths.vbench_arm(view.suite.name, view.arm) / "torchrun" / f"{dimension}-{of_these}"
    return Job(dimension, folder, names, is_custom)


def renumbered(tasks: Sequence[Task]) -> dict[str, Task]:
    """The videos of each prompt from 0 on, as VBench's static filter writes what it leaves."""
    seen: Counter[str] = Counter()
    names = {}
    for task in tasks:
        names[video_name(task.video.prompt, seen[task.video.prompt])] = task
        seen[task.video.prompt] += 1
    return names


def _flaw(campaign: Campaign, view: View, task: Task) -> str | None:
    return campaign.unsound.get(view.arm, {}).get(Path(task.video.path).name)


def _laid_out(job: Job) -> None:
    """The videos, and the prompt of each for suites that VBench does not know."""
    job.videos.mkdir(parents=True, exist_ok=True)
    for name, task in job.names.items():
        link = job.videos / name
        link.unlink(missing_ok=True)
        link.symlink_to(os.path.relpath(Path(task.video.path).resolve(), job.videos.resolve()))
    (job.folder / "prompts.json").write_text(json.dumps({name: task.video.prompt for name, task in job.names.items()}))


def _measure(argv: Sequence[str], job: Job, campaign: Campaign) -> list[Any]:
    _laid_out(job)
    runtime = Runtime(campaign.found.python, campaign.found.package, "cuda", campaign.options.threads or 8)
    campaign.tell(f"{job.dimension}: {' '.join(argv)}")
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=shut_in(runtime, job.dimension, os.environ))
    found = measured(job)
    if done.returncode or found is None:
        last = " | ".join(done.stderr.strip().splitlines()[-TAIL_LINES:])
        raise RunError(f"VBench's own run of {job.dimension} failed (exit code {done.returncode}): {last}")
    return found


def measured(job: Job) -> list[Any] | None:
    """``[score, records]`` of the latest file that VBench wrote, whose names hold the time."""
    for path in sorted(job.folder.glob(f"*{ENDING}"), reverse=True):
        found = json.loads(path.read_text(encoding="utf-8")).get(job.dimension)
        if found:
            return list(found)
    return None


def _under_our_name(record: Mapping[str, Any], job: Job) -> dict[str, Any]:
    return {**record, "video_path": job.names[Path(record["video_path"]).name].video.path}


def of_results(view: View, results: Mapping[str, Any], campaign: Campaign) -> outcome.ArmOutcome:
    """What VBench's own files say, as an evaluation of ours."""
    dimensions = {name: _dimension(view, name, results.get(name), campaign) for name in campaign.dimensions}
    about = campaign.about | {"reduce": OFFICIAL_TORCHRUN, "runner": "torchrun", "device": "cuda"}
    seen = {name: {Path(record["video_path"]).name for record in records} for name, (_, records) in results.items()}
    work, checked = outcome.work_of(view, seen), campaign.integrity[view.arm].as_json()
    return outcome.ArmOutcome(view.suite.name, view.suite.digest, view.arm, about, dimensions, dict(results), work, checked)


def _dimension(view: View, name: str, found: tuple[float, list[Any]] | None, campaign: Campaign) -> outcome.DimensionOutcome:
    tasks = campaign.tasks_of(view, name)
    judged = campaign.judged(view) if view.suite.static_filter and name == FLICKERING else None
    failed = {Path(task.video.path).name: why for task in tasks if (why := _flaw(campaign, view, task))}
    score, records = found or (None, [])
    return outcome.DimensionOutcome(
        score=score,
        num_measured=len(records),
        num_videos=len(tasks),
        num_missing=len(missing(view, name)),
        num_left_out=len(tasks) - len(failed) - len(records) if found else 0,
        failed=failed | dict(judged.failed if judged else ()),
        unavailable=campaign.evaluation.unavailable.get(name),
        note=judged.note if judged else "",
    )
