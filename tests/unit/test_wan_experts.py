"""Models with two experts: who works when, with which guidance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from orchestrator.dvg_config import DvgConfig
from stages.denoise import StepDone
from stages.models.base import Request, load
from stages.models.wan import WanModel
from stages.models.wan_parts import LateExperts
from stages.resize import nested_axes
from stages.sampling import NoiseLevel
from tests.tiny import checkpoint
from tests.unit.wan_runs import NUM_STEPS, SHAPE, run, write_image

NAMES = ["wan2.2-a14b", "wan2.2-i2v-a14b"]


def loaded(name: str) -> WanModel:
    model = load(name, str(checkpoint(name)), parts=frozenset({"text", "transformer"}))
    assert isinstance(model, WanModel)
    return model


class Watched:
    """A run of a two-expert model: noise level, whether the high-noise expert worked, and guidance, per step."""

    def __init__(self, model: WanModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sigmas: list[float] = []
        self.used: list[tuple[bool, float]] = []
        choose = model._expert

        def watched(level, condition):  # type: ignore[no-untyped-def]
            expert, guidance = choose(level, condition)
            self.used.append((expert is model.parts.experts[0], guidance))
            return expert, guidance

        monkeypatch.setattr(model, "_expert", watched)

    def on_step(self, done: StepDone) -> None:
        self.sigmas.append(done.sigma)


@pytest.mark.parametrize("name", NAMES)
def test_both_experts_work_each_with_its_guidance(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(name)
    watched = Watched(model, monkeypatch)
    image = str(write_image(tmp_path / "first.png")) if "i2v" in name else None
    run(model, "full", Request("a red circle", SHAPE, 4.0, "", 3.0, image), NUM_STEPS, on_step=watched.on_step)
    assert model.boundary is not None
    expected = [(sigma >= model.boundary, 4.0 if sigma >= model.boundary else 3.0) for sigma in watched.sigmas]
    assert watched.used == expected
    assert len(set(expected)) == 2


def test_a_transition_that_adds_noise_brings_the_high_noise_expert_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("wan2.2-a14b")
    model.boundary = 0.942  # stage 1 ends at 0.938, stage 2 begins at 0.947
    watched = Watched(model, monkeypatch)
    config = DvgConfig(shifts=(5.0, 9.0, 11.0, 11.0))
    run(model, "dvg", Request("a red circle", SHAPE, 1.0), 12, config, watched.on_step)
    assert "".join("H" if high else "L" for high, _ in watched.used) == "HHHLHLLLLLLL"


def test_one_guidance_serves_both_experts_unless_the_second_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("wan2.2-a14b")
    watched = Watched(model, monkeypatch)
    run(model, "full", Request("a red circle", SHAPE, 4.0), NUM_STEPS)
    assert {guidance for _, guidance in watched.used} == {4.0}


@pytest.mark.parametrize(("timestep", "place"), [(876.0, 0), (875.0, 0), (874.0, 1)])
def test_the_boundary_itself_belongs_to_the_high_noise_expert(timestep: float, place: int) -> None:
    model = loaded("wan2.2-a14b")
    condition = model.encode(Request("a red circle", SHAPE, 1.0))
    assert model._expert(NoiseLevel(timestep / 1000, timestep, 0.0), condition)[0] is model.parts.experts[place]


def test_a_sketch_reads_the_high_noise_expert_alone_and_the_other_when_it_is_needed() -> None:
    name, weights = "wan2.2-a14b", str(checkpoint("wan2.2-a14b"))
    late = load(name, weights, parts=frozenset({"text", "transformer"}), late=True)
    assert isinstance(late, WanModel)
    assert isinstance(late.parts.experts, LateExperts)
    placed = late.place(late.encode(Request("a red circle", SHAPE, 1.0)), nested_axes(((3, 8, 8),))[0], "index")
    x, found = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0)), {}
    for timestep, num_read in ((990.0, 1), (300.0, 2), (990.0, 2)):
        found[timestep] = late.denoise(x, NoiseLevel(timestep / 1000, timestep, 0.0), placed)
        assert late.parts.experts.num_read == num_read
    whole = loaded(name)
    assert len(whole.parts.experts) == len(late.parts.experts) == 2
    for timestep, velocity in found.items():
        assert torch.equal(velocity, whole.denoise(x, NoiseLevel(timestep / 1000, timestep, 0.0), placed))


def test_a_missing_expert_is_named(tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("wan2.2-a14b"), tmp_path / "half")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "transformer_2": [None, None]}))
    with pytest.raises(ValueError, match="component 'transformer_2' is missing"):
        load("wan2.2-a14b", str(folder))


def test_a_second_expert_that_the_model_does_not_have_is_refused() -> None:
    with pytest.raises(ValueError, match="names a transformer_2"):
        load("wan2.1-14b", str(checkpoint("wan2.2-a14b")))


def test_the_checkpoint_without_a_boundary_gets_the_catalogues(tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("wan2.2-a14b"), tmp_path / "unsaid")
    index = folder / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "boundary_ratio": None}))
    model = load("wan2.2-a14b", str(folder), parts=frozenset())
    assert isinstance(model, WanModel)
    assert model.boundary == 0.875
