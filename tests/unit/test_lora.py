"""Low-rank adapters: found, checked without torch's help, and merged so that only they change the output."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import HunyuanVideo15Transformer3DModel, HunyuanVideoTransformer3DModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from orchestrator.types import VideoShape
from stages.models.base import Lora, Request, load
from stages.models.lora import check_lora, find_lora, merge
from stages.sampling import initial_noise, make_solver
from tests.checkpoints import checkpoint

WAN, EXPERTS = "wan2.1-1.3b", "wan2.2-a14b"
KINDS = {
    WAN: (WanTransformer3DModel, "blocks.0.attn1.to_q"),
    "hunyuanvideo": (HunyuanVideoTransformer3DModel, "transformer_blocks.0.attn.to_q"),
    "hunyuanvideo-1.5": (HunyuanVideo15Transformer3DModel, "transformer_blocks.0.attn.to_q"),
}
RANK = 2


def transformer(name: str, part: str = "transformer") -> Any:
    return KINDS[name][0].from_pretrained(checkpoint(name) / part, torch_dtype=torch.float32)


def adapter(path: Path, name: str = WAN, prefix: str = "transformer.") -> tuple[Path, Tensor]:
    """A file with an adapter of one layer, and what it adds to that layer's weights."""
    layer = KINDS[name][1]
    size = transformer(name).get_submodule(layer).weight.shape
    down, up = torch.randn(RANK, size[1]), torch.randn(size[0], RANK)
    save_file({f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}, path)
    return path, up @ down


@pytest.mark.parametrize("name", KINDS)
def test_merging_adds_the_scaled_product_to_its_layer_and_leaves_plain_layers(name: str, tmp_path: Path) -> None:
    path, added = adapter(tmp_path / "a.safetensors", name)
    before, after = transformer(name), transformer(name)
    merge(after, (Lora(str(path), 0.5),))
    assert dict(after.named_parameters()).keys() == dict(before.named_parameters()).keys()
    for key, value in after.named_parameters():
        expected = before.get_parameter(key) + (0.5 * added if key.startswith(KINDS[name][1] + ".weight") else 0)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


def test_two_adapters_add_up_and_scale_0_adds_nothing(tmp_path: Path) -> None:
    (one, first), (two, second), (three, _) = (adapter(tmp_path / f"{i}.safetensors") for i in range(3))
    before, after = transformer(WAN), transformer(WAN)
    merge(after, (Lora(str(one), 2.0), Lora(str(two), -1.0), Lora(str(three), 0.0)))
    key = KINDS[WAN][1] + ".weight"
    torch.testing.assert_close(after.get_parameter(key), before.get_parameter(key) + 2 * first - second, rtol=1e-4, atol=1e-4)


def test_an_expert_takes_only_the_adapters_meant_for_it(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path / "a.safetensors")
    key, plain = KINDS[WAN][1] + ".weight", transformer(WAN)
    for expert, meant, changed in (("high", "low", False), ("low", "low", True), ("low", "both", True), ("low", "high", False)):
        model = transformer(WAN)
        merge(model, (Lora(str(path), 1.0, meant),), expert)  # type: ignore[arg-type]
        assert torch.equal(model.get_parameter(key), plain.get_parameter(key)) is not changed, (expert, meant)


def velocity(name: str, *loras: Lora) -> Tensor:
    model = load(name, str(checkpoint(name)), lora=loras)
    condition = model.encode(Request("a red circle", VideoShape(9, 64, 64), 1.0))
    grid = model.geometry.latent_grid(VideoShape(9, 64, 64))
    placed = model.place(condition, tuple(tuple(range(n)) for n in grid), "index")  # type: ignore[arg-type]
    levels = make_solver("euler", 4, 3.0).levels
    x = model.start(initial_noise(grid, model.geometry.latent_channels, 0), placed)
    return model.denoise(x, levels[1], placed)


@pytest.mark.parametrize("name", KINDS)
def test_an_adapter_changes_what_the_model_computes_and_scale_0_does_not(name: str, tmp_path: Path) -> None:
    path, _ = adapter(tmp_path / "a.safetensors", name)
    plain = velocity(name)
    assert torch.allclose(velocity(name, Lora(str(path), 0.0)), plain, atol=1e-6)
    assert not torch.allclose(velocity(name, Lora(str(path), 1.0)), plain, atol=1e-3)


def test_an_adapter_in_the_original_names_is_understood(tmp_path: Path) -> None:
    """As trainers of Wan's own code write them."""
    size = transformer(WAN).get_submodule("blocks.0.attn1.to_q").weight.shape
    down, up = torch.randn(RANK, size[1]), torch.randn(size[0], RANK)
    names = {"diffusion_model.blocks.0.self_attn.q.lora_A.weight": down, "diffusion_model.blocks.0.self_attn.q.lora_B.weight": up}
    save_file(names, tmp_path / "a.safetensors")
    before, after = transformer(WAN), transformer(WAN)
    merge(after, (Lora(str(tmp_path / "a.safetensors")),))
    key = "blocks.0.attn1.to_q.weight"
    torch.testing.assert_close(after.get_parameter(key), before.get_parameter(key) + up @ down, rtol=1e-4, atol=1e-4)


def test_an_adapter_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path / "a.safetensors", "hunyuanvideo")
    with pytest.raises(ValueError, match=r"a\.safetensors.*WanTransformer3DModel"):
        merge(transformer(WAN), (Lora(str(path)),))
    save_file({"transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match=r"half\.safetensors"):
        merge(transformer(WAN), (Lora(str(tmp_path / "half.safetensors")),))


def test_an_adapter_for_other_layers_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    weights = checkpoint(WAN) / "transformer"
    path, _ = adapter(tmp_path / "a.safetensors")
    assert check_lora(str(path), weights) == check_lora(str(path))
    save_file({**load_file(path), "transformer.blocks.0.attn1.to_q.alpha": torch.tensor(2.0)}, path)
    assert check_lora(str(path), weights) == check_lora(str(path))
    assert check_lora(str(path), tmp_path / "not downloaded yet") == check_lora(str(path))
    down, up = "transformer.blocks.0.attn1.to_q.lora_A.weight", "transformer.blocks.0.attn1.to_q.lora_B.weight"
    for tensors, words in (
        ({down: torch.ones(1, 3), up: torch.ones(5, 1)}, r"is 48 x 48, the adapter is for 5 x 3"),
        ({down.replace("0", "9"): torch.ones(1, 48), up.replace("0", "9"): torch.ones(48, 1)}, r"no layer 'blocks\.9"),
        ({down: torch.ones(1, 48)}, "without its lora_B"),
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError, match=rf"a\.safetensors' is for another model: .*{words}"):
            check_lora(str(path), weights)


def test_an_adapter_is_found_in_a_folder_and_known_by_its_bytes(tmp_path: Path) -> None:
    path, _ = adapter(tmp_path / "a.safetensors")
    assert find_lora(str(tmp_path)) == path
    pinned, fingerprint = check_lora(str(tmp_path))
    assert pinned == str(path)
    adapter(path)
    assert check_lora(str(path))[1] != fingerprint


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, ["is not there", "org/name"]),
        (lambda path: path.mkdir(), ["holds no .safetensors file", "org/name"]),
        (lambda path: path.write_bytes(b"x"), [".safetensors"]),
        (lambda path: (path.mkdir(), *((path / f"{i}.safetensors").touch() for i in range(2))), ["2 files", "0.safetensors, 1"]),
        (lambda path: (path.mkdir(), (path / "a.safetensors").write_bytes(b"x")), ["no complete safetensors file"]),
        (lambda path: (path.mkdir(), save_file({"a": torch.ones(1)}, path / "a.safetensors")), ["no low-rank adapter"]),
    ],
)
def test_what_is_no_adapter_is_refused_with_the_rule(make: Any, words: list[str], tmp_path: Path) -> None:
    make(tmp_path / "w.bin")
    with pytest.raises(ValueError, match=r"w\.bin") as told:
        check_lora(str(tmp_path / "w.bin"))
    assert all(word in str(told.value) for word in words), told.value
