"""What runs on a GPU, on the CPU: bfloat16 weights, the real rotary table and unfolded text, the block as one graph."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel

from orchestrator.catalogue import WAN
from orchestrator.geometry import model
from parallel.seam import Seam
from stages import compiling
from stages.models import wan_transformer
from stages.models.base import Branch, Loading, Request
from stages.models.wan import WanModel, load_wan
from stages.models.wan_transformer import WanTransformer
from stages.sampling import NoiseLevel, initial_noise
from tests.tiny import TEXT_DIM, checkpoint
from tests.unit.wan_runs import SHAPE, whole, write_image

LEVEL = NoiseLevel(0.9, 900.0, 0.0)


def steps(loaded: WanModel, request: Request) -> tuple[torch.Tensor, torch.Tensor]:
    """A velocity, and the video of a latent."""
    grid, channels = loaded.geometry.latent_grid(request.shape), loaded.geometry.latent_channels
    placed = loaded.place(loaded.encode(request), whole(grid), "index")
    x = loaded.start(initial_noise(grid, channels, seed=1), placed)
    return loaded.denoise(x, LEVEL, placed), loaded.pixels(x)


@pytest.mark.parametrize("name", [geometry.name for geometry in WAN])
def test_bfloat16_weights_give_nearly_the_same_velocity_and_video_in_float32(name: str, tmp_path: Path) -> None:
    image = str(write_image(tmp_path / "first.png")) if model(name).image != "none" else None
    request = Request("a red circle", SHAPE, 3.0, image=image)
    v, video = steps(load_wan(model(name), checkpoint(name), Loading()), request)
    rough_v, rough_video = steps(load_wan(model(name), checkpoint(name), Loading(dtype=torch.bfloat16)), request)
    assert rough_v.dtype == rough_video.dtype == torch.float32
    assert (rough_v - v).abs().mean() < 0.03 * v.abs().mean()
    assert (rough_video - video).abs().mean() < 0.05 * video.abs().mean()


@pytest.mark.parametrize("name", ["wan2.1-1.3b", "wan2.1-i2v-14b"])
def test_gpu_tables_give_the_same_velocity(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lean = WanTransformer(WanTransformer3DModel.from_pretrained(checkpoint(name) / "transformer").eval())
    x = torch.randn(1, lean.weights.config.in_channels, 3, 4, 6, generator=torch.Generator().manual_seed(0))
    tensors = {"text": torch.randn(1, 7, TEXT_DIM), "image": torch.randn(1, 17, 24)}
    branch = Branch({key: value for key, value in tensors.items() if key == "text" or "i2v" in name}, 505)
    with torch.inference_mode():
        expected = lean(x, 640.0, branch)
        monkeypatch.setattr(wan_transformer, "ON_CPU", ())
        gpu = WanTransformer(lean.weights)
        found = gpu(x, 640.0, branch)
    assert gpu.remember(branch)[0].bias is None
    assert not any(table.is_complex() for table in gpu._rope((3, 2, 3), 0, 18, None))
    assert (found - expected).abs().max() < 1e-5


def test_one_graph_serves_all_layers_and_grids_of_both_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs: list[object] = []

    def count(graph, inputs):  # type: ignore[no-untyped-def]
        graphs.append(graph)
        return graph.forward

    compile_with = compiling.maybe_compile
    monkeypatch.setattr(wan_transformer, "maybe_compile", lambda fn, enabled: compile_with(fn, enabled, backend=count))
    torch._dynamo.reset()
    load = WanTransformer3DModel.from_pretrained
    experts = [load(checkpoint("wan2.2-a14b") / name).requires_grad_(False) for name in ("transformer", "transformer_2")]
    branch, seam = Branch({"text": torch.randn(1, 7, TEXT_DIM)}, 505), Seam(F.scaled_dot_product_attention)
    with torch.inference_mode():
        for weights in experts:
            compiled, plain = WanTransformer(weights, seam, compiled=True), WanTransformer(weights)
            for grid in [(3, 4, 6), (5, 8, 12), (2, 6, 4)]:
                x = initial_noise(grid, 16, seed=1)
                assert (compiled(x, 640.0, branch) - plain(x, 640.0, branch)).abs().max() < 1e-5
    assert len(graphs) == 1
