"""The files that VBench's dimensions read, looked for where VBench 0.1.5 itself reads them; none is ever fetched.

A folder that was filled for VBench serves here as it is.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

END_BYTES = 1 << 16
PASSING = {".git", ".locks", "__pycache__"}
"""Folders inside folders of weights whose content changes without the weights."""


@dataclass(frozen=True)
class Weights:
    """A file or folder that a dimension reads, at the first of ``places`` that is there.

    Places begin with ``$vbench``, ``$torch``, ``$clip`` or ``$hf``; see :func:`roots`.
    """

    what: str
    places: tuple[str, ...]
    source: str


CLIP_B = Weights(
    "CLIP ViT-B/32",
    ("$vbench/clip_model/ViT-B-32.pt", "$clip/ViT-B-32.pt"),
    "https://openaipublic.azureedge.net/clip/models/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
)
CLIP_L = Weights(
    "CLIP ViT-L/14",
    ("$vbench/clip_model/ViT-L-14.pt", "$clip/ViT-L-14.pt"),
    "https://openaipublic.azureedge.net/clip/models/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
)
DINO_CODE = Weights(
    "DINO's code",
    ("$vbench/dino_model/facebookresearch_dino_main", "$torch/hub/facebookresearch_dino_main"),
    "https://github.com/facebookresearch/dino",
)
DINO = Weights(
    "DINO ViT-B/16",
    ("$torch/hub/checkpoints/dino_vitbase16_pretrain.pth",),
    "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
)
RAFT = Weights(
    "RAFT",
    ("$vbench/raft_model/models/raft-things.pth",),
    "https://dl.dropboxusercontent.com/s/4j4z58wuv8o0mfz/models.zip",
)
AMT = Weights("AMT-S", ("$vbench/amt_model/amt-s.pth",), "https://huggingface.co/lalala125/AMT/resolve/main/amt-s.pth")
AESTHETIC = Weights(
    "LAION's aesthetic head",
    ("$vbench/aesthetic_model/emb_reader/sa_0_4_vit_l_14_linear.pth",),
    "https://github.com/LAION-AI/aesthetic-predictor (sa_0_4_vit_l_14_linear.pth)",
)
MUSIQ = Weights(
    "MUSIQ SPAQ",
    ("$vbench/pyiqa_model/musiq_spaq_ckpt-358bb6af.pth",),
    "https://github.com/chaofengc/IQA-PyTorch/releases/download/v0.1-weights/musiq_spaq_ckpt-358bb6af.pth",
)
GRIT = Weights(
    "GRiT",
    ("$vbench/grit_model/grit_b_densecap_objectdet.pth",),
    "https://huggingface.co/OpenGVLab/VBench_Used_Models (grit_b_densecap_objectdet.pth)",
)
BERT = Weights("bert-base-uncased", ("$hf/hub/models--bert-base-uncased",), "https://huggingface.co/bert-base-uncased")
TAG2TEXT = Weights(
    "Tag2Text",
    ("$vbench/caption_model/tag2text_swin_14m.pth",),
    "https://huggingface.co/spaces/xinyu1205/recognize-anything/resolve/main/tag2text_swin_14m.pth",
)
UMT = Weights(
    "UMT ViT-L",
    ("$vbench/umt_model/l16_ptk710_ftk710_ftk400_f16_res224.pth",),
    "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/l16_ptk710_ftk710_ftk400_f16_res224.pth",
)
VICLIP = Weights(
    "ViCLIP",
    ("$vbench/ViCLIP/ViClip-InternVid-10M-FLT.pth",),
    "https://huggingface.co/OpenGVLab/VBench_Used_Models/resolve/main/ViClip-InternVid-10M-FLT.pth",
)
VICLIP_WORDS = Weights(
    "ViCLIP's vocabulary",
    ("$vbench/ViCLIP/bpe_simple_vocab_16e6.txt.gz",),
    "https://raw.githubusercontent.com/openai/CLIP/main/clip/bpe_simple_vocab_16e6.txt.gz",
)


def roots(environment: Mapping[str, str]) -> dict[str, Path]:
    """Where VBench, torch.hub, CLIP and Hugging Face keep weights under this environment."""
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return {
        "$vbench": Path(environment.get("VBENCH_CACHE_DIR") or Path.home() / ".cache" / "vbench"),
        "$torch": Path(environment.get("TORCH_HOME") or cache / "torch"),
        "$clip": Path.home() / ".cache" / "clip",
        "$hf": Path(environment.get("HF_HOME") or cache / "huggingface"),
    }


def paths_of(weights: Weights, where: Mapping[str, Path]) -> list[Path]:
    """The places of a file on this machine."""
    found = []
    for place in weights.places:
        root, _, rest = place.partition("/")
        found.append(where[root] / rest)
    return found


def found_at(weights: Weights, where: Mapping[str, Path]) -> Path | None:
    return next((path for path in paths_of(weights, where) if path.exists()), None)


def missing(wanted: Iterable[Weights], where: Mapping[str, Path]) -> list[str]:
    """One line for each file that is not there: what it is, where to put it, where it comes from."""
    return [
        f"no {weights.what} at {paths_of(weights, where)[0]} (from {weights.source})"
        for weights in wanted
        if found_at(weights, where) is None
    ]


def fingerprint(wanted: Iterable[Weights], where: Mapping[str, Path]) -> list[list[Any]]:
    """What tells these files and folders from others of the same name: size, and a digest of both ends of each file."""
    found = (found_at(weights, where) for weights in wanted)
    return [_mark_of(path) for path in found if path is not None]


def _mark_of(path: Path) -> list[Any]:
    """Name, bytes in all, digest. A folder's is of its files' names too, but neither of version control nor of compiled code."""
    if path.is_file():
        return list(_mark(path, *_touched(path)))
    inside = {str(file.relative_to(path)): file for file in sorted(path.rglob("*")) if file.is_file()}
    marks = [(name, *_mark(file, *_touched(file))[1:]) for name, file in inside.items() if not PASSING & set(Path(name).parts)]
    told = hashlib.sha256(json.dumps(marks).encode()).hexdigest()[:16]
    return [path.name, sum(size for _, size, _ in marks), told]


def _touched(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@functools.cache
def _mark(path: Path, size: int, touched_ns: int) -> tuple[str, int, str]:
    """Read once, until the file is another."""
    with path.open("rb") as file:
        head = file.read(END_BYTES)
        file.seek(max(0, size - END_BYTES))
        return path.name, size, hashlib.sha256(head + file.read(END_BYTES)).hexdigest()[:16]
