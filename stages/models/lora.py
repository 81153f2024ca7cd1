"""Low-rank adapters: where their files are, and merging them into a transformer with diffusers' own loader."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stages.models.weights import Repository, snapshot

if TYPE_CHECKING:
    from stages.models.base import Lora

Expert = Literal["high", "low"]
Shapes = dict[str, tuple[int, ...]]
DEFAULT_FILE = "pytorch_lora_weights.safetensors"
REMOTE = re.compile(r"(?P<name>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>[\w.-]+))?(/(?P<file>[\w./-]+\.safetensors))?")


@dataclass(frozen=True)
class _Remote:
    """``org/name[@revision][/file.safetensors]`` on the hub."""

    source: Repository
    file: str | None

    def __str__(self) -> str:
        return f"{self.source}/{self.file}" if self.file else str(self.source)


def _remote(path: str) -> _Remote | None:
    match = None if Path(path).exists() else REMOTE.fullmatch(path)
    return _Remote(Repository(match["name"], match["revision"]), match["file"]) if match else None


def find_lora(path: str) -> Path:
    """The safetensors file that ``path`` names: a file, a folder, or a repository's file. Raises ValueError if there is none."""
    remote = _remote(path)
    if remote is None:
        return _local(path, Path(path))
    folder = snapshot(remote.source, (remote.file or "*.safetensors",))
    return _local(path, folder / remote.file if remote.file else folder)


def _local(path: str, found: Path) -> Path:
    if found.is_file():
        if found.suffix != ".safetensors":
            raise ValueError(f"lora {path!r} must be a .safetensors file, not {found.suffix or 'one without a suffix'!r}")
        return found
    files = sorted(found.glob("*.safetensors")) if found.is_dir() else []
    if (found / DEFAULT_FILE).is_file():
        return found / DEFAULT_FILE
    if len(files) == 1:
        return files[0]
    if files:
        raise ValueError(f"lora {path!r} holds {len(files)} files; name one: {', '.join(file.name for file in files)}")
    rule = "give a .safetensors file, a folder with one, or a repository: org/name or org/name/file.safetensors"
    raise ValueError(f"lora {path!r} {'holds no .safetensors file' if found.is_dir() else 'is not there'}: {rule}")


def check_lora(path: str, transformer: Path | None = None) -> tuple[str, str]:
    """``path`` made absolute or pinned to a commit, and a fingerprint of the adapter. Loads no torch.

    ``transformer`` is the folder of the weights it is for, as far as they are on this disk. Raises ValueError if there is no
    such adapter, the file holds none, or its layers are not the transformer's.
    """
    file = find_lora(path)
    shapes = _shapes(path, file)
    if not any("lora" in key for key in shapes):
        raise ValueError(f"lora {path!r} holds no low-rank adapter: none of its {len(shapes)} tensors is named lora")
    if transformer is not None and (wrong := _misfit(shapes, _all_shapes(transformer))):
        raise ValueError(f"lora {path!r} is for another model: {wrong}")
    remote = _remote(path)
    if remote is None:
        return str(file.resolve()), hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    commit = file.parents[len(Path(remote.file).parts) - 1 if remote.file else 0].name
    return str(_Remote(Repository(remote.source.name, commit), remote.file)), commit


def _shapes(path: str, file: Path) -> Shapes:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ValueError(f"lora {path!r} is no complete safetensors file ({error})") from error


def _all_shapes(folder: Path) -> Shapes:
    """Of a component's weights; empty if none are there."""
    return {key: shape for file in sorted(folder.glob("*.safetensors")) for key, shape in _shapes(str(file), file).items()}


def _misfit(adapter: Shapes, weights: Shapes) -> str:
    """The first layer that does not fit. Only diffusers' own names tell; other trainers' are translated on loading."""
    downs = [key for key in adapter if key.startswith("transformer.") and key.endswith(".lora_A.weight")]
    for key in downs if weights else ():
        layer, width = key.removeprefix("transformer.").removesuffix(".lora_A.weight"), adapter[key][-1]
        whole, up = weights.get(f"{layer}.weight"), adapter.get(key.replace("lora_A", "lora_B"))
        if whole is None:
            return f"the transformer has no layer {layer!r}"
        if up is None:
            return f"layer {layer!r} has a lora_A without its lora_B"
        if (up[0], width) != (whole[0], whole[-1]):
            return f"layer {layer!r} is {whole[0]} x {whole[-1]}, the adapter is for {up[0]} x {width}"
    return ""


def merge(transformer: Any, loras: Sequence[Lora], expert: Expert = "high") -> None:
    """Add the adapters meant for ``expert`` to a diffusers transformer's weights; its layers are plain again afterwards.

    A model without experts takes those for ``high`` and ``both``. Raises ValueError for an adapter of another model.
    """
    chosen = [lora for lora in loras if lora.expert in ("both", expert)]
    if not chosen:
        return
    names = [f"lora_{index}" for index in range(len(chosen))]
    for name, lora in zip(names, chosen, strict=True):
        _add(transformer, lora.path, name)
    transformer.set_adapters(names, weights=[lora.scale for lora in chosen])
    transformer.fuse_lora(adapter_names=names)
    transformer.unload_lora()


def _add(transformer: Any, path: str, name: str) -> None:
    kind = type(transformer).__name__
    file = find_lora(path)
    try:
        transformer.load_lora_adapter(_state_dict(kind, file), adapter_name=name)
    except (ValueError, RuntimeError, LookupError, AttributeError, TypeError) as error:  # as its converters come to grief
        raise ValueError(
            f"lora {path!r} does not fit {type(transformer).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
    if name not in getattr(transformer, "peft_config", {}):
        raise ValueError(f"lora {path!r} holds nothing for a {kind}")


def _state_dict(kind: str, file: Path) -> dict[str, Any]:
    """The adapter's tensors under diffusers' names; the families' loaders know the other trainers' formats."""
    from diffusers.loaders import HunyuanVideoLoraLoaderMixin, WanLoraLoaderMixin
    from safetensors.torch import load_file

    loader = {"WanTransformer3DModel": WanLoraLoaderMixin, "HunyuanVideoTransformer3DModel": HunyuanVideoLoraLoaderMixin}.get(
        kind
    )
    if loader is not None:
        return dict(loader.lora_state_dict(str(file.parent), weight_name=file.name, local_files_only=True))
    state = load_file(file)
    prefix = "" if any(key.startswith("transformer.") for key in state) else "transformer."
    return {prefix + key: value for key, value in state.items()}
