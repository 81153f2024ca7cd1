"""Every spec that ships: what it says it costs, and that it can be made; what is missing is refused by its name."""

from __future__ import annotations

import json
import pathlib
import re

import jsonschema
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.config import build_sweep, load_sweep, read_yaml
from orchestrator.methods import ABSENT, available
from orchestrator.mistakes import ConfigError
from orchestrator.spec_schema import spec_schema
from orchestrator.suite_files import I2V_VARIABLE, NUM_I2V_ENTRIES
from stages.models import embedded
from stages.vocabulary import unknown_words

FOLDER = pathlib.Path(__file__).parents[2] / "experiments" / "specs"
SPECS = sorted(FOLDER.glob("*.yaml"))
FEW = "vbench-100"
COSTS = re.compile(r"Costs, by `dvg plan`:.*? ([\d,.]+) (?:GPU|core)-hours of work")
WITHIN = 0.06
"""Of what a comment says; figures below 1 have two digits."""


@pytest.fixture(autouse=True)
def vbench_i2v(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as VBench-I2V's users have it, with as many entries and one image."""
    folder = tmp_path / "vbench2_beta_i2v"
    images = folder / "data" / "crop" / "16-9"
    images.mkdir(parents=True)
    Image.new("RGB", (32, 18)).save(images / "a.jpg")
    rows = [{"prompt_en": f"scene {n}", "dimension": ["i2v_subject"], "image_name": "a.jpg"} for n in range(NUM_I2V_ENTRIES)]
    (folder / "vbench2_i2v_full_info.json").write_text(json.dumps(rows))
    monkeypatch.setenv(I2V_VARIABLE, str(folder))


def few(spec: pathlib.Path) -> list[str]:
    """A prompt of each dozen is as good, and read sooner."""
    return [f"prompts={FEW}"] if read_yaml(spec)["prompts"] in ("vbench", "vbench-filtered") else []


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_what_can_be_made_of_a_spec_resolves(spec: pathlib.Path) -> None:
    sweep = load_sweep(spec, few(spec), with_weights=False)
    assert sweep.items
    assert len({item.item_key for item in sweep.items}) == len(sweep.items)


def test_a_method_that_is_not_there_is_refused_in_one_line_with_what_is() -> None:
    arms = {"full": {"planner": "full"}, "a": {"accelerators": ["cache-dit"]}, "b": {"accelerators": ["cache-dit"]}, "dvg": {}}
    with pytest.raises(ConfigError) as refused:
        build_sweep({"prompts": ["a red circle"], "arms": arms}, FOLDER)
    (line,) = refused.value.mistakes
    assert f"cache-dit ({ABSENT['cache-dit'].source}; for a, b)" in line
    assert f"planners: {', '.join(available('planner'))}; accelerators: {', '.join(available('accelerator'))}" in line
    assert line.endswith("only=full,dvg")


def test_a_method_that_is_not_there_is_refused_wherever_it_is_asked_for() -> None:
    asked: dict[str, object] = {"accelerators": ["cache-dit"]}
    for where in (asked, {"arms": {"a": asked}}, {"sweep": {"accelerators": [["adacache"], ["cache-dit"]]}}):
        with pytest.raises(ConfigError, match=r"cache-dit \(cache-dit 1.5 .* accelerators: teacache, adacache"):
            build_sweep({"prompts": ["a red circle"], **where}, FOLDER)
    done = CliRunner().invoke(app, ["generate", "a red circle", "--accelerators", "cache-dit"])
    assert "is its rule on ours) is not available in this version; accelerators: teacache" in str(done.exception)


def test_a_method_that_nobody_knows_is_unknown_and_no_method_is_no_mistake() -> None:
    with pytest.raises(ConfigError, match="unknown accelerator 'turbo'; choices: teacache, adacache"):
        build_sweep({"prompts": ["a red circle"], "accelerators": ["turbo"]}, FOLDER)
    assert build_sweep({"prompts": ["a red circle"], "accelerators": []}, FOLDER).items


def test_other_mistakes_are_told_beside_a_method_that_is_not_there() -> None:
    with pytest.raises(ConfigError) as refused:
        build_sweep({"prompts": ["a red circle"], "stepz": 3, "arms": {"a": {"accelerators": ["cache-dit"]}}}, FOLDER)
    assert len(refused.value.mistakes) == 2
    assert "did you mean 'steps'?" in refused.value.mistakes[1]


@pytest.mark.parametrize("only", ["b,c", ["b", "c"], " b , c "])
def test_only_makes_the_arms_it_names_and_looks_at_no_other(only: str | list[str]) -> None:
    data = {"prompts": ["a red circle"], "arms": {"a": {"planner": "nobody", "steps": "x"}, "b": {}, "c": {"planner": "full"}}}
    sweep = build_sweep({**data, "only": only}, FOLDER)
    assert [arm.name for arm in sweep.arms] == ["b", "c"]


def test_an_arm_that_nothing_swept_matters_to_keeps_its_name_and_may_be_the_reference() -> None:
    arms = {"full": {"planner": "full"}, "dvg": {}, "once": {"budget": 0.5}}
    data = {"prompts": ["a red circle"], "arms": arms, "reference": "full"}
    sweep = build_sweep({**data, "sweep": {"budget": [0.4, 0.5]}}, FOLDER)
    assert [arm.name for arm in sweep.arms] == ["full", *(f"{name}-budget{b}" for name in ("dvg", "once") for b in (0.4, 0.5))]
    assert sweep.reference == "full"
    alone = build_sweep({**data, "arms": {"dvg": {}}, "sweep": {"budget": [0.4]}, "reference": None}, FOLDER)
    assert [arm.name for arm in alone.arms] == ["dvg-budget0.4"]


@pytest.mark.parametrize(
    "only, told",
    [("x", "unknown arm in only: 'x'; choices: a"), ([], "should have at least 1 item"), ([["a"]], "only.0")],
)
def test_only_is_refused_for_arms_that_there_are_not(only: object, told: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build_sweep({"prompts": ["a red circle"], "arms": {"a": {}}, "only": only}, FOLDER)
    assert told in str(refused.value)


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_a_spec_says_what_it_costs_as_it_is_planned(spec: pathlib.Path) -> None:
    text = " ".join(line.removeprefix("#") for line in spec.read_text().splitlines() if line.startswith("#"))
    (said,) = COSTS.findall(" ".join(text.split()))
    done = CliRunner().invoke(app, ["plan", str(spec), *few(spec), "--json"])
    report = json.loads(done.stdout)
    whole = load_sweep(spec, with_weights=False).items if few(spec) else range(report["items"])
    hours = report["gpu_hours"]["total"] * len(whole) / report["items"]
    assert float(said.replace(",", "")) == pytest.approx(hours, rel=WITHIN)


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_editors_accept_every_spec(spec: pathlib.Path) -> None:
    data = read_yaml(spec)
    assert [error.message for error in jsonschema.Draft202012Validator(spec_schema()).iter_errors(data)] == []


def test_captions_of_specs_for_the_embedded_model_are_in_its_words() -> None:
    captions = {line for spec in SPECS for line in captions_of(read_yaml(spec)) if read_yaml(spec).get("model") == embedded.NAME}
    assert len(captions) >= 24
    assert {caption: unknown_words(caption, pathlib.Path(embedded.FOLDER)) for caption in captions} == dict.fromkeys(captions, ())


def captions_of(data: dict[str, object]) -> list[str]:
    given = data["prompts"]
    if isinstance(given, str):
        return [line for line in (FOLDER / given).read_text().splitlines() if not line.startswith("#")] if "." in given else []
    return [prompt["prompt"] for prompt in yaml.safe_load(json.dumps(given))]
