"""VBench's dimensions as they are run: which function, what it must find, what a video costs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.vbench.weights import (
    AESTHETIC,
    AMT,
    BERT,
    CLIP_B,
    CLIP_L,
    DINO,
    DINO_CODE,
    GRIT,
    MUSIQ,
    RAFT,
    TAG2TEXT,
    UMT,
    VICLIP,
    VICLIP_WORDS,
    Weights,
    found_at,
)
from orchestrator.mistakes import ConfigError, unknown
from orchestrator.suites import DIMENSIONS, I2V_DIMENSIONS, QUALITY_DIMENSIONS, SEMANTIC_DIMENSIONS

STATIC_FILTER = "static_filter"
"""Not a dimension: says of each video whether it is static, for temporal flickering."""
DEFAULT_VIDEO_S = 1.0


@dataclass(frozen=True)
class Dimension:
    """``function`` does the measuring in the module ``vbench.<name>``. ``video_s``: seconds a video takes on one GPU, roughly."""

    name: str
    function: str
    video_s: float
    modules: tuple[str, ...] = ()
    """What must be installed beside the package."""
    weights: tuple[Weights, ...] = ()
    takes_prompts: bool = False
    """Its work list holds prompts with their videos instead of bare videos."""
    whole: bool = False
    """Loads its model at every call, so a shard is one call."""
    environment: tuple[tuple[str, str], ...] = ()

    @property
    def weightless(self) -> bool:
        return not self.weights


_CLIP = ("clip", "pkg_resources", "decord")
_GRIT = {"modules": ("detectron2", "decord", "lvis"), "weights": (GRIT, BERT), "takes_prompts": True}
_VICLIP = {"modules": _CLIP, "weights": (VICLIP, VICLIP_WORDS), "takes_prompts": True}
_UNPICKLED = (("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1"),)
"""The released AMT checkpoint holds its configuration beside the tensors, and VBench 0.1.5 predates torch's refusal of that."""


def _cost(minutes: float, num_prompts: int) -> float:
    """Seconds a video, from the minutes that Open-Sora reports for a dimension's five videos a prompt on one GPU."""
    return 60 * minutes / (5 * num_prompts)


_TABLE: tuple[Dimension, ...] = (
    Dimension("subject_consistency", "subject_consistency", _cost(4, 72), ("decord",), (DINO_CODE, DINO)),
    Dimension("background_consistency", "background_consistency", _cost(2, 86), _CLIP, (CLIP_B,)),
    Dimension("temporal_flickering", "temporal_flickering", _cost(2, 75), ("cv2",)),
    Dimension("motion_smoothness", "motion_smoothness", _cost(5, 72), ("cv2", "omegaconf"), (AMT,), environment=_UNPICKLED),
    Dimension("dynamic_degree", "dynamic_degree", _cost(4, 72), ("cv2", "easydict"), (RAFT,)),
    Dimension("aesthetic_quality", "laion_aesthetic", _cost(2.5, 93), _CLIP, (CLIP_L, AESTHETIC)),
    Dimension("imaging_quality", "technical_quality", _cost(6, 93), ("pyiqa", "decord"), (MUSIQ,)),
    Dimension("object_class", "object_class", _cost(12, 79), **_GRIT),  # type: ignore[arg-type]
    Dimension("multiple_objects", "multiple_objects", _cost(14, 82), **_GRIT),  # type: ignore[arg-type]
    Dimension("human_action", "human_action", _cost(3, 100), ("timm", *_CLIP), (UMT,), whole=True),
    Dimension("color", "color", _cost(12, 85), **_GRIT),  # type: ignore[arg-type]
    Dimension("spatial_relationship", "spatial_relationship", _cost(14, 84), **_GRIT),  # type: ignore[arg-type]
    Dimension("scene", "scene", _cost(3, 86), ("transformers", "timm", "decord"), (TAG2TEXT, BERT), takes_prompts=True),
    Dimension("appearance_style", "appearance_style", _cost(6, 90), _CLIP, (CLIP_B,), takes_prompts=True),
    Dimension("temporal_style", "temporal_style", _cost(2, 100), **_VICLIP),  # type: ignore[arg-type]
    Dimension("overall_consistency", "overall_consistency", _cost(2, 93), **_VICLIP),  # type: ignore[arg-type]
)
TABLE: Mapping[str, Dimension] = {dimension.name: dimension for dimension in _TABLE}
FILTER = Dimension(STATIC_FILTER, STATIC_FILTER, TABLE["dynamic_degree"].video_s, ("cv2",), (RAFT,))

GROUPS: Mapping[str, tuple[str, ...]] = {
    "all": (*DIMENSIONS, *I2V_DIMENSIONS),
    "quality": QUALITY_DIMENSIONS,
    "semantic": SEMANTIC_DIMENSIONS,
    "weightless": tuple(name for name, dimension in TABLE.items() if dimension.weightless),
}
NOT_IN_PACKAGE = (
    "VBench's package does not hold VBench-I2V's own dimensions; the folder vbench2_beta_i2v of its repository measures them, "
    "and dvg score takes the file it writes"
)


def known(name: str) -> Dimension | None:
    """None for those that the package cannot measure."""
    return FILTER if name == STATIC_FILTER else TABLE.get(name)


def video_s(name: str) -> float:
    """What a video is taken to cost before one was measured."""
    found = known(name)
    return found.video_s if found else DEFAULT_VIDEO_S


def chosen(dims: str, of: Sequence[str]) -> tuple[str, ...]:
    """The dimensions of a suite that ``--dims`` names: a group, or names joined by commas. Raises ConfigError."""
    words = [word.strip() for word in dims.split(",") if word.strip()]
    mistakes = [unknown("--dims", word, (*GROUPS, *GROUPS["all"])) for word in words if word not in (*GROUPS, *GROUPS["all"])]
    wanted = {name for word in words for name in GROUPS.get(word, (word,))}
    if not mistakes:
        absent = [word for word in words if word not in GROUPS and word not in of]
        mistakes = [f"--dims {word!r}: this suite does not measure it; it measures {', '.join(of)}" for word in absent]
    found = tuple(name for name in of if name in wanted)
    if mistakes or not found:
        raise ConfigError(mistakes or [f"--dims {dims!r} names none of the suite's dimensions: {', '.join(of)}"])
    return found


def submodules(name: str, where: Mapping[str, Path], package: Path) -> Any:
    """What ``vbench.utils.init_submodules`` would give the dimension, from files that are there: nothing is fetched."""
    dimension = known(name)
    at = {weights.what: str(found_at(weights, where)) for weights in (dimension.weights if dimension else ())}
    match name:
        case "background_consistency":
            return [at[CLIP_B.what], False]
        case "human_action":
            return [at[UMT.what]]
        case "motion_smoothness":
            return {"config": str(package / "third_party/amt/cfgs/AMT-S.yaml"), "ckpt": at[AMT.what]}
        case "dynamic_degree" | "static_filter":
            return {"model": at[RAFT.what]}
        case "subject_consistency":
            return {"repo_or_dir": at[DINO_CODE.what], "source": "local", "model": "dino_vitb16", "read_frame": False}
        case "aesthetic_quality":
            return [at[CLIP_L.what], os.path.dirname(at[AESTHETIC.what])]
        case "imaging_quality":
            return {"model_path": at[MUSIQ.what]}
        case "object_class" | "multiple_objects" | "color" | "spatial_relationship":
            return {"model_weight": at[GRIT.what]}
        case "scene":
            return {"pretrained": at[TAG2TEXT.what], "image_size": 384, "vit": "swin_b"}
        case "appearance_style":
            return {"name": at[CLIP_B.what]}
        case "temporal_style" | "overall_consistency":
            return {"pretrain": at[VICLIP.what]}
    return []
