"""Boundaries on disk: what is saved comes back exactly, and what is not whole is as good as not there."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from orchestrator.checkpoints import CheckpointLost, Checkpoints, Saved, load
from orchestrator.types import Action, Decision, Demand, Past, Phase, Stage, VideoShape
from stages.denoise import Boundary
from stages.models.base import Branch, Condition, Request
from stages.models.base import load as load_model
from tests.checkpoints import checkpoint, first_frame
from tests.spies import CONDITION

KEY = "0123abcd"
STAGES = (Stage((2, 4, 4), 8, 3.0), Stage((3, 6, 6), 7, 5.0), Stage((5, 8, 8), 9, 7.1))
DECISION = Decision(Action("s0.70-f9", STAGES, 0.1 + 0.2, 1.0, 9), "still water", Demand(1 / 3, 0.7), (0.4, 0.6))
PAST = Past({"text_s": 0.25, "stage1_s": 1 / 3, "refine_s": 2.5}, (2,), 7.75, 1.7e9 + 0.1)


def boundary(condition: Condition = CONDITION, stage: int = 2, fill: float | None = None, past: Past = PAST) -> Boundary:
    x = torch.randn(1, 4, 3, 6, 6) if fill is None else torch.full((1, 4, 3, 6, 6), fill)
    return Boundary(x, 15, stage, DECISION, condition, 7, past)


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    made = Checkpoints(tmp_path / "checkpoints")
    made.open([])
    return made


def path_of(kept: Checkpoints, key: str = KEY) -> Path:
    return kept.root / f"{key}.safetensors"


def found_of(kept: Checkpoints, key: str = KEY) -> Any:
    found = kept.find(key)
    assert found is not None
    return found


def back(kept: Checkpoints, key: str = KEY) -> Boundary:
    return Boundary.unpack(load(found_of(kept, key).handle))


def same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Bit for bit, of the same type."""
    if one is None or other is None:
        return one is other
    return one.dtype == other.dtype and torch.equal(one, other)


def assert_same_branch(one: Branch | None, other: Branch | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.num_pads == other.num_pads
        assert one.tensors.keys() == other.tensors.keys()
        assert all(same(one.tensors[name], other.tensors[name]) for name in one.tensors)


def assert_same_condition(one: Condition, other: Condition) -> None:
    assert_same_branch(one.positive, other.positive)
    assert_same_branch(one.negative, other.negative)
    assert same(one.image, other.image)
    assert same(one.latent, other.latent)
    assert (one.guidance, one.guidance_low) == (other.guidance, other.guidance_low)


def cast(condition: Condition, dtype: torch.dtype) -> Condition:
    """As a worker on a GPU encodes it."""

    def branch(of: Branch | None) -> Branch | None:
        return of and Branch({k: v.to(dtype) if v.is_floating_point() else v for k, v in of.tensors.items()}, of.num_pads)

    positive = branch(condition.positive)
    assert positive is not None
    latent = None if condition.latent is None else condition.latent.to(dtype)
    return dataclasses.replace(condition, positive=positive, negative=branch(condition.negative), latent=latent)


FAMILIES = {
    "wan-mini": VideoShape(17, 64, 96),
    "wan2.1-i2v-14b": VideoShape(17, 64, 96),
    "wan2.2-ti2v-5b": VideoShape(17, 64, 96),
    "hunyuanvideo": VideoShape(17, 96, 128),
    "hunyuanvideo-i2v": VideoShape(17, 96, 128),
    "hunyuanvideo-1.5": VideoShape(17, 96, 128),
    "hunyuanvideo-1.5-i2v": VideoShape(17, 96, 128),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_every_family_encodes_comes_back_bit_for_bit(kept: Checkpoints, name: str, tmp_path: Path) -> None:
    model = load_model(name, str(checkpoint(name)), parts=frozenset({"text"}))
    image = None if model.geometry.image == "none" else str(first_frame(tmp_path / "first.png"))
    encoded = model.encode(Request("a red circle moves left", FAMILIES[name], 3.0, "slow square", 2.0, image))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        condition = cast(encoded, dtype)
        original = boundary(condition)
        kept.save(KEY, original.pack())
        there = back(kept)
        assert same(there.x, original.x)
        assert_same_condition(there.condition, condition)
        assert (there.step, there.stage, there.decision, there.seed) == (15, 2, DECISION, 7)


finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=50, deadline=None)
@given(number=finite, timings_s=st.dictionaries(st.text(max_size=5), finite, max_size=3), why=st.text(), low=st.none() | finite)
def test_every_number_and_word_comes_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, number: float, timings_s: dict[str, float], why: str, low: float | None
) -> None:
    kept = Checkpoints(tmp_path_factory.mktemp("kept"))
    decision = Decision(Action(why, STAGES, number, None, None), why, Demand(number, 0.5, True), None)
    condition = dataclasses.replace(CONDITION, guidance=number, guidance_low=low)
    past = Past(timings_s, (1, 8), number, 5.0)
    kept.save(KEY, dataclasses.replace(boundary(condition, fill=0.0), decision=decision, past=past).pack())
    found, there = found_of(kept), back(kept)
    assert found.decision == there.decision == decision
    assert found.past == past
    assert (there.condition.guidance, there.condition.guidance_low) == (number, low)


def test_the_head_tells_how_far_the_item_is_and_what_led_there(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: PAST.began_s + 60)
    kept.save(KEY, boundary().pack(), {"torch": "2.11"})
    found = found_of(kept)
    assert (found.item_key, found.stop, found.decision, found.timings_s) == (KEY, 2, DECISION, PAST.timings_s)
    assert found.phases == (Phase(2, 2, found.phases[0].why),)
    assert (found.past.device_s, found.latency_s) == (7.75, 60)
    assert found.handle == Saved(path_of(kept), KEY, 2, DECISION.action)


def test_the_time_that_a_clip_lay_on_disk_is_no_part_of_its_latency(kept: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = PAST.began_s + 60
    monkeypatch.setattr(time, "time", lambda: now_s)
    kept.save(KEY, boundary().pack())
    now_s += 3600
    again = back(kept)
    now_s += 5
    kept.save(KEY, again.pack())
    assert found_of(kept).latency_s == pytest.approx(65)


def test_a_later_boundary_takes_the_place_of_the_one_before(kept: Checkpoints) -> None:
    for stage in (1, 2, 3):
        kept.save(KEY, boundary(stage=stage).pack())
        assert found_of(kept).stop == stage
    assert [path.name for path in kept.root.iterdir()] == [path_of(kept).name]
    kept.remove(KEY)
    kept.remove(KEY)
    assert kept.find(KEY) is None
    assert list(kept.root.iterdir()) == []


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"\0",
    "zeros": lambda data: b"\0" * len(data),
    "text": lambda data: b"not a checkpoint at all",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_is_not_whole_is_told_once_removed_and_none(
    kept: Checkpoints, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept.save(KEY, boundary().pack())
    path_of(kept).write_bytes(DAMAGES[damage](path_of(kept).read_bytes()))
    assert kept.find(KEY) is None
    assert kept.find(KEY) is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert f"{KEY} is made from the start" in caplog.text
    assert list(kept.root.iterdir()) == []


def test_any_byte_that_was_flipped_is_noticed(kept: Checkpoints) -> None:
    kept.save(KEY, boundary(fill=0.5).pack())
    whole, handle = path_of(kept).read_bytes(), found_of(kept).handle
    size = len(whole)
    for place in (*range(0, size, 97), size - 1, 9, 40):
        path_of(kept).write_bytes(flipped(whole, place))
        with pytest.raises(CheckpointLost):
            load(handle)
        assert not path_of(kept).exists()
        path_of(kept).write_bytes(flipped(whole, place))
        assert kept.open([KEY]) == {}, f"byte {place} of {size}"


def test_a_file_of_another_format_or_item_is_none(kept: Checkpoints) -> None:
    save_file({"x": np.zeros(3)}, path_of(kept), {"format": "pt"})
    assert kept.find(KEY) is None
    kept.save("other", boundary().pack())
    os.rename(path_of(kept, "other"), path_of(kept))
    assert kept.find(KEY) is None
    assert not path_of(kept).exists()


def test_a_file_that_is_gone_or_of_another_attempt_is_lost(kept: Checkpoints) -> None:
    kept.save(KEY, boundary().pack())
    handle = found_of(kept).handle
    kept.save(KEY, boundary(stage=3, fill=3.0).pack())
    assert load(handle)["stage"] == 3, "farther on is as good"
    kept.save(KEY, boundary(stage=1).pack())
    with pytest.raises(CheckpointLost, match="replaced by another attempt's"):
        load(handle)
    assert path_of(kept).exists()
    kept.remove(KEY)
    with pytest.raises(CheckpointLost, match="cannot be read"):
        load(handle)


def test_the_start_finds_the_wanted_and_sweeps_what_is_not_or_was_never_whole(kept: Checkpoints) -> None:
    for key in ("a", "b", "with/strange: name", "gone"):
        kept.save(key, boundary().pack())
    (kept.root / ".a.safetensors.0123").write_bytes(path_of(kept, "a").read_bytes()[:100])
    (path_of(kept, "b")).write_bytes(b"x" * 100)
    found = kept.open(["a", "b", "with/strange: name", "never begun"])
    assert found == {key: kept.find(key) for key in ("a", "with/strange: name")}
    assert len(list(kept.root.iterdir())) == 2
    kept.close(["a"])
    assert [path.name for path in kept.root.iterdir()] == ["a.safetensors"]
    kept.close([])
    assert not kept.root.exists()


def test_a_folder_that_is_not_there_is_not_made_by_who_saves(tmp_path: Path) -> None:
    nowhere = Checkpoints(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        nowhere.save(KEY, boundary().pack())
    assert nowhere.find(KEY) is None
    assert not nowhere.root.exists()


def test_two_attempts_that_save_at_once_never_mix(kept: Checkpoints) -> None:
    """Whoever reads finds one of the two, whole: its latent, its stage and its past are of the same attempt."""
    num_saves = 40

    num_saved: list[int] = []

    def attempt(number: int) -> None:
        past = Past({}, (number,), float(number), 1.0)
        for _ in range(num_saves):
            kept.save(KEY, boundary(stage=number, fill=float(number), past=past).pack())
            num_saved.append(number)

    kept.save(KEY, boundary(stage=1, fill=1.0, past=Past({}, (1,), 1.0, 1.0)).pack())
    handle = dataclasses.replace(found_of(kept).handle, stop=1)
    attempts = [threading.Thread(target=attempt, args=(number,)) for number in (1, 2)]
    for thread in attempts:
        thread.start()
    seen = set()
    for _ in itertools.takewhile(lambda _: any(thread.is_alive() for thread in attempts), itertools.count()):
        there = Boundary.unpack(load(handle))
        number = there.stage
        assert there.past.widths == (number,)
        assert same(there.x, torch.full_like(there.x, float(number)))
        seen.add(number)
    for thread in attempts:
        thread.join()
    assert seen
    assert len(num_saved) == 2 * num_saves, "neither is in the other's way"
    assert len(list(kept.root.iterdir())) == 1
