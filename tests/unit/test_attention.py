"""Attention kernels by name: what is refused, what is measured and kept, and that a compiler takes any kernel as one node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from stages import attention

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def qkv(tokens: int = 7) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(1, tokens, 2, 8, generator=generator).transpose(1, 2) for _ in range(3))


def test_an_unknown_kernel_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'flush' is not known\. Choices: auto, cudnn, flash"):
        attention.choose("flush", CPU, 2, 8)


def test_a_kernel_that_is_not_installed_is_refused_by_its_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "installed", lambda: ("cudnn", "math"))
    with pytest.raises(ValueError, match=r"'flash3' needs the module flash_attn_interface, which is not installed"):
        attention.choose("flash3", CPU, 2, 8)


def test_a_gpu_kernel_is_refused_on_a_cpu() -> None:
    with pytest.raises(ValueError, match="'cudnn' needs a GPU; on cpu the choices are auto and math"):
        attention.choose("cudnn", CPU, 2, 8)


@pytest.mark.parametrize("name", ["auto", "math"])
def test_every_choice_on_a_cpu_computes_attention(name: str) -> None:
    q, k, v = qkv()
    torch.testing.assert_close(attention.choose(name, CPU, 2, 8)(q, k, v), F.scaled_dot_product_attention(q, k, v))


def test_the_best_kernel_has_the_highest_rate_and_ties_go_to_the_first() -> None:
    assert attention.best({"cudnn": 500.0, "flash": 300.0}) == "cudnn"
    assert attention.best({"cudnn": 500.0, "flash4": 500.0}) == "cudnn"


def test_a_gpu_on_which_no_kernel_runs_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no attention kernel runs"):
        attention.best({})


@pytest.mark.parametrize(
    ("num_keys", "length"), [(60, 1024), (2000, 1024), (2100, 4096), (8000, 4096), (8400, 16384), (115_200, 16384)]
)
def test_the_length_with_the_ratio_nearest_one_is_chosen(num_keys: int, length: int) -> None:
    assert attention.nearest_length(num_keys, attention.LENGTHS) == length


def test_a_measurement_is_taken_once_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def measure(length: int, *_: object) -> dict[str, float]:
        asked.append(length)
        return {"cudnn": 10.0, "flash": 20.0 if length < 4096 else 5.0}

    monkeypatch.setattr(attention, "measure", measure)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    for _ in range(2):
        found = attention.fastest(torch.device("cuda"), 2, 64, torch.bfloat16)
        assert found == {1024: "flash", 4096: "cudnn", 16384: "cudnn"}
    assert asked == list(attention.LENGTHS)
    assert json.loads(attention.cache_file().read_text()) == attention.measurements()


def test_measuring_leaves_the_random_numbers_that_come_after_it_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "installed", lambda: ())
    before = torch.get_rng_state()
    assert attention.measure(16, CPU, 2, 8, torch.float32) == {}
    assert torch.equal(torch.get_rng_state(), before)


def test_a_kernel_that_did_not_import_is_measured_once_it_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    is_broken = True

    def flash4() -> attention.Attention:
        if is_broken:
            raise ModuleNotFoundError("No module named 'cutlass'")
        return F.scaled_dot_product_attention

    monkeypatch.setitem(attention.KERNELS, "flash4", ("torch", flash4))
    monkeypatch.setattr(attention, "measure", lambda *_: {"cudnn": 10.0} | ({} if is_broken else {"flash4": 20.0}))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    asked = (torch.device("cuda"), 2, 64, torch.bfloat16)
    assert set(attention.fastest(*asked).values()) == {"cudnn"}
    assert "flash4 is installed but cannot be imported, so it is not used: No module named 'cutlass'" in caplog.text
    is_broken = False
    assert set(attention.fastest(*asked).values()) == {"flash4"}


def test_a_broken_file_of_measurements_counts_as_none() -> None:
    attention.cache_file().parent.mkdir(parents=True)
    attention.cache_file().write_text("{")
    assert attention.measurements() == {}


def test_an_opaque_kernel_is_one_node_and_keeps_its_values() -> None:
    calls: list[int] = []

    def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(q.shape[2])
        return F.scaled_dot_product_attention(q, k, v)

    attend = attention.opaque(kernel)
    compiled = torch.compile(lambda q, k, v: attend(q * 2, k, v) + 1, backend="aot_eager", fullgraph=True)
    q, k, v = qkv()
    torch.testing.assert_close(compiled(q, k, v), F.scaled_dot_product_attention(q * 2, k, v) + 1)
    assert calls == [7]


def test_an_opaque_kernel_lays_its_output_out_token_by_token() -> None:
    q, k, v = qkv()
    out = attention.opaque(lambda q, k, v: F.scaled_dot_product_attention(q, k, v).contiguous())(q, k, v)
    assert out.transpose(1, 2).is_contiguous()
