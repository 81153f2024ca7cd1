"""From a finished latent to a file: frames are encoded while the next ones are made."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stages.decode import decode
from stages.denoise import Boundary
from stages.video import Frames, read_video
from tests.spies import CONDITION, SpyModel, SpyPlanner

DONE = Boundary(torch.zeros(1, 16, 2, 4, 4), 30, 4, SpyPlanner().decide(None), CONDITION, 1)


class Decoding(SpyModel):
    def __init__(self, num_runs: int, broken: bool = False) -> None:
        super().__init__()
        self.num_runs, self.broken = num_runs, broken
        self.asked: list[int] = []
        self.third = threading.Event()

    def decode(self, latent: Tensor) -> Iterator[Frames]:
        for index in range(self.num_runs):
            self.asked.append(index)
            if index == 2:
                self.third.set()
            yield np.full((2, 16, 16, 3), 40 * index, np.uint8)
        if self.broken:
            raise RuntimeError("the decoder broke")


def test_all_runs_land_in_the_file_in_order(tmp_path: Path) -> None:
    clip = decode(Decoding(5), DONE, tmp_path / "a.mp4", fps=8)
    frames = read_video(tmp_path / "a.mp4")
    assert [round(float(frame.mean()) / 40) for frame in frames] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert set(clip.timings_s) == {"decode_s", "encode_s"}
    assert min(clip.timings_s.values()) >= 0


def test_the_next_run_is_made_while_one_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, overlapped = Decoding(3), []

    def encode(runs: Iterator[Frames], path: Path, fps: int) -> None:
        next(runs), next(runs)
        overlapped.append(model.third.wait(timeout=30))
        path.write_bytes(b"video")

    monkeypatch.setattr("stages.decode.write_mp4", encode)
    decode(model, DONE, tmp_path / "a.mp4", fps=8)
    assert overlapped == [True]


def test_a_decoder_that_breaks_fails_the_clip_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the decoder broke"):
        decode(Decoding(2, broken=True), DONE, tmp_path / "a.mp4", fps=8)
    assert not list(tmp_path.iterdir())


def test_a_latent_with_stages_to_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="has run 3 of its stages"):
        decode(SpyModel(), Boundary(DONE.x, 22, 3, DONE.decision, CONDITION, 1), tmp_path / "a.mp4", fps=8)
