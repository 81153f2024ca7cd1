"""VBench's own torchrun mode, dimension by dimension, for those who want its numbers to the letter.

It needs CUDA, since its collectives are NCCL's; it measures on the GPUs of one machine, one dimension after another, and a video
that cannot be read ends its dimension. A dimension that has its file, of the same videos, is not run again.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.vbench import outcome
from experiments.vbench.campaign import Campaign, Options, only_one
from experiments.vbench.probe import Environment
from experiments.vbench.process import Runtime, environment
from experiments.vbench.reduce import OFFICIAL_TORCHRUN
from experiments.vbench.results import ENDING
from experiments.vbench.view import CUSTOM, View
from experiments.vbench.work import missing
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.paths import RunPaths

COUNT = "import torch; print(torch.cuda.device_count())"
TAIL_LINES = 3

Run = Callable[[Sequence[str], Mapping[str, str]], None]


def command(found: Environment, dimension: str, view: View, folder: Path, num_gpus: int) -> list[str]:
    """VBench's own script under torchrun, with the rendezvous on this machine alone."""
    launch = ["-m", "torch.distributed.run", "--nnodes=1", f"--nproc_per_node={num_gpus}"]
    meeting = ["--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "--local_addr=127.0.0.1"]
    where = ["--videos_path", str(view.folder), "--output_path", str(folder), "--dimension", dimension]
    mode = ["--mode", "custom_input", "--prompt_file", str(folder / "prompts.json")] if view.suite.name == CUSTOM else []
    return [found.python, "-P", *launch, *meeting, str(Path(found.package) / "launch" / "evaluate.py"), *where, *mode]


def run_torchrun(paths: RunPaths, options: Options, tell: Callable[[str], None]) -> dict[str, outcome.ArmOutcome]:
    """Measure what has no file yet. Raises ConfigError without a GPU, RunError when VBench's script fails."""
    campaign = Campaign(paths, replace(options, reduce=OFFICIAL_TORCHRUN), tell)
    num_gpus = _num_gpus(campaign.found)
    with only_one(paths):
        campaign.look()
        return {arm: _of_arm(campaign, view, num_gpus) for arm, view in campaign.views.items()}


def _num_gpus(found: Environment) -> int:
    """Raises ConfigError without any."""
    done = subprocess.run([found.python, "-P", "-c", COUNT], capture_output=True, text=True, check=False)
    number = int(done.stdout.strip() or 0) if done.returncode == 0 else 0
    if not number:
        told = f"torch {found.torch} of {found.python} sees none; --runner ray measures on CPUs too"
        raise ConfigError([f"--runner torchrun: VBench's torchrun mode talks over NCCL and so needs GPUs; {told}"])
    return number


def _of_arm(campaign: Campaign, view: View, num_gpus: int) -> outcome.ArmOutcome:
    dims = [name for name in campaign.dimensions if name not in campaign.evaluation.unavailable]
    results: dict[str, Any] = {}
    for dimension in dims:
        keys = "".join(task.key for task in campaign.tasks_of(view, dimension))
        of_these = hashlib.sha256(keys.encode()).hexdigest()[:12]
        folder = campaign.paths.vbench_arm(view.suite.name, view.arm) / "torchrun" / f"{dimension}-{of_these}"
        _prompts(view, folder)
        argv = command(campaign.found, dimension, view, folder, num_gpus)
        results[dimension] = measured(folder, dimension) or _measure(argv, dimension, folder, campaign)
    found = of_results(view, results, campaign)
    outcome.write(campaign.paths, found)
    return found


def _prompts(view: View, folder: Path) -> None:
    """The prompt of each video, for suites that VBench does not know."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = {video.name: line.entry.prompt for line in view.lines for video in line.there}
    (folder / "prompts.json").write_text(json.dumps(prompts))


def _measure(argv: Sequence[str], dimension: str, folder: Path, campaign: Campaign) -> list[Any]:
    runtime = Runtime(campaign.found.python, campaign.found.package, "cuda", campaign.options.threads or 8)
    campaign.tell(f"{dimension}: {' '.join(argv)}")
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment(runtime, dimension, os.environ))
    found = measured(folder, dimension)
    if done.returncode or found is None:
        last = " | ".join(done.stderr.strip().splitlines()[-TAIL_LINES:])
        raise RunError(f"VBench's own run of {dimension} failed (exit code {done.returncode}): {last}")
    return found


def measured(folder: Path, dimension: str) -> list[Any] | None:
    """``[score, records]`` of the latest file that VBench wrote, whose names hold the time."""
    for path in sorted(folder.glob(f"*{ENDING}"), reverse=True):
        found = json.loads(path.read_text(encoding="utf-8")).get(dimension)
        if found:
            return list(found)
    return None


def of_results(view: View, results: Mapping[str, Any], campaign: Campaign) -> outcome.ArmOutcome:
    """What VBench's own files say, as an evaluation of ours."""
    dimensions = {}
    for name in campaign.dimensions:
        score, records = results.get(name, (None, []))
        num_videos = sum(len(line.there) for line in view.of(name))
        dimensions[name] = outcome.DimensionOutcome(
            score, len(records), num_videos, len(missing(view, name)), unavailable=campaign.evaluation.unavailable.get(name)
        )
    about = campaign.about | {"reduce": OFFICIAL_TORCHRUN, "runner": "torchrun", "device": "cuda"}
    whole = {name: (score, records) for name, (score, records) in results.items()}
    return outcome.ArmOutcome(view.suite.name, view.suite.digest, view.arm, about, dimensions, whole, outcome.work_of(view))
