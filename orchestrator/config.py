"""A sweep's YAML: strict to read, expanded into arms and items, every mistake told at once.

What each knob means is documented on its field, in :mod:`orchestrator.spec`.
"""

from __future__ import annotations

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from orchestrator.arms import Arm, make_item
from orchestrator.calibration import device_name
from orchestrator.cluster_config import ClusterConfig
from orchestrator.expansion import expand_points, keep_arms, merge, set_dotted
from orchestrator.extended import extended_prompts
from orchestrator.images import FirstFrames
from orchestrator.methods import NOT_AVAILABLE, absent_told
from orchestrator.methods import named as method_named
from orchestrator.metrics_config import AFTERWARDS, MetricsConfig, against_mistakes
from orchestrator.mistakes import ConfigError, from_validation, password_mistakes
from orchestrator.presets import contradiction, own_over_shared
from orchestrator.prompts import Prompt, load_prompts, suite_named
from orchestrator.resolve import own_mistakes, resolve_arm
from orchestrator.resolve_budget import device_mistakes
from orchestrator.resolve_sizing import sizing_mistakes
from orchestrator.spec import ArmOptions as ArmOptions
from orchestrator.spec import SweepSpec as SweepSpec
from orchestrator.tracking_config import TrackingConfig as TrackingConfig
from orchestrator.types import Item

MEASURED_POINTS = {"cost": {"forwards": {"__all__": {"points"}}}}
"""Not for people to read: they are in the calibration file."""


@dataclass(frozen=True)
class Sweep:
    """A spec fully resolved: nothing left to look up, nothing left to go wrong but the run itself."""

    name: str
    arms: tuple[Arm, ...]
    items: tuple[Item, ...]
    reference: str | None
    max_attempts: int
    cluster: ClusterConfig
    tracking: TrackingConfig
    prompts: tuple[Prompt, ...] = ()
    suite: Mapping[str, Any] | None = None
    """Name, digest and counts of the suite that the prompts are of."""
    metrics: MetricsConfig = AFTERWARDS

    @property
    def arms_by_name(self) -> dict[str, Arm]:
        return {arm.name: arm for arm in self.arms}

    def resolved(self) -> dict[str, Any]:
        """The sweep as plain data, for ``config.resolved.yaml``."""
        return {
            "name": self.name,
            "reference": self.reference,
            "max_attempts": self.max_attempts,
            "arms": [arm.model_dump(mode="json", exclude=MEASURED_POINTS) for arm in self.arms],
            **({"suite": dict(self.suite)} if self.suite else {}),
            "prompts": _prompt_rows(self.items, self.prompts),
            "cluster": self.cluster.model_dump(mode="json"),
            "tracking": self.tracking.model_dump(mode="json"),
            "metrics": self.metrics.model_dump(mode="json"),
        }


def _prompt_rows(items: Sequence[Item], prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    more = {prompt.id: _evaluated(prompt) for prompt in prompts}
    rows: dict[Any, dict[str, Any]] = {}
    for item in items:
        said = {"id": item.prompt_id, "prompt": item.prompt, "seed": item.seed, **more.get(item.prompt_id, {})}
        row = rows.setdefault((item.prompt_id, item.seed), said)
        if item.image is not None:
            row.setdefault("images", {})[item.arm] = item.image
    return list(rows.values())


def _evaluated(prompt: Prompt) -> dict[str, Any]:
    """What evaluation wants to know of a prompt."""
    said = {"original": prompt.original, "dimensions": " ".join(prompt.dimensions)}
    return {key: value for key, value in said.items() if value}


if TYPE_CHECKING:
    from yaml import SafeLoader
else:  # the resolved spec of 5,000 videos takes 6 s in Python and half a second in C
    SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _StrictLoader(SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML itself would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, times in keys.items() if times > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: pathlib.Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises ConfigError if it is missing, not YAML, or not a mapping."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"spec {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"spec {str(path)!r} is not valid YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(data, dict):
        raise ConfigError([f"spec {str(path)!r} must be a mapping of keys to values, not {type(data).__name__}"])
    return data


def load_sweep(path: pathlib.Path, overrides: Sequence[str] = (), with_weights: bool = True) -> Sweep:
    """The sweep a spec file describes, with ``key=value`` overrides applied. Raises ConfigError with every mistake found.

    ``with_weights`` False: for planning and simulation, which need none.
    """
    data = read_yaml(path)
    for override in overrides:
        set_dotted(data, override)
    return build_sweep(data, path.resolve().parent, with_weights)


def read_spec(data: Mapping[str, Any]) -> SweepSpec:
    """The spec as it is written, of ``only`` the arms asked for. Raises ConfigError with everything wrong with its form."""
    mistakes: list[str] = []
    kept = keep_arms(data, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    try:
        return SweepSpec.model_validate(kept)
    except ValidationError as error:
        absent = absent_told(error, kept.get("arms") or ())
        raise ConfigError([*absent, *from_validation(error, SweepSpec, skip=NOT_AVAILABLE if absent else "")]) from error


def build_sweep(data: Mapping[str, Any], base: pathlib.Path, with_weights: bool = True) -> Sweep:
    """Validate and expand; relative prompt and image files are looked up in ``base``, then in the working directory."""
    spec = read_spec(data)
    if secrets := password_mistakes(spec.model_dump(mode="json")):
        raise ConfigError(secrets)  # alone: other mistakes repeat what is wrong
    mistakes: list[str] = []
    suite = suite_named(spec.prompts, [])
    prompts = load_prompts(spec.prompts, base, mistakes)
    if spec.extended is not None:
        prompts = extended_prompts(spec.extended, prompts, suite, base, mistakes)
    points = _points(spec, with_weights, mistakes)
    arms = tuple(arm for arm, _ in points)
    reference = _reference(spec, arms, mistakes)
    frames = FirstFrames(base, mistakes)
    for image in filter(None, [prompt.image for prompt in prompts]):
        frames.check(image)
    items = _items(points, prompts, spec.seeds, frames)
    frames.tell_missing()
    mistakes += device_mistakes(arms, on_gpu=spec.cluster.gpus_per_rank > 0)
    mistakes += sizing_mistakes(arms, spec.cluster)
    mistakes += against_mistakes(spec.metrics, [arm.name for arm in arms])
    if mistakes := mistakes or _twice(items):
        raise ConfigError(mistakes)
    told = None if suite is None else suite.told | {"extended": spec.extended is not None}
    how = (spec.max_attempts, spec.cluster, spec.tracking)
    return Sweep(spec.name, arms, items, reference, *how, tuple(prompts), told, spec.metrics)


def _points(spec: SweepSpec, with_weights: bool, mistakes: list[str]) -> tuple[tuple[Arm, str | None], ...]:
    """Every arm at every point of the sweep, with its image; points that resolve to the same settings are one arm."""
    shared = {key: value for key, value in spec.model_dump().items() if key in ArmOptions.model_fields}
    if shared["device_name"] is None and not spec.cluster.gpus_per_rank:
        shared["device_name"] = device_name(on_gpu=False)
    if spec.arms and (line := contradiction(shared)):
        mistakes.append(line)
    arms = {name: options.model_dump() for name, options in spec.arms.items()}
    arms = arms or {spec.preset or method_named(spec.planner or "dvg")[0]: {**shared, "device_name": None}}
    found: list[tuple[Arm, str | None]] = []
    for name, own in arms.items():
        settings = merge(own_over_shared(shared, own), own)
        if not {"planner", "preset"} & spec.sweep.keys():
            mistakes.extend(f"arm {name}: {line}" for line in own_mistakes(own, settings))
        found += _points_of(name, settings, spec.sweep, with_weights, mistakes)
    return tuple(found)


def _points_of(
    name: str, settings: Mapping[str, Any], sweep: Mapping[str, list[Any]], with_weights: bool, mistakes: list[str]
) -> list[tuple[Arm, str | None]]:
    """One arm's. Where nothing that is swept matters to it, its name is the plain one."""
    points = list(expand_points(settings, sweep, mistakes))
    found: dict[Any, tuple[Arm, str | None]] = {}
    for suffix, point in points:
        legal = _legal(name + suffix, point, mistakes)
        arm = legal and resolve_arm(name + suffix, legal, mistakes, with_weights)
        if legal and arm:
            plain = arm.model_copy(update={"name": name})
            found.setdefault((legal["image"], plain.model_dump_json()), (arm, legal["image"]))
    if len(points) > 1 == len(found):
        return [(arm.model_copy(update={"name": name}), image) for arm, image in found.values()]
    return list(found.values())


def _legal(name: str, point: Mapping[str, Any], mistakes: list[str]) -> dict[str, Any] | None:
    """A point's settings, checked again: what ``sweep`` put in has not been."""
    try:
        return ArmOptions.model_validate(point).model_dump()
    except ValidationError as error:
        mistakes.extend(from_validation(error, ArmOptions, f"arm {name}"))
        return None


def _reference(spec: SweepSpec, arms: Sequence[Arm], mistakes: list[str]) -> str | None:
    names = [arm.name for arm in arms]
    if spec.reference is None:
        return next((arm.name for arm in arms if arm.planner == "full"), None)
    if spec.reference not in names and arms:
        mistakes.append(f"reference: {spec.reference!r} is not an arm; arms: {', '.join(names)}")
    return spec.reference


def _twice(items: Sequence[Item]) -> list[str]:
    """Items that would write the same video."""
    counts = Counter((item.prompt_id, item.seed) for item in items if item.arm == items[0].arm)
    return [f"prompt {name!r} with seed {seed} is asked for {n} times" for (name, seed), n in counts.items() if n > 1]


def _items(
    points: Sequence[tuple[Arm, str | None]], prompts: Sequence[Prompt], seeds: Sequence[int] | None, frames: FirstFrames
) -> tuple[Item, ...]:
    """Prompt by prompt, so that the arms of one prompt finish together and can be compared early."""
    return tuple(
        make_item(
            arm,
            prompt.id,
            prompt.prompt,
            seed,
            *frames.find(arm, prompt.id, prompt.image or image),
            deadline_s=prompt.deadline_s,
        )
        for prompt in prompts
        for seed in seeds_of(prompt, seeds)
        for arm, image in points
    )


def seeds_of(prompt: Prompt, seeds: Sequence[int] | None) -> Sequence[int]:
    """Its own, the spec's, or as many from 0 as it asks for."""
    if prompt.seed is not None:
        return [prompt.seed]
    return seeds or range(prompt.num_videos or 1)
