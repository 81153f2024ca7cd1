"""VBench's prompts by name: the official counts, parts told apart by digests, and specs that ask for them."""

from __future__ import annotations

import gzip
import hashlib
import json
import pathlib
from collections import Counter
from typing import Any

import pytest
import yaml
from PIL import Image

from orchestrator.cli_spec_plan import find_demands
from orchestrator.config import Sweep, build_sweep
from orchestrator.mistakes import ConfigError
from orchestrator.prompts import prompt_id
from orchestrator.suite_files import FULL_INFO, I2V_VARIABLE, NUM_I2V_ENTRIES, load_suite
from orchestrator.suites import DIMENSIONS, PARTS, QUALITY_DIMENSIONS, Entry, Suite, is_suite

OFFICIAL = {
    "subject_consistency": 72, "motion_smoothness": 72, "dynamic_degree": 72, "background_consistency": 86, "scene": 86,
    "overall_consistency": 93, "aesthetic_quality": 93, "imaging_quality": 93, "temporal_flickering": 75, "object_class": 79,
    "multiple_objects": 82, "human_action": 100, "color": 85, "spatial_relationship": 84, "temporal_style": 100,
    "appearance_style": 90,
}  # fmt: skip
DIGESTS = {
    "vbench": "9119b5da0e74",
    "vbench-quality": "ff82aad0f53d",
    "vbench-100": "0ea973faf1b0",
    "vbench-filtered": "abc55100a8ad",
}
"""Another digest is another list: papers name these."""


def sweep_of(tmp_path: pathlib.Path, prompts: Any, **keys: Any) -> Sweep:
    return build_sweep({"model": "wan-mini", "planner": "full", "prompts": prompts, **keys}, tmp_path)


def refused(tmp_path: pathlib.Path, prompts: Any, **keys: Any) -> str:
    with pytest.raises(ConfigError) as raised:
        sweep_of(tmp_path, prompts, **keys)
    return str(raised.value)


def test_the_list_is_the_official_one_byte_for_byte() -> None:
    digest = hashlib.sha256(gzip.decompress(FULL_INFO.read_bytes())).hexdigest()
    assert digest == "5dd2de80ee43cda750b2b72ea7023657c0b90d3702041c7e4608c65dbe50dccd"


def test_the_whole_suite_has_the_official_counts() -> None:
    suite = load_suite("vbench")
    assert (len(suite.entries), len(suite.prompts), suite.num_videos) == (946, 944, 4720)
    assert suite.told["asked_videos"] == 4730
    assert Counter(dim for entry in suite.entries for dim in entry.dimensions) == OFFICIAL
    assert set(suite.dimensions) == set(DIMENSIONS)


def test_the_static_filter_asks_for_twenty_five_videos_of_the_flickering_prompts_alone() -> None:
    suite = load_suite("vbench-filtered")
    assert suite.static_filter
    assert suite.num_videos == 4720 + 75 * 20
    assert {entry.num_videos for entry in suite.entries if "temporal_flickering" not in entry.dimensions} == {5}


def test_the_quality_part_has_the_official_326_prompts_and_its_dimensions_alone() -> None:
    suite = load_suite("vbench-quality")
    assert (len(suite.prompts), suite.num_videos) == (326, 1630)
    assert set(suite.dimensions) == set(QUALITY_DIMENSIONS)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_has_exactly_the_prompts_of_its_dimensions(part: str) -> None:
    suite = load_suite(f"vbench-{part}")
    found = Counter(dim for entry in suite.entries for dim in entry.dimensions)
    assert found == {dim: OFFICIAL[dim] for dim in PARTS[part]}


@pytest.mark.parametrize("number", [11, 25, 100, 500, 944])
def test_a_stratified_part_has_so_many_prompts_and_as_many_of_each_group_as_it_can(number: int) -> None:
    suite, whole = load_suite(f"vbench-{number}"), load_suite("vbench")
    assert len(suite.prompts) == number
    groups = Counter(entry.dimensions for entry in suite.entries)
    available = Counter(entry.dimensions for entry in whole.entries)
    unfilled = [count for group, count in groups.items() if count < available[group]]
    assert len(groups) == 11
    assert not unfilled or max(groups.values()) - min(unfilled) <= 3  # one in turn, and a prompt of two groups


def test_a_smaller_stratified_part_is_inside_a_larger_one() -> None:
    few, more = load_suite("vbench-50").prompts, load_suite("vbench-100").prompts
    assert set(few) < set(more)


@pytest.mark.parametrize("name, digest", DIGESTS.items())
def test_the_lists_stay_what_they_were(name: str, digest: str) -> None:
    assert load_suite(name).digest == digest
    assert load_suite(f"{name}@{digest[:6]}").name == name


BAD = [
    ("vbench-3", "11 to 944"),
    ("vbench-945", "11 to 944"),
    ("vbench-colour", "parts: quality, semantic"),
    ("vbench-100@abc", "digest 0ea973faf1b0"),
    ("vbench@", "digest 9119b5da0e74"),
    ("vbench-color-filtered", "temporal_flickering"),
    ("vbench-Color", "choices: vbench"),
    ("vbench-i2v-4-3", "choices: 16-9, 7-4, 8-5, 1-1"),
]


@pytest.mark.parametrize("name, told", BAD)
def test_an_unknown_part_is_told_with_the_choices(name: str, told: str, tmp_path: pathlib.Path) -> None:
    assert is_suite(name)
    with pytest.raises(ValueError, match="suite") as raised:
        load_suite(name)
    assert told in str(raised.value)
    assert refused(tmp_path, name).count("\n") == 0
    assert told in refused(tmp_path, name)


@pytest.mark.parametrize("name", ["vbench.txt", "vbench-100.jsonl", "lists/vbench", "my-vbench"])
def test_a_name_with_a_suffix_or_folder_is_a_file(name: str, tmp_path: pathlib.Path) -> None:
    assert not is_suite(name)
    assert "does not exist" in refused(tmp_path, name)


def test_a_spec_of_the_suite_makes_five_videos_of_each_prompt(tmp_path: pathlib.Path) -> None:
    sweep = sweep_of(tmp_path, "vbench")
    assert len(sweep.items) == 4720
    assert {seed for *_, seed in {(i.prompt_id, i.seed) for i in sweep.items}} == {0, 1, 2, 3, 4}
    assert list(dict.fromkeys(item.prompt for item in sweep.items)) == list(load_suite("vbench").prompts)
    assert {item.prompt_id for item in sweep.items} == {prompt_id(prompt) for prompt in load_suite("vbench").prompts}


def test_the_static_filter_and_seeds_decide_how_many(tmp_path: pathlib.Path) -> None:
    assert len(sweep_of(tmp_path, "vbench-filtered").items) == 6220
    assert {item.seed for item in sweep_of(tmp_path, "vbench-11", seeds=[7, 8]).items} == {7, 8}
    assert len(sweep_of(tmp_path, "vbench-11", arms={"full": {}, "dvg": {"planner": "dvg"}}).items) == 110


def test_the_resolved_spec_keeps_the_dimensions_and_the_digest(tmp_path: pathlib.Path) -> None:
    resolved = yaml.safe_load(yaml.safe_dump(sweep_of(tmp_path, "vbench-100").resolved()))
    assert resolved["suite"] == {**load_suite("vbench-100").told, "extended": False}
    dims = {row["prompt"]: tuple(row["dimensions"].split()) for row in resolved["prompts"]}
    assert dims == {prompt: entry.dimensions for prompt, entry in load_suite("vbench-100").prompts.items()}
    assert "suite" not in sweep_of(tmp_path, ["a cat"]).resolved()


def test_a_list_may_say_dimensions_and_how_many_videos(tmp_path: pathlib.Path) -> None:
    sweep = sweep_of(tmp_path, [{"prompt": "a cat", "num_videos": 3, "dimensions": ["motion_smoothness"]}, "a dog"])
    assert [(item.prompt, item.seed) for item in sweep.items] == [("a cat", 0), ("a cat", 1), ("a cat", 2), ("a dog", 0)]
    assert sweep.resolved()["prompts"][0]["dimensions"] == "motion_smoothness"
    assert "choices: subject_consistency" in refused(tmp_path, [{"prompt": "a cat", "dimensions": ["motion"]}])


def test_the_suite_is_planned_like_any_list(tmp_path: pathlib.Path) -> None:
    from typer.testing import CliRunner

    from orchestrator.cli import app

    spec = tmp_path / "spec.yaml"
    spec.write_text("prompts: vbench\nmodel: wan-mini\n")
    report = json.loads(CliRunner().invoke(app, ["plan", str(spec), "--json"]).stdout)
    assert (report["items"], report["suite"]["asked_videos"]) == (4720, 4730)
    assert "946 entries of 944 prompts" in CliRunner().invoke(app, ["plan", str(spec)]).stdout
    assert find_demands(spec).rows


LONGER = "{}, shot on film, in great detail"


def extended_file(tmp_path: pathlib.Path, prompts: list[str], jsonl: bool) -> str:
    rows = [json.dumps({"original": p, "prompt": LONGER.format(p)}) if jsonl else LONGER.format(p) for p in prompts]
    path = tmp_path / ("longer.jsonl" if jsonl else "longer.txt")
    path.write_text("\n".join(rows) + "\n")
    return path.name


@pytest.mark.parametrize("jsonl", [False, True])
@pytest.mark.parametrize("aligned_with", ["vbench", "vbench-100"])
def test_longer_prompts_are_made_and_known_by_their_originals(tmp_path: pathlib.Path, jsonl: bool, aligned_with: str) -> None:
    longer = extended_file(tmp_path, [entry.prompt for entry in load_suite(aligned_with).entries], jsonl)
    sweep, plain = sweep_of(tmp_path, "vbench-100", extended=longer), sweep_of(tmp_path, "vbench-100")
    assert [item.prompt for item in sweep.items] == [LONGER.format(item.prompt) for item in plain.items]
    assert [item.prompt_id for item in sweep.items] == [item.prompt_id for item in plain.items]
    assert not {item.item_key for item in sweep.items} & {item.item_key for item in plain.items}
    assert [row["original"] for row in sweep.resolved()["prompts"]] == [item.prompt for item in plain.items]
    assert sweep.resolved()["suite"]["extended"] is True


def test_longer_prompts_of_any_list_go_line_by_line(tmp_path: pathlib.Path) -> None:
    sweep = sweep_of(tmp_path, ["a cat", "a dog"], extended=extended_file(tmp_path, ["a cat", "a dog"], False))
    assert [item.prompt for item in sweep.items] == [LONGER.format("a cat"), LONGER.format("a dog")]


def test_of_a_prompt_that_a_suite_has_twice_the_first_longer_form_counts(tmp_path: pathlib.Path) -> None:
    entries = load_suite("vbench").entries
    (tmp_path / "longer.txt").write_text("".join(f"line {number}\n" for number, _ in enumerate(entries)))
    made = {item.prompt_id: item.prompt for item in sweep_of(tmp_path, "vbench", extended="longer.txt").items}
    places = {prompt_id(entry.prompt): number for number, entry in reversed(list(enumerate(entries)))}
    assert made == {name: f"line {number}" for name, number in places.items()}


def test_a_list_may_name_the_originals_itself_and_goes_by_their_ids(tmp_path: pathlib.Path) -> None:
    (item,) = sweep_of(tmp_path, [{"prompt": "a cat, in great detail", "original": "a cat"}]).items
    assert item.prompt_id == prompt_id("a cat")


def test_a_prompt_of_two_entries_gets_as_many_videos_as_the_more_demanding_one() -> None:
    few, many = Entry("a cat", ("color",), {"color": 1}), Entry("a cat", ("temporal_flickering",), num_videos=25)
    for entries in ((few, many), (many, few)):
        (found,) = Suite("s", entries).prompts.values()
        assert found.num_videos == 25
        assert set(found.dimensions) == {"color", "temporal_flickering"}
        assert found.auxiliary == {"color": 1}


def test_longer_prompts_that_do_not_fit_are_told(tmp_path: pathlib.Path) -> None:
    assert "does not exist" in refused(tmp_path, "vbench-11", extended="none.txt")
    wrong = refused(tmp_path, "vbench-11", extended=extended_file(tmp_path, ["a", "b"], False))
    assert "it has 2 lines; it needs one for each of 11 or 946 prompts" in wrong
    assert "no longer form of 11 of 11 prompts" in refused(tmp_path, "vbench-11", extended=extended_file(tmp_path, ["a"], True))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "x"}\n')
    assert "line 1 must be" in refused(tmp_path, "vbench-11", extended="bad.jsonl")


def row_of(number: int, image: str) -> dict[str, Any]:
    return {"prompt_en": f"scene {number}", "dimension": ["i2v_subject"], "image_name": image}


@pytest.fixture
def i2v(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A folder as VBench-I2V's users have it, with its number of entries and two images."""
    folder = tmp_path / "vbench2_beta_i2v"
    for ratio in ("16-9", "1-1"):
        (folder / "data" / "crop" / ratio).mkdir(parents=True)
        for name in ("a.jpg", "b.jpg"):
            Image.new("RGB", (32, 18)).save(folder / "data" / "crop" / ratio / name)
    images = ("a.jpg", "b.jpg")
    rows = [row_of(n, images[n % 2]) for n in range(NUM_I2V_ENTRIES)]
    (folder / "vbench2_i2v_full_info.json").write_text(json.dumps(rows))
    monkeypatch.setenv(I2V_VARIABLE, str(folder))
    return folder


def test_image_to_video_comes_from_the_users_own_folder(i2v: pathlib.Path, tmp_path: pathlib.Path) -> None:
    suite = load_suite("vbench-i2v-1-1")
    assert (len(suite.entries), suite.num_videos, suite.scheme) == (1118, 5590, "vbench-i2v")
    assert load_suite("vbench-i2v").folder == str(i2v / "data" / "crop" / "16-9")
    sweep = build_sweep({"model": "wan-mini", "prompts": "vbench-i2v", "planner": "full"}, tmp_path)
    assert len(sweep.items) == 5590
    assert sweep.items[0].image == str(i2v / "data" / "crop" / "16-9" / "a.jpg")
    assert sweep.items[0].prompt_id == prompt_id("scene 0", "a.jpg")


def test_image_to_video_without_its_files_says_where_they_go(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(I2V_VARIABLE, str(tmp_path / "nowhere"))
    told = refused(tmp_path, "vbench-i2v")
    for part in ("vbench2_beta_i2v", "vbench2_i2v_full_info.json", I2V_VARIABLE, str(tmp_path / "nowhere")):
        assert part in told


def test_image_to_video_is_counted(i2v: pathlib.Path) -> None:
    (i2v / "data" / "crop" / "1-1" / "b.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 images are missing, the first 'b.jpg'"):
        load_suite("vbench-i2v-1-1")
    path = i2v / "vbench2_i2v_full_info.json"
    path.write_text(json.dumps(json.loads(path.read_text())[1:]))
    with pytest.raises(ValueError, match="1117 entries; the official list has 1118"):
        load_suite("vbench-i2v")
    path.write_text("{")
    with pytest.raises(ValueError, match="cannot be read as JSON"):
        load_suite("vbench-i2v")
