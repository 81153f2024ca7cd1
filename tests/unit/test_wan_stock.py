"""Every Wan model's full run is the stock pipeline's, in float32 on a tiny checkpoint."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from orchestrator.geometry import MODELS
from stages.models.base import Loading, Request, load
from stages.models.wan import WanModel, load_wan
from tests.tiny import checkpoint
from tests.unit.wan_runs import SHAPE, full_run, stock_pipeline, stock_run, write_image

PROMPT, NEGATIVE = "a red circle moves left", "slow green square"


def loaded(name: str) -> WanModel:
    model = load(name, str(checkpoint(name)))
    assert isinstance(model, WanModel)
    return model


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_image(tmp_path_factory.mktemp("image") / "first.png"))


def distance(name: str, request: Request) -> float:
    stock = stock_pipeline(checkpoint(name), image=request.image is not None)
    return float((full_run(loaded(name), request) - stock_run(stock, request)).abs().max())


@pytest.mark.parametrize("name", ["wan-mini", "wan2.1-1.3b", "wan2.1-14b", "wan2.2-ti2v-5b"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_from_text(name: str, guidance: float) -> None:
    assert distance(name, Request(PROMPT, SHAPE, guidance, NEGATIVE)) < 2e-5


@pytest.mark.parametrize("name", ["wan2.1-i2v-14b", "wan2.2-ti2v-5b"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_from_an_image(name: str, guidance: float, image: str) -> None:
    assert distance(name, Request(PROMPT, SHAPE, guidance, NEGATIVE, image=image)) < 2e-5


@pytest.mark.parametrize("guidance_low", [None, 3.0])
def test_two_experts_from_text(guidance_low: float | None) -> None:
    assert distance("wan2.2-a14b", Request(PROMPT, SHAPE, 4.0, NEGATIVE, guidance_low)) < 2e-5


def test_two_experts_from_an_image(image: str) -> None:
    assert distance("wan2.2-i2v-a14b", Request(PROMPT, SHAPE, 3.5, NEGATIVE, 2.5, image)) < 2e-5


def test_wan_mini_from_an_image(tmp_path: Path, image: str) -> None:
    folder = shutil.copytree(checkpoint("wan-mini"), tmp_path / "mini")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "expand_timesteps": True}))
    model = load_wan(dataclasses.replace(MODELS["wan-mini"], image="optional"), folder, Loading())
    request = Request(PROMPT, SHAPE, 2.0, NEGATIVE, image=image)
    expected = stock_run(stock_pipeline(folder, image=True), request)
    assert (full_run(model, request) - expected).abs().max() < 2e-5


def test_the_first_frame_of_a_text_and_image_model_stays_what_it_was(image: str) -> None:
    model = loaded("wan2.2-ti2v-5b")
    request = Request(PROMPT, SHAPE, 5.0, image=image)
    latent = model.encode(request).latent
    assert latent is not None
    assert torch.equal(full_run(model, request)[:, :, :1], latent)
