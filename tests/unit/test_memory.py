"""Which parts leave the GPU, what a decoder takes at once, and what is said when memory runs out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.geometry import model
from orchestrator.types import VideoShape
from stages import memory, vae_policy
from stages.memory import GIB, Turns, out_of_memory, parked, working_bytes
from tests.arms import ARM

SIZES = st.integers(0, 60 * GIB)
ERROR = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 9.31 GiB. GPU 0 has a total capacity of 79.11 GiB of which 2.10 GiB is free. "
    "Including non-PyTorch memory, this process has 77.00 GiB memory in use."
)


def test_nothing_leaves_where_memory_is_enough() -> None:
    assert parked({"text": 16 * GIB, "vae": GIB}, free=20 * GIB, needed=20 * GIB) == ()


def test_the_encoders_leave_first_and_the_vae_stays_if_that_is_enough() -> None:
    assert parked({"vae": GIB, "text": 16 * GIB}, free=10 * GIB, needed=20 * GIB) == ("text",)


@given(SIZES, SIZES, SIZES, SIZES)
def test_what_leaves_is_enough_or_everything(text: int, vae: int, free: int, needed: int) -> None:
    sizes = {"text": text, "vae": vae}
    leaving = parked(sizes, free, needed)
    enough = free + sum(sizes[name] for name in leaving) >= needed
    assert enough or leaving == tuple(name for name in memory.PARK_ORDER if sizes[name])


@pytest.mark.parametrize(
    ("name", "frames", "weights_gib"),
    [("hunyuanvideo", 129, 24.0), ("wan2.2-a14b", 81, 53.3), ("hunyuanvideo-1.5-720p", 121, 15.6), ("wan2.2-ti2v-5b", 121, 9.4)],
)
def test_80_gb_are_enough_for_a_transformer_at_720p_once_all_else_has_left(name: str, frames: int, weights_gib: float) -> None:
    needed = working_bytes(model(name), VideoShape(frames, 704 if "ti2v" in name else 720, 1280, 24))
    assert weights_gib * GIB + needed < 79 * GIB


def test_on_a_cpu_nothing_moves() -> None:
    encoder = torch.nn.Linear(2, 2)
    place = encoder.weight.data_ptr()
    turns = Turns(torch.device("cpu"), {"text": [encoder]})
    turns.settle(1 << 60)
    with turns.turn("text"):
        assert encoder.weight.data_ptr() == place
    assert turns.away == ()


def test_modules_are_found_once_in_the_objects_that_hold_them() -> None:
    class Holder:
        def __init__(self, module: torch.nn.Module) -> None:
            self.module, self.name = module, "encoder"

    shared = torch.nn.Linear(2, 2)
    assert memory.modules_of(Holder(shared), None, Holder(shared)) == (shared,)
    assert memory.num_bytes([shared, shared]) == (4 + 2) * 4


@pytest.mark.parametrize(
    ("doing", "knob"),
    [
        ("denoising 32x90x160", "more GPUs for one clip"),
        ("decoding", "workers for decoding only"),
        ("loading", "a smaller variant of the model"),
    ],
)
def test_running_out_of_memory_names_what_was_needed_what_was_free_and_a_knob(doing: str, knob: str) -> None:
    message = str(out_of_memory(ERROR, None, ARM, doing))
    assert f"while {doing}" in message
    assert "9.31 GiB more was needed, 2.10 GiB of 79.11 GiB was free" in message
    assert knob in message


def test_an_error_without_figures_is_still_told() -> None:
    assert "an unknown amount more was needed" in str(out_of_memory(torch.OutOfMemoryError("no"), None, ARM, "decoding"))


@pytest.mark.parametrize("family", ["wan", "hunyuan", "hunyuan15"])
@given(free=st.integers(0, 200 * GIB))
def test_a_decoder_takes_no_more_at_once_than_fits(family: str, free: int) -> None:
    pixels = vae_policy.pixels_at_once(family, free)
    assert pixels * vae_policy.BYTES_PER_PIXEL[family] <= free
    assert vae_policy.needs_tiles(family, pixels + 1, free)
    assert not vae_policy.needs_tiles(family, pixels, free)


def test_on_a_cpu_and_where_memory_is_enough_the_most_that_is_worth_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert vae_policy.run_pixels("wan", torch.device("cpu"), most=123) == 123
    monkeypatch.setattr(vae_policy, "free_bytes", lambda device: 80 * GIB)
    assert vae_policy.run_pixels("wan", torch.device("cuda"), most=123) == 123


def test_on_a_gpu_short_of_memory_less_is_decoded_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vae_policy, "free_bytes", lambda device: GIB)
    assert vae_policy.run_pixels("wan", torch.device("cuda"), most=1 << 20) == vae_policy.pixels_at_once("wan", GIB) < 1 << 20
