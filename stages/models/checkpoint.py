"""What a folder in diffusers format must hold to be a given model. Reads JSON and file headers only: no torch, no device."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.geometry import MODELS, ModelGeometry, SolverName

INDEX = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
CONFIGS = (INDEX, "*/config.json", SCHEDULER)
"""Enough of a repository to tell whether it is the model."""
SMALL_FILES = ("*/*.json", "*/*.txt", "*/*.model", "*/*.jinja")
WEIGHT_FILES = ("*/*.safetensors",)
"""What the components of a checkpoint are made of, below their folders."""
PARTS = frozenset({"text", "encoder", "transformer", "vae"})
"""What a model may be loaded in: see ``stages.models.base``."""
WEIGHTS = {
    "text_encoder": frozenset({"text"}),
    "image_encoder": frozenset({"text"}),
    "transformer": frozenset({"transformer"}),
    "vae": frozenset({"text", "encoder", "vae"}),
}
"""The parts that need a component's weights, by how the component's name begins; the other components have none."""


@dataclass(frozen=True)
class _Family:
    """What diffusers calls the parts of a family, without the suffix of its image-to-video pipeline."""

    text: str
    image: str
    transformer: str
    vae: str
    components: tuple[str, ...]
    image_components: tuple[str, ...]


FAMILIES = {
    "wan": _Family(
        "WanPipeline",
        "WanImageToVideoPipeline",
        "WanTransformer3DModel",
        "AutoencoderKLWan",
        ("tokenizer", "text_encoder"),
        ("image_encoder", "image_processor"),
    ),
    "hunyuan": _Family(
        "HunyuanVideoPipeline",
        "HunyuanVideoImageToVideoPipeline",
        "HunyuanVideoTransformer3DModel",
        "AutoencoderKLHunyuanVideo",
        ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"),
        ("image_processor",),
    ),
    "hunyuan15": _Family(
        "HunyuanVideo15Pipeline",
        "HunyuanVideo15ImageToVideoPipeline",
        "HunyuanVideo15Transformer3DModel",
        "AutoencoderKLHunyuanVideo15",
        ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "guider"),
        ("image_encoder", "feature_extractor"),
    ),
}
TARGET_SIZES = {480: 640, 720: 960}
"""HunyuanVideo-1.5: side in pixels of the square whose area the checkpoints for these heights were trained on."""


WHOLE_NUMBERS = ("num_layers", "num_single_layers", "num_attention_heads", "attention_head_dim", "in_channels", "patch_size_t")
VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model")


def components(geometry: ModelGeometry) -> tuple[str, ...]:
    """The sub-folders that a model is loaded from."""
    family = FAMILIES[geometry.family]
    experts = ("transformer", "transformer_2") if geometry.boundary is not None else ("transformer",)
    # Of the Wan models with two experts, those that take an image see it through the latent alone.
    looks = geometry.image == "required" and geometry.boundary is None
    return (*family.components, *experts, "vae", *(family.image_components if looks else ()))


def patterns(geometry: ModelGeometry, parts: Set[str] = PARTS) -> list[str]:
    """The files of a repository that these parts of a model are loaded from."""
    found = [INDEX, SCHEDULER]
    for name in components(geometry):
        kinds = SMALL_FILES if _needed_by(name).isdisjoint(parts) else SMALL_FILES + WEIGHT_FILES
        found += [pattern.replace("*/", f"{name}/", 1) for pattern in kinds]
    return found


def _needed_by(component: str) -> Set[str]:
    """The parts that a component's weights are for; none if it has no weights."""
    return next((parts for beginning, parts in WEIGHTS.items() if component.startswith(beginning)), frozenset())


@dataclass(frozen=True)
class Schedule:
    """The solver and the timestep shift that a checkpoint ships with; None where its scheduler does not say, or is another."""

    solver: SolverName | None = None
    shift: float | None = None


SOLVERS: dict[str, SolverName] = {"UniPCMultistepScheduler": "unipc", "FlowMatchEulerDiscreteScheduler": "euler"}


def schedule(folder: Path) -> Schedule:
    """What the stock pipeline of this checkpoint would sample with."""
    config = _read(folder / SCHEDULER)
    if not isinstance(config, dict):
        return Schedule()
    shift = config.get("flow_shift", config.get("shift"))
    legal = isinstance(shift, int | float) and 0 < shift < math.inf
    return Schedule(SOLVERS.get(config.get("_class_name", "")), shift if legal else None)


def mistakes(geometry: ModelGeometry, folder: Path, parts: Set[str] = PARTS) -> list[str]:
    """Why the checkpoint in ``folder`` is not ``geometry``'s model, one line each; empty when it is.

    Weight files are looked at only of ``parts``: those of a repository may not be downloaded yet, or not be needed here.
    """
    index = _read(folder / INDEX)
    if isinstance(index, str):
        return [f"{INDEX} {index}"]
    found = list(_pipeline(geometry, index))
    for name in components(geometry):
        found += _component(geometry, folder, index, name, parts)
    return found


def _pipeline(geometry: ModelGeometry, index: Mapping[str, Any]) -> Iterator[str]:
    """The pipeline's class tells the family and the task; the boundary tells text from image among the two-expert models."""
    family, name = FAMILIES[geometry.family], index.get("_class_name")
    legal = {"none": [family.text], "required": [family.image], "optional": [family.text, family.image]}[geometry.image]
    if name not in legal:
        yield f"{INDEX} holds a {name}; {geometry.name} is loaded from a {' or '.join(legal)}"
    boundary = index.get("boundary_ratio")
    if boundary is not None and geometry.boundary is not None and boundary != geometry.boundary:
        yield f"{INDEX} has boundary_ratio {boundary}; {geometry.name} has {geometry.boundary}"
    if geometry.boundary is None and _named(index, "transformer_2"):
        yield f"{INDEX} names a transformer_2; {geometry.name} has one expert"


def _named(index: Mapping[str, Any], component: str) -> str | None:
    """Class of a component; None if the checkpoint says that it has none."""
    entry = index.get(component)
    return entry[1] if isinstance(entry, list) and len(entry) == 2 else None


def _component(geometry: ModelGeometry, folder: Path, index: Mapping[str, Any], name: str, parts: Set[str]) -> Iterator[str]:
    if _named(index, name) is None:
        yield f"component {name!r} is missing ({INDEX} does not name it); {geometry.name} needs {', '.join(components(geometry))}"
    elif needed_by := _needed_by(name):
        yield from _config(geometry, folder / name, name)
        if not needed_by.isdisjoint(parts):
            yield from _weight_files(folder / name)
    elif parts and not (folder / name).is_dir():
        yield f"component {name!r} is missing: there is no folder of that name"
    elif parts:
        yield from _tokenizer_files(folder / name, _named(index, name))


def _tokenizer_files(folder: Path, kind: str | None) -> Iterator[str]:
    """What is missing or torn among the files of a component that has no weights."""
    for path in sorted(folder.glob("*.json")):
        text = path.read_bytes().strip()
        if not (text.startswith(b"{") and text.endswith(b"}")):
            yield f"{folder.name}/{path.name} is not valid JSON, or cut short"
    vocabularies = [path for pattern in VOCABULARIES for path in folder.glob(pattern)]
    if folder.name.startswith("tokenizer") and kind != "ByT5Tokenizer" and not vocabularies:  # bytes need no vocabulary
        yield f"{folder.name} holds no vocabulary ({', '.join(VOCABULARIES)})"


def _config(geometry: ModelGeometry, folder: Path, name: str) -> Iterator[str]:
    config = _read(folder / "config.json")
    if isinstance(config, str):
        yield f"{name}/config.json {config}"
        return
    if name.startswith("transformer"):
        if odd := [key for key in WHOLE_NUMBERS if not isinstance(config.get(key, 0), int)]:
            yield f"{name}/config.json has {odd[0]} {config[odd[0]]!r}; it must be a whole number"
            return
        yield from _other_size(geometry, name, config)
    for key, found, needed in _facts(geometry, name, config):
        if found != needed:
            yield f"{name}/config.json has {key} {found}; {geometry.name} needs {needed}"


def _facts(geometry: ModelGeometry, name: str, config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(what, as found, as needed) of everything that plans and adapters rely on; a key left out has diffusers' default."""
    family = FAMILIES[geometry.family]
    if name == "vae":
        yield "_class_name", config.get("_class_name"), family.vae
        yield from _vae_facts(geometry, config)
    elif name.startswith("transformer"):
        yield "_class_name", config.get("_class_name"), family.transformer
        yield "in_channels", config.get("in_channels"), _in_channels(geometry)
        yield "out_channels", config.get("out_channels", geometry.latent_channels), geometry.latent_channels
        yield "patch_size", _patch(config, geometry), geometry.patch
        if geometry.family == "hunyuan":
            kind = "token_replace" if geometry.image == "required" else None
            yield "image_condition_type", config.get("image_condition_type"), kind
        if geometry.family == "hunyuan15":
            yield "use_meanflow", config.get("use_meanflow", False), geometry.meanflow
            yield "task_type", config.get("task_type", "i2v"), "i2v" if geometry.image == "required" else "t2v"
            yield "target_size", config.get("target_size", 640), TARGET_SIZES[geometry.default_shape.height]


def _other_size(geometry: ModelGeometry, name: str, config: Mapping[str, Any]) -> Iterator[str]:
    """Sizes that no model has are a checkpoint for tests; those of another model are a mix-up, and would spoil every plan."""
    layers = config.get("num_layers", 0) + config.get("num_single_layers", 0)
    found = (config.get("num_attention_heads"), config.get("attention_head_dim"), layers)
    alike = [m.name for m in MODELS.values() if m.family == geometry.family and (m.heads, m.head_dim, m.num_layers) == found]
    if alike and geometry.name not in alike:
        own = f"{geometry.name} has {geometry.heads} and {geometry.num_layers}"
        yield f"{name}/config.json has {found[0]} heads and {layers} layers, as {', '.join(alike)}; {own}"


def _vae_facts(geometry: ModelGeometry, config: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    wan = geometry.family == "wan"
    channels = "z_dim" if wan else "latent_channels"
    keys = (
        ("scale_factor_temporal", "scale_factor_spatial") if wan else ("temporal_compression_ratio", "spatial_compression_ratio")
    )
    unsaid = (4, 16 if geometry.family == "hunyuan15" else 8)
    yield channels, config.get(channels), geometry.latent_channels
    for key, default, needed in zip(keys, unsaid, geometry.vae_stride, strict=False):
        yield key, config.get(key, default), needed


def _in_channels(geometry: ModelGeometry) -> int:
    """Noisy latent, and beside it the condition of the models that take it as channels."""
    channels = geometry.latent_channels
    if geometry.family == "hunyuan15":
        return 2 * channels + 1
    if geometry.family == "wan" and geometry.image == "required":
        return 2 * channels + geometry.vae_stride[0]
    return channels


def _patch(config: Mapping[str, Any], geometry: ModelGeometry) -> tuple[int, ...]:
    size = config.get("patch_size", geometry.patch)
    return (config.get("patch_size_t", 1), size, size) if isinstance(size, int) else tuple(size or ())


def _weight_files(folder: Path) -> Iterator[str]:
    """What is missing or broken among a component's weights."""
    for index in folder.glob("*.index.json"):
        listing = _read(index)
        if isinstance(listing, str):
            yield f"{folder.name}/{index.name} {listing}"
            continue
        lost = sorted(name for name in set(listing.get("weight_map", {}).values()) if not (folder / name).is_file())
        if lost:
            yield f"{folder.name} lacks {len(lost)} of its weight files, {lost[0]!r} first"
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not files:
        yield f"{folder.name} holds no weights (*.safetensors)"
    yield from (f"{folder.name}/{path.name} {wrong}" for path in sorted(files) if (wrong := _broken(path)))


def _broken(path: Path) -> str:
    """Why a safetensors file cannot be read; the header tells its length, so a download cut short shows."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return ""
    try:
        with safe_open(path, framework="numpy"):
            return ""
    except (SafetensorError, OSError) as error:
        return f"is no complete safetensors file ({error})"


def _read(path: Path) -> dict[str, Any] | str:
    """A JSON object, or why there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        return "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
    except ValueError as error:
        return f"is not valid JSON: {error}"
    return value if isinstance(value, dict) else "must hold a mapping"
