"""diffusers' own context parallel (Ulysses) on stock Wan, as it is run: eager, with cuDNN's attention."""

from __future__ import annotations

from typing import Any

import torch

from experiments.bench import single_gpu_models
from experiments.bench.parallel_cases import STOCK_GRIDS, TINY_STOCK_GRIDS, about_s
from experiments.bench.parallel_models import long_rope
from experiments.bench.parallel_rig import Rig, Row
from orchestrator.geometry import model
from orchestrator.types import Grid

KIND = "wan2.2-a14b"
EAGER = 1.4
"""About how much longer than ours."""


def stock(rig: Rig, most_tokens: int) -> None:
    """One forward of one branch on one rank and by all: plain, and with ``ulysses_anything``."""
    torch.manual_seed(0)
    module = _module(rig)
    known = TINY_STOCK_GRIDS if rig.is_tiny else STOCK_GRIDS
    grids = [grid for grid in known if model(KIND).num_tokens(grid) <= most_tokens]
    with torch.inference_mode():
        for grid in grids[:3]:
            _measure(rig, module, grid, 1, anything=False)
        for anything in (False, True):
            _enabled(rig, module, rig.num_ranks, anything)
            for grid in grids:
                _measure(rig, module, grid, rig.num_ranks, anything)
            _disabled(module)


def _measure(rig: Rig, module: Any, grid: Grid, degree: int, anything: bool) -> None:
    geometry = model(KIND)
    tokens = geometry.num_tokens(grid)
    name = "diffusers, anything" if anything else "diffusers"
    row: Row = {"section": "stock", "model": KIND, "grid": grid, "tokens": tokens, "degree": degree, "backend": name}
    wait_s = EAGER * about_s(geometry, tokens, degree)
    rig.attempt(row, wait_s, lambda: rig.timed(_forward(rig, module, grid), degree))


def _forward(rig: Rig, module: Any, grid: Grid) -> Any:
    generator = torch.Generator(rig.device).manual_seed(0)
    dtype = torch.float32 if rig.is_tiny else torch.bfloat16

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=rig.device, generator=generator).to(dtype)

    x, text = noise(1, module.config.in_channels, *grid), noise(1, 512, module.config.text_dim)
    return lambda: module(x, torch.full((1,), 900, device=rig.device), text, return_dict=False)


def _module(rig: Rig) -> Any:
    if rig.is_tiny:
        from diffusers import WanTransformer3DModel

        small = WanTransformer3DModel(
            num_attention_heads=4, attention_head_dim=12, in_channels=16, out_channels=16, text_dim=16, freq_dim=16,
            ffn_dim=32, num_layers=2,
        )  # fmt: skip
        return small.eval().requires_grad_(False)
    module = single_gpu_models.transformer(single_gpu_models.SUBJECTS["wan"])
    module.rope = long_rope(module, model(KIND)).to(rig.device)
    module.set_attention_backend("_native_cudnn")
    return module


def _enabled(rig: Rig, module: Any, degree: int, anything: bool) -> None:
    """Slices of ``degree`` ranks side by side: the mesh's first axis tells them apart."""
    from diffusers import ContextParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    shape, names = (rig.num_ranks // degree, 1, degree), ("slice", "ring", "ulysses")
    mesh = init_device_mesh(rig.device.type, shape, mesh_dim_names=names)
    if not rig.is_cuda:  # diffusers divides by the number of accelerators
        torch.accelerator.device_count = lambda: 1
    config = ContextParallelConfig(ulysses_degree=degree, ulysses_anything=anything, mesh=mesh)
    module.enable_parallelism(config=config)


def _disabled(module: Any) -> None:
    """Nothing public takes it back."""
    from diffusers.hooks.context_parallel import remove_context_parallel

    remove_context_parallel(module, module._cp_plan)
    module._parallel_config = None
    for part in module.modules():
        processor = getattr(part, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = None
