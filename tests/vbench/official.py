"""Runs in VBench's environment: checkpoints of the real networks with random weights, and VBench's own single-process run.

python official.py weights CACHE
python official.py evaluate VIDEOS FOLDER NAME MODE DIMENSION...
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

CHILD = Path(__file__).parents[2] / "experiments" / "vbench" / "child.py"


def prepared() -> None:
    """torchvision's operators, as the workers declare them."""
    spec = importlib.util.spec_from_file_location("child", CHILD)
    child: Any = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(child)  # type: ignore[union-attr]
    sys.modules["child"] = child
    child.prepare(1)


def write_weights(cache: Path) -> None:
    """RAFT and AMT-S where VBench looks for them; AMT's holds its configuration too, as the released one does."""
    import torch
    import vbench
    from easydict import EasyDict
    from omegaconf import OmegaConf
    from vbench.third_party.amt.utils.build_utils import build_from_cfg
    from vbench.third_party.RAFT.core.raft import RAFT

    torch.manual_seed(3)
    raft = RAFT(EasyDict(small=False, mixed_precision=False, alternate_corr=False))
    save({f"module.{name}": value for name, value in raft.state_dict().items()}, cache / "raft_model/models/raft-things.pth")
    network = OmegaConf.load(Path(vbench.__file__).parent / "third_party/amt/cfgs/AMT-S.yaml").network
    save({"state_dict": build_from_cfg(network).state_dict(), "config": network}, cache / "amt_model/amt-s.pth")


def save(value: Any, path: Path) -> None:
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)


def evaluate(videos: str, folder: str, name: str, mode: str, dimensions: list[str]) -> None:
    import torch
    import vbench

    full_info = Path(vbench.__file__).parent / "VBench_full_info.json"
    bench = vbench.VBench(torch.device("cpu"), str(full_info), folder)
    bench.evaluate(videos_path=videos, name=name, dimension_list=dimensions, mode=mode)


def main(command: str, *rest: str) -> None:
    prepared()
    if command == "weights":
        write_weights(Path(rest[0]))
    else:
        evaluate(rest[0], rest[1], rest[2], rest[3], list(rest[4:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
