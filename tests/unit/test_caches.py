"""TeaCache, AdaCache and MagCache by their rules: on scripted signals, ratios and changes, which steps are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import MODELS
from orchestrator.geometry import model as geometry_of
from orchestrator.methods import Request, find, read_settings
from orchestrator.types import VideoShape
from stages.accelerators import fitting, teacache
from stages.accelerators.adacache import CODEBOOKS, AdaCache, AdaCacheSettings, frame_change
from stages.accelerators.base import StageEvent
from stages.accelerators.fitting import FOLDER_VARIABLE, CacheFit, SignalFit, fit_signal, stretched
from stages.accelerators.pace import LONGEST_IN_STAGES, WARM_UP_IN_STAGES
from tests.unit.scripted import PATTERN, Script, drive, event

MINI = geometry_of("wan-mini")


def request(name: str = "wan-mini", **shape: int) -> Request:
    geometry = geometry_of(name)
    default = geometry.default_shape
    size = VideoShape(default.num_frames, shape.get("height", default.height), shape.get("width", default.width))
    return Request(geometry, size, 30, geometry.default_guidance, "full", DvgConfig(), geometry.solver)


def made(name: str, **settings: Any) -> Any:
    method = find(name, "accelerator")
    return method.make(method.resolve(read_settings(method, settings), request()), MINI)


def computed(name: str, script: Script, where: StageEvent, **settings: Any) -> list[int]:
    """Steps whose forward was computed; every other one left out all blocks."""
    forwards = drive(made(name, **settings), script, where)
    assert all(forward.is_whole or forward.work == 0 for forward in forwards)
    return [forward.step for forward in forwards if forward.is_whole]


def growing(rate: float, num_steps: int = 100) -> Script:
    """A signal that changes by the share ``rate`` at every step."""
    return Script(lambda block, step: 1.0 + block, signal=lambda step: (1 + rate) ** step)


IDENTITY = {"coefficients": (1.0, 0.0), "signal": "input"}
"""The signal's change is the output's."""


def test_teacache_computes_when_the_reckoned_change_comes_to_the_threshold() -> None:
    steps = computed("teacache", growing(0.1), event(20), threshold=0.35, **IDENTITY)
    assert steps == [0, 4, 8, 12, 16, 19], "0.1 three times is under 0.35, four times is not; the last step always"


def test_at_threshold_zero_teacache_computes_every_step_even_where_the_polynomial_is_below_zero() -> None:
    """As some published ones are for small changes."""
    below = {"coefficients": (-1.0,), "signal": "input"}
    assert computed("teacache", growing(0.1), event(9), threshold=0.0, **below) == list(range(9))


def test_teacaches_polynomial_has_the_highest_power_first() -> None:
    own = made("teacache", coefficients=(2.0, 3.0, 5.0), signal="input")
    assert own.reckoned(0.5) == pytest.approx(2 * 0.25 + 3 * 0.5 + 5)


def test_teacache_measures_from_the_step_before_even_if_that_was_left_out() -> None:
    """A signal that jumps once: measured from the last computed step, the jump would count again and again."""
    jump = Script(lambda block, step: 1.0, signal=lambda step: 1.0 if step < 2 else 1.3)
    assert computed("teacache", jump, event(12), threshold=0.35, **IDENTITY) == [0, 11]


@given(rates=st.lists(st.floats(0.0, 0.6), min_size=19, max_size=19), threshold=st.floats(0.05, 1.0))
def test_teacache_never_lets_more_than_the_threshold_go_by(rates: list[float], threshold: float) -> None:
    sizes = [1.0]
    for rate in rates:
        sizes.append(sizes[-1] * (1 + rate))
    script = Script(lambda block, step: 1.0, signal=lambda step: sizes[step])
    steps = computed("teacache", script, event(20), threshold=threshold, **IDENTITY)
    assert steps[0] == 0
    assert steps[-1] == 19
    for here, following in pairwise(steps):
        assert sum(rates[here : following - 1]) < threshold + 1e-9, "what was left out"
        if following != 19:
            assert sum(rates[here:following]) >= threshold - 1e-9, "and no more than that was computed"


def test_what_a_cache_answers_is_the_input_of_the_step_and_the_residual_that_was_computed_last() -> None:
    script = Script(lambda block, step: 10.0 + step + block, signal=lambda step: 1.0)
    fit = {"ratios": ((1.0,) * 8,), "retention": 0.0, "max_skips": 20}
    cases: list[tuple[str, Mapping[str, Any]]] = [("teacache", {"threshold": 9.0, **IDENTITY}), ("magcache", fit)]
    for name, settings in cases:
        forwards = drive(made(name, **settings), script, event(8), h=lambda step: 100.0 * step)
        added = PATTERN * sum(10.0 + block for block in range(4))
        for forward in forwards[1:-1]:
            torch.testing.assert_close(forward.out, PATTERN * 100.0 * forward.step + added)
        torch.testing.assert_close(forwards[-1].out, script.answer(7, 700.0)), name


def test_the_branches_of_guidance_are_decided_and_kept_apart() -> None:
    calm = Script(lambda block, step: 1.0, signal=lambda step: 1.0)
    wild = Script(lambda block, step: -5.0, signal=lambda step: 2.0**step)
    forwards = drive(made("teacache", threshold=0.35, **IDENTITY), [calm, wild], event(10))
    of = {branch: [f.step for f in forwards if f.branch == branch and f.is_whole] for branch in (0, 1)}
    assert of == {0: [0, 9], 1: list(range(10))}
    assert all(torch.equal(f.out, calm.answer(f.step)) for f in forwards if f.branch == 0)


@pytest.mark.parametrize(("variant", "num_first"), [("plain", 1), ("ret", 5)])
def test_each_variant_of_teacache_computes_its_first_steps(variant: str, num_first: int) -> None:
    still = Script(lambda block, step: 1.0, signal=lambda step: 1.0)
    assert computed("teacache", still, event(20), threshold=0.3, variant=variant, **IDENTITY) == [*range(num_first), 19]


@pytest.mark.parametrize("name", ["teacache", "adacache", "magcache"])
def test_inside_a_stage_of_several_no_cache_reuses_for_long(name: str) -> None:
    """Where nothing changes at all. The first steps of a stage, its transition and what comes of three in a row are computed."""
    still = Script(lambda block, step: 1.0, signal=lambda step: 1.0)
    settings: Mapping[str, Any] = {
        "teacache": {"threshold": 9.0, "variant": "ret", **IDENTITY},
        "adacache": {"codebook": "fast", "motion": False},
        "magcache": {"ratios": ((1.0,) * 40,), "threshold": 9.0},
    }[name]
    for stage in (0, 1, 2):
        where = event(40, (14, 15, 11), stage)
        steps = computed(name, still, where, **settings)
        assert steps[0] == where.steps[0]
        assert steps[-1] == where.steps[-1]
        gaps = [following - here - 1 for here, following in pairwise(steps)]
        assert max(gaps) == LONGEST_IN_STAGES, (name, stage, steps)
        assert steps.index(where.steps[0]) == 0
        if name != "adacache":
            assert steps[1] == where.steps[0] + WARM_UP_IN_STAGES - 1


def test_magcache_computes_when_the_errors_of_the_ratios_add_up_to_the_threshold() -> None:
    ratios = (tuple([1.0] + [0.9] * 29),)
    script = Script(lambda block, step: 1.0)
    steps = computed("magcache", script, event(30), ratios=ratios, threshold=0.4)
    # |1 - .9| = .1, then |1 - .81| = .19, their sum .29; with |1 - .729| = .271 it is .561
    assert steps == [*range(6), 8, 11, 14, 17, 20, 23, 26, 29], "a fifth at first, then every third, and the last"


@pytest.mark.parametrize(("longest", "expected"), [(None, [0, 1, 2, 3, 10, 17, 19]), (2, [0, 1, 2, 3, 6, 9, 12, 15, 18, 19])])
def test_magcache_leaves_out_no_more_in_a_row_than_is_set(longest: int | None, expected: list[int]) -> None:
    script = Script(lambda block, step: 1.0)
    assert computed("magcache", script, event(20), ratios=((1.0,) * 20,), max_skips=longest) == expected


def test_ratios_of_another_number_of_steps_keep_what_a_clip_loses_in_all() -> None:
    row = tuple([1.0] + [0.98] * 40)
    for num_steps in (11, 21, 41, 81):
        (found,) = stretched((row,), num_steps)
        assert len(found) == num_steps
        product = 1.0
        for ratio in found:
            product *= ratio
        assert product == pytest.approx(0.98**40, rel=0.05), num_steps


class Middles:
    """Attention of the middle block by a script; its rows are frames of one token."""

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self.rows = rows

    def script(self) -> Script:
        return Script(lambda block, step: 1.0, image_of_middle=lambda step: self.rows[step])


def shrinking(rate: float, num: int = 40) -> Script:
    return Middles([PATTERN * (1 - rate) ** step for step in range(num)]).script()


def adacache_steps(script: Script, num_steps: int, **settings: Any) -> list[int]:
    forwards = drive(made("adacache", **settings), script, event(num_steps))
    assert all(abs(f.work - 1) < 1e-9 or f.work == 0 for f in forwards)
    return [forward.step for forward in forwards if forward.is_whole]


@pytest.mark.parametrize(
    ("rate", "codebook", "lengths"),
    [(0.02, "slow", 3), (0.1, "slow", 2), (0.2, "slow", 1), (0.02, "fast", 6), (0.30, "fast", 3)],
)
def test_adacache_keeps_for_as_long_as_the_codebook_says(rate: float, codebook: str, lengths: int) -> None:
    steps = adacache_steps(shrinking(rate), 30, codebook=codebook, motion=False)
    assert steps[:2] == [0, 1], "the second step tells the first change"
    gaps = [following - here for here, following in pairwise(steps)]
    assert gaps[1] == lengths
    if rate == 0.1:
        assert gaps[2:6] == [lengths] * 4, "a change over two steps is shared between them: each is under 0.16, their sum is not"
    assert steps[-2:] == [28, 29], "the last two steps are computed"


@pytest.mark.parametrize(("num_steps", "longest"), [(30, 6), (12, 2), (60, 12), (5, 1)])
def test_lengths_are_scaled_to_the_number_of_steps(num_steps: int, longest: int) -> None:
    assert CODEBOOKS["fast"].length(0.0, num_steps) == longest


@given(name=st.sampled_from(sorted(CODEBOOKS)), low=st.floats(0, 1), more=st.floats(0, 1), num_steps=st.integers(3, 200))
def test_a_faster_change_is_never_kept_for_longer(name: Any, low: float, more: float, num_steps: int) -> None:
    book = CODEBOOKS[name]
    assert 1 <= book.length(low + more, num_steps) <= book.length(low, num_steps)


def test_the_codebook_of_long_runs_is_taken_for_long_runs() -> None:
    own = AdaCache(AdaCacheSettings(), MINI)
    assert (own.codebook(30), own.codebook(100)) == (CODEBOOKS["fast"], CODEBOOKS["long"])


def test_motion_is_the_difference_of_neighbouring_frames_whatever_a_frame_has_of_tokens() -> None:
    frames = torch.tensor([1.0, 3.0, 2.0]).repeat_interleave(4).reshape(1, 12, 1)
    script = Script(lambda block, step: 1.0, tokens_per_frame=4)
    assert frame_change(script.trunk(0), frames) == pytest.approx((2 + 1) / (1 + 3 + 3 + 2))
    assert frame_change(script.trunk(0), frames[:, :4]) is None


def test_content_that_moves_is_computed_more_often() -> None:
    still = [torch.tensor([[[1.0], [1.0], [1.0]]]) * 0.9**step for step in range(30)]
    moving = [torch.tensor([[[1.0], [-1.0], [1.0]]]) * 0.9**step for step in range(30)]

    def num(rows: list[Tensor], motion: bool) -> int:
        wide = [row.double().repeat(1, 1, 2) for row in rows]
        return len(adacache_steps(Middles(wide).script(), 30, codebook="fast", motion=motion))

    assert num(moving, True) > num(moving, False) == num(still, False) > num(still, True)


def test_adacache_looks_at_the_block_in_the_middle() -> None:
    script = shrinking(0.02)
    script.num_blocks = 7
    calls = drive(made("adacache"), script, event(5))[0].calls
    assert calls == ("0", "1", "2", "a3", "f3", "4", "5", "6")


def test_teacache_takes_the_published_coefficients_of_the_model_variant_and_size() -> None:
    def first(name: str, variant: str | None = None, height: int = 0, width: int = 0) -> tuple[float, str, float]:
        method = find("teacache", "accelerator")
        size = {"height": height, "width": width} if height else {}
        found = method.resolve(read_settings(method, {"variant": variant}), request(name, **size))
        return found.coefficients[0], found.signal, found.threshold

    assert first("hunyuanvideo") == (733.226126, "input", 0.1)
    assert first("wan2.1-14b") == (-5784.54975374, "time", 0.14)
    assert first("wan2.1-14b", "ret") == (-3.03318725e5, "modulation", 0.14)
    assert first("wan2.1-i2v-14b") == (-3.02331670e2, "time", 0.13)
    assert first("wan2.1-i2v-14b", height=720, width=1280) == (-114.36346466, "time", 0.18)
    assert first("hunyuanvideo-1.5-720p") == (-3.08907507e4, "input", 0.15)


@pytest.mark.parametrize("name", sorted(teacache.PUBLISHED))
def test_every_published_row_is_of_a_model_that_there_is(name: str) -> None:
    assert name.removesuffix("-720p") in MODELS
    assert all(len(row.coefficients) in (5, 6) for row in teacache.PUBLISHED[name].values())


@pytest.mark.parametrize("name", ["teacache", "magcache"])
def test_a_model_that_nobody_fitted_is_refused_with_what_serves_instead(name: str, monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    method = find(name, "accelerator")
    with pytest.raises(
        ValueError, match=rf"{name}: .*wan2.2-a14b.*dvg calibrate-cache wan2.2-a14b, or take adacache or taylorseer"
    ):
        method.resolve(method.settings(), request("wan2.2-a14b"))


def test_a_variant_without_coefficients_is_refused_with_those_that_have_some(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    method = find("teacache", "accelerator")
    with pytest.raises(ValueError, match="hunyuanvideo has coefficients for variant plain only"):
        method.resolve(read_settings(method, {"variant": "ret"}), request("hunyuanvideo"))


def fit(model: str = "wan2.2-a14b", num_steps: int = 30, num: float = 1.0) -> CacheFit:
    row = SignalFit(coefficients=(num, 0.0), span=(0.1, 0.5), error=0.1)
    worse = row.model_copy(update={"error": 0.3})
    return CacheFit(
        model=model, revision="", grids=((11, 18, 18),), num_steps=num_steps, solver="euler", shift=3.0, guidance=1.0,
        num_clips=1, warmup=5, signals={"input": worse, "time": row, "modulation": worse}, ratios=((1.0,) * num_steps,),
    )  # fmt: skip


def test_a_fit_of_ones_own_serves_and_the_one_of_the_nearest_schedule_first(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    for num_steps in (10, 30, 50):
        (tmp_path / f"{num_steps}.json").write_text(fit(num_steps=num_steps, num=num_steps).model_dump_json())
    (tmp_path / "other.json").write_text(fit("wan2.1-14b").model_dump_json())
    method = find("teacache", "accelerator")
    found = method.resolve(method.settings(), request("wan2.2-a14b"))
    assert (found.coefficients, found.signal, found.span) == ((30.0, 0.0), "time", (0.1, 0.5)), "the signal that tells most"
    assert found.warmup == 5, "what the fit does not tell is computed"
    ratios = find("magcache", "accelerator").resolve(find("magcache", "accelerator").settings(), request("wan2.2-a14b")).ratios
    assert ratios == ((1.0,) * 30,)
    own = method.make(found, geometry_of("wan2.2-a14b"))
    assert (own.reckoned(0.0), own.reckoned(0.2), own.reckoned(9.0)) == pytest.approx((3.0, 6.0, 15.0)), "within its span"


def test_a_fit_of_another_model_and_a_broken_one_are_refused_by_name(tmp_path: Any) -> None:
    path = tmp_path / "fit.json"
    path.write_text(fit("wan2.1-14b").model_dump_json())
    with pytest.raises(ValueError, match=r"fit\.json' is of wan2.1-14b, not of wan-mini"):
        fitting.find(request(), str(path))
    path.write_text("{}")
    with pytest.raises(ValueError, match=r"fit\.json' is broken .*dvg calibrate-cache"):
        fitting.find(request(), str(path))
    with pytest.raises(ValueError, match="cannot be read"):
        fitting.find(request(), str(tmp_path / "none.json"))


@given(st.lists(st.floats(-2, 2), min_size=5, max_size=5))
def test_a_polynomial_is_found_again_from_its_values(coefficients: list[float]) -> None:
    changes = [0.02 * step for step in range(1, 40)]
    values = [5 + sum(c * x ** (4 - power) for power, c in enumerate(coefficients)) for x in changes]
    found = fit_signal(changes, values)
    again = [sum(c * x ** (4 - power) for power, c in enumerate(found.coefficients)) for x in changes]
    assert again == pytest.approx(values, abs=1e-6)
    assert found.span == (changes[0], changes[-1])
    assert found.error < 1e-6


def test_too_few_steps_make_no_fit() -> None:
    with pytest.raises(ValueError, match="4 different changes of a signal are too few"):
        fit_signal([0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 1.0, 1.0])


def test_fits_of_the_embedded_model_ship() -> None:
    for name in ("teacache", "magcache"):
        method = find(name, "accelerator")
        method.resolve(method.settings(), request())


def test_a_jump_of_motion_is_computed_as_often_as_the_gradient_weighs_it() -> None:
    signs = [torch.tensor([1.0, 1.0, -1.0 if step % 2 else 1.0]).reshape(1, 3, 1) * 0.9**step for step in range(30)]
    rows = [row.double().repeat(1, 1, 2) for row in signs]
    nums = [len(adacache_steps(Middles(rows).script(), 30, codebook="fast", gradient=weight)) for weight in (0.0, 10.0)]
    assert nums[0] < nums[1] == 30
