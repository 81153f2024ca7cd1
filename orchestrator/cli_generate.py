"""``dvg generate``: one video in this process."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, get_args

import rich.progress
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.arms import Arm, make_item
from orchestrator.calibration import device_name
from orchestrator.cli import print_json
from orchestrator.cli_sweep import unknown_prompt_words
from orchestrator.config import ArmOptions
from orchestrator.cost import denoise_s
from orchestrator.geometry import model
from orchestrator.images import NONE, FirstFrames
from orchestrator.mistakes import ConfigError, RunError, from_validation, unknown
from orchestrator.options import AttentionName
from orchestrator.prompts import Prompt
from orchestrator.resolve import own_mistakes, resolve_arm
from orchestrator.types import Clip, Decision, Item, Stage

if TYPE_CHECKING:
    from stages.denoise import StepDone


@dataclass(frozen=True)
class Machine:
    """What to run on, and how."""

    device: str = "auto"
    attention: str = "auto"
    compile_blocks: bool | None = None

    def mistakes(self) -> list[str]:
        """What can be told without torch."""
        names = get_args(AttentionName)
        return [] if self.attention in names else [unknown("attention", self.attention, names)]


def run_generate(
    prompt: str, seed: int, settings: Mapping[str, Any], out: pathlib.Path, as_json: bool, machine: Machine = Machine()
) -> None:
    """Make the video, print demand, action, density and seconds per stage.

    Raises ConfigError before a model is loaded, RunError when it cannot be loaded or run.
    """
    arm, item = _resolve(prompt, seed, settings, machine)
    out = _writable(out)
    device = find_device(machine.device)
    console = Console(stderr=as_json)
    if words := unknown_prompt_words([prompt], arm):
        known = "`dvg models` lists its words"
        console.print(f"[yellow]warning:[/] {arm.model} does not know: {escape(', '.join(words))}; {known}", highlight=False)
    try:
        decision, timings_s, clip = _make(arm, item, out, console, replace(machine, device=device))
    except (OSError, ValueError, RuntimeError) as error:  # weights that do not load, a lack of memory or disk, latents not finite
        raise RunError(" ".join(str(error).split())) from error
    timings_s |= clip.timings_s
    if as_json:
        told = {"video": str(out), "seed": seed, **_facts(decision), "predicted": _predicted(arm, decision)}
        print_json({**told, "timings_s": timings_s})
    else:
        _print(console, out, arm, decision, timings_s)


def _resolve(prompt: str, seed: int, settings: Mapping[str, Any], machine: Machine) -> tuple[Arm, Item]:
    from pydantic import ValidationError

    mistakes = [*_prompt_mistakes(prompt, seed), *machine.mistakes()]
    try:
        options = ArmOptions.model_validate(settings)
    except ValidationError as error:
        raise ConfigError([*mistakes, *from_validation(error, ArmOptions)]) from error
    mistakes += own_mistakes(options.model_dump(), options.model_dump())
    device = device_name(on_gpu=False) if machine.device == "cpu" else None
    arm = resolve_arm("generate", {**options.model_dump(), "device_name": device}, mistakes)
    frames = FirstFrames(pathlib.Path.cwd(), mistakes)
    if arm is None and options.image is not None:
        frames.check(options.image)
    found = frames.find(arm, "generate", options.image) if arm else NONE
    frames.tell_missing()
    if arm is None or mistakes:
        raise ConfigError([line.removeprefix("arm generate: ") for line in mistakes])
    return arm, make_item(arm, "generate", prompt, seed, *found)


def _prompt_mistakes(prompt: str, seed: int) -> list[str]:
    from pydantic import ValidationError

    try:
        Prompt(prompt=prompt, seed=seed)
    except ValidationError as error:
        return from_validation(error, Prompt)
    return [] if prompt.strip() else ["the prompt must not be empty"]


def _writable(out: pathlib.Path) -> pathlib.Path:
    out = out.absolute()
    if out.suffix.lower() != ".mp4":
        raise ConfigError([f"--out {str(out)!r} must end in .mp4"])
    if out.is_dir():
        raise ConfigError([f"--out {str(out)!r} is a folder; give the file to write"])
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise ConfigError([f"--out {str(out)!r}: folder {str(out.parent)!r} does not exist or is not writable"])
    return out


def _make(arm: Arm, item: Item, out: pathlib.Path, console: Console, machine: Machine) -> tuple[Decision, dict[str, float], Clip]:
    from stages.worker import ClipWorker

    with console.status("loading the model"):
        worker = ClipWorker(
            {arm.name: arm},
            device=machine.device,
            attention=machine.attention,
            compile_blocks=machine.compile_blocks,
        )
        worker.warm_up()
    bars = _StageBars(console)
    with bars:
        decision, timings_s, boundary = worker.sketch(item, bars.on_step)
        bars.plan(decision.action.stages)
        boundary, refine_s = worker.refine(item, boundary, bars.on_step)
    with console.status("decoding"):
        clip = worker.decode(item, boundary, out)
    return decision, {**timings_s, **refine_s}, clip


def find_device(name: str) -> str:
    """A device that is there. Raises ConfigError naming those that are."""
    import torch

    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    if name == "auto":
        return found[0] if found else "cpu"
    if name not in ("cpu", *(["cuda"] if found else []), *found):
        raise ConfigError([f"device {name!r} is not here. Choices: auto, {', '.join(['cpu', *found])}"])
    return name


class _StageBars:
    """One bar per stage, drawn when its first step is done; how many stages there are is only known after the sketch."""

    def __init__(self, console: Console) -> None:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
        )
        self._bar = rich.progress.Progress(*columns, console=console)
        self._tasks: dict[int, rich.progress.TaskID] = {}

    def __enter__(self) -> _StageBars:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def on_step(self, step: StepDone) -> None:
        if step.stage not in self._tasks:
            grid = "x".join(str(side) for side in step.grid)
            self._tasks[step.stage] = self._bar.add_task(f"stage {step.stage + 1}  grid {grid}", total=None)
        self._bar.advance(self._tasks[step.stage])

    def plan(self, stages: tuple[Stage, ...]) -> None:
        """The action is known: give every bar its length. The forward of a transition runs on the earlier grid."""
        for index, stage in enumerate(stages):
            grid = "x".join(str(side) for side in stage.grid)
            steps = stage.steps + (index < len(stages) - 1) - (index > 0)
            if index not in self._tasks:
                self._tasks[index] = self._bar.add_task(f"stage {index + 1}  grid {grid}", total=steps * stage.passes)
            self._bar.update(self._tasks[index], total=steps * stage.passes)


def _facts(decision: Decision) -> dict[str, Any]:
    return {
        "demand": dataclasses.asdict(decision.demand) if decision.demand else None,
        "weights": decision.weights,
        "action": dataclasses.asdict(decision.action),
        "why": decision.why,
    }


def _predicted(arm: Arm, decision: Decision) -> dict[str, Any] | None:
    """Denoising seconds that the cost model gave this action; None with a cache, of which it knows nothing."""
    if arm.cost is None or arm.accelerators:
        return None
    predicted_s = denoise_s(model(arm.model), decision.action, arm.cost)
    return {"denoise_s": predicted_s, "label": arm.cost.label, "device": arm.cost.device}


def _print(console: Console, out: pathlib.Path, arm: Arm, decision: Decision, timings_s: Mapping[str, float]) -> None:
    action = decision.action
    console.print(f"[bold]{action.name}[/]  density {action.density:.3f}  {decision.why}", highlight=False)
    table = Table(header_style="bold")
    for heading in ("phase", "grid", "seconds"):
        table.add_column(heading, justify="right" if heading == "seconds" else "left")
    table.add_row("text", "", f"{timings_s.get('text_s', 0):.2f}")
    for index, stage in enumerate(action.stages, 1):
        grid = "x".join(str(side) for side in stage.grid)
        table.add_row(f"stage {index}", grid, f"{timings_s.get(f'stage{index}_s', 0):.2f}")
    table.add_row("decode", "", f"{timings_s.get('decode_s', 0):.2f}")
    if "restore_s" in timings_s:
        table.add_row("restore", "", f"{timings_s['restore_s']:.2f}")
    table.add_row("encode", "", f"{timings_s.get('encode_s', 0):.2f}")
    console.print(table)
    if predicted := _predicted(arm, decision):
        console.print(f"denoising was predicted to take {predicted['denoise_s']:.3g} s ({predicted['label']})", highlight=False)
    console.print(f"wrote {escape(str(out))}", soft_wrap=True)
