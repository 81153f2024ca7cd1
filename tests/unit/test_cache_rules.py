"""Edges of TeaCache, AdaCache and MagCache: polynomials outside their range, what is read and refused, sums in few bits."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments import calibrate_cache
from orchestrator.cli_calibrate_cache import file_name
from orchestrator.methods import find, read_settings
from orchestrator.prompts import Prompt
from orchestrator.resolve import resolve_arm
from stages.accelerators import fitting
from stages.accelerators.adacache import frame_change
from stages.accelerators.fitting import FOLDER_VARIABLE
from stages.accelerators.teacache import PUBLISHED, TeaCache, TeaCacheSettings
from stages.accelerators.trunk import Trunk, relative_change
from tests.unit.scripted import Script, drive, event
from tests.unit.test_caches import IDENTITY, MINI, computed, growing, request
from tests.unit.test_caches import fit as made_fit


def moving(rates: list[float]) -> Script:
    """A signal that changes by the share of each rate, from step to step."""
    sizes = [1.0]
    for rate in rates:
        sizes.append(sizes[-1] * (1 + rate))
    return Script(lambda block, step: 1.0, signal=lambda step: sizes[step])


def test_a_change_that_the_polynomial_puts_below_zero_makes_up_for_no_other() -> None:
    """It is 2 x - 0.1: a change of 0.02 is worth -0.06, one of 0.1 is worth 0.1."""
    rates = [0.1, 0.1, *[0.02] * 6, 0.1, 0.1, 0.1, 0.1, 0.1]
    steps = computed("teacache", moving(rates), event(14), threshold=0.25, coefficients=(2.0, -0.1), signal="input")
    assert steps == [0, 9, 12, 13], "0.1 twice before the calm, once after it: three times is over 0.25"


ROWS = [(name, variant) for name, rows in sorted(PUBLISHED.items()) for variant in rows]


@pytest.mark.parametrize(("name", "variant"), ROWS)
def test_published_settings_skip_as_their_polynomial_says_on_a_steady_signal(name: str, variant: Any) -> None:
    """At a change worth more than half of the threshold, every other step is computed."""
    row = PUBLISHED[name][variant]
    settings = {"coefficients": row.coefficients, "signal": row.signal, "threshold": row.threshold, "warmup": 1}
    own = TeaCache(TeaCacheSettings(**settings), MINI)
    rate = next(rate for number in range(1, 5_000) if 0.52 < own.reckoned(rate := number / 10_000) / row.threshold < 0.95)
    forwards = drive(own, growing(rate), event(20))
    assert [forward.step for forward in forwards if forward.is_whole] == [*range(0, 20, 2), 19]


def test_sums_over_tokens_of_few_bits_are_not_rounded_to_them() -> None:
    """257 and 771 are no bfloat16."""
    trunk, before = Script(lambda block, step: 1.0).trunk(0), torch.ones(1, 257, 1, dtype=torch.bfloat16)
    now = before.clone()
    now[0, :3] = 2
    assert relative_change(trunk, now, before) == pytest.approx(3 / 257, rel=1e-6)
    frames = torch.cat([before, 3 * before, 3 * before], dim=1)
    script = Script(lambda block, step: 1.0, tokens_per_frame=257)
    assert frame_change(script.trunk(0), frames) == pytest.approx((2 * 257) / ((1 + 3 + 3 + 3) * 257), rel=1e-6)


NONSENSE: list[tuple[str, dict[str, Any], str]] = [
    ("magcache", {"ratios": []}, "at least 1"),
    ("magcache", {"ratios": [[]]}, "at least 2"),
    ("magcache", {"ratios": [[0.9]]}, "at least 2"),
    ("magcache", {"ratios": [[1.0, 0.9], [1.0, 0.9, 0.9]]}, "2 and 3 ratios"),
    ("magcache", {"ratios": [[1.0, 0.9]] * 3}, "at most 2"),
    ("magcache", {"ratios": [[1.0, math.nan]]}, "finite"),
    ("magcache", {"ratios": [[1.0, 0.0]]}, "greater than 0"),
    ("teacache", {"coefficients": [math.nan], "signal": "input"}, "finite"),
    ("teacache", {"coefficients": [], "signal": "input"}, "at least 1"),
    ("teacache", {**IDENTITY, "span": [1, 0]}, "from more to less"),
    ("teacache", {**IDENTITY, "span": [0, math.inf]}, "finite"),
]


@pytest.mark.parametrize(("name", "settings", "words"), NONSENSE)
def test_numbers_that_mean_nothing_are_refused_before_a_clip_is_made(name: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}.*{words}"):
        read_settings(find(name, "accelerator"), settings)


def resolved(model_name: str = "wan-mini", **settings: Any) -> Any:
    method = find("teacache", "accelerator")
    return method.resolve(read_settings(method, settings), request(model_name))


def test_what_is_given_beside_a_fit_counts_more_than_what_the_fit_says() -> None:
    fit = resolved()
    own = resolved(warmup=2, span=(0.1, 0.2), signal="input", threshold=0.3)
    assert fit.warmup == 5 > own.warmup == 2
    assert (own.span, own.signal, own.threshold) == ((0.1, 0.2), "input", 0.3)
    assert own.coefficients != fit.coefficients


@pytest.mark.parametrize(
    ("model_name", "settings", "words"),
    [
        ("wan-mini", {"fit": "own.json", **IDENTITY}, "leave out fit or coefficients"),
        ("wan-mini", {"fit": "own.json", "variant": "ret"}, "leave out fit or variant"),
        ("wan-mini", {"variant": "ret"}, "variant is 'ret', and wan-mini has no published coefficients"),
        ("wan2.1-14b", {"signal": "input"}, "signal is 'input', and .* wan2.1-14b are of 'time'"),
    ],
)
def test_what_no_fit_can_honour_is_refused_by_name(
    model_name: str, settings: dict[str, Any], words: str, monkeypatch: Any, tmp_path: Any
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    with pytest.raises(ValueError, match=words):
        resolved(model_name, **settings)


def test_a_prompts_own_seed_is_taken_even_if_it_is_zero(monkeypatch: Any) -> None:
    class Told(Exception):
        pass

    def watched(model: Any, arm: Any, shape: Any, prompt: Any, seed: int) -> Any:
        seeds.append(seed)
        if len(seeds) == 3:
            raise Told
        return []

    seeds: list[int] = []
    monkeypatch.setattr(calibrate_cache, "watched", watched)
    prompts = [Prompt(prompt="one"), Prompt(prompt="two", seed=0), Prompt(prompt="three", seed=9)]
    with pytest.raises(Told):
        calibrate_cache.measure(SimpleNamespace(geometry=MINI), SimpleNamespace(fps=16), [(3, 4, 4)], prompts)  # type: ignore[arg-type]
    assert seeds == [0, 0, 9]


def fits(folder: Any, **fields: Any) -> None:
    """A file of a fit that differs from one of 30 steps in ``fields``."""
    (folder / f"{len(list(folder.iterdir()))}.json").write_text(made_fit().model_copy(update=fields).model_dump_json())


def test_of_several_fits_the_one_sampled_most_alike_is_taken(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    asked = replace(request("wan2.2-a14b"), solver="unipc", guidance=4.0, revision="new")
    shift, grid = asked.geometry.full_shift, asked.geometry.latent_grid(asked.shape)
    fields: dict[str, Any] = {"revision": "old", "solver": "unipc", "guidance": 4.0, "shift": shift, "grids": (grid,)}
    fits(tmp_path, **fields)
    for more in ({"solver": "euler"}, {"num_steps": 31}, {"shift": shift + 1}, {"guidance": 1.0}, {"grids": ((1, 4, 4),)}):
        fits(tmp_path, **(fields | {"revision": "new"} | more))
        told = fitting.find(asked)
        assert told is not None
        assert told.revision == "new"
    fits(tmp_path, **(fields | {"revision": "new", "num_clips": 7}))
    best = fitting.find(asked)
    assert best is not None
    assert best.num_clips == 7


def test_a_fit_of_other_weights_is_taken_only_where_it_is_named(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    fits(tmp_path, revision="old")
    asked = replace(request("wan2.2-a14b"), revision="new")
    with pytest.raises(ValueError, match=r"0\.json' is of other weights of wan2.2-a14b \(old, not new\): measure"):
        fitting.find(asked)
    assert fitting.find(asked, str(tmp_path / "0.json")) is not None
    assert fitting.find(request("wan2.2-a14b")) is not None, "weights that nobody looked at"


def test_the_fit_that_ships_is_of_the_weights_that_ship() -> None:
    arm = resolve_arm("tea", {"model": "wan-mini", "planner": "full", "accelerators": ["teacache"]}, mistakes := [])
    assert not mistakes
    assert arm is not None
    found = fitting.find(replace(request(), revision=arm.revision))
    assert found is not None
    assert found.revision == arm.revision


def test_every_grid_and_schedule_has_a_file_of_its_own() -> None:
    asked = {"model": "wan-mini", "planner": "full"}
    varied = [{}, {"steps": 20}, {"guidance": 1.0}, {"solver": "unipc"}, {"shift": 7.0}]
    arms = [arm for more in varied if (arm := resolve_arm("fit", {**asked, **more}, []))]
    grids = (((3, 4, 4),), ((3, 4, 6),), ((3, 4, 4), (3, 4, 6)))
    names = {file_name(arm, own) for arm in arms for own in grids}
    assert len(names) == len(varied) * len(grids)


class Ranks:
    """The group of ranks that share some rows, played by one process: each has every row that the others would send."""

    def __init__(self, parts: list[Any], rank: int) -> None:
        self.parts, self.rank, self.size, self.sent = parts, rank, len(parts), 0

    def gather_rows(self, rows: Any, counts: tuple[int, ...]) -> Any:
        if rows.ndim == 1:
            return torch.tensor([part.shape[1] for part in self.parts])
        self.sent = max(self.sent, len(rows))
        return torch.cat([part[0, :count] for part, count in zip(self.parts, counts, strict=True)])


@pytest.mark.parametrize("lengths", [(24,), (12, 12), (7, 6, 6, 5), (1, 2, 20, 1), (3, 3, 3, 3, 12)])
def test_ranks_compare_neighbouring_frames_by_one_frame_of_their_neighbours(lengths: tuple[int, ...], monkeypatch: Any) -> None:
    """Together the pairs of all ranks are those of all rows."""
    rows, stride = torch.arange(1.0, 25.0).reshape(1, 24, 1) ** 2, 4
    parts = list(rows.split(lengths, dim=1))
    sums: list[float] = []
    monkeypatch.setattr(Trunk, "total", lambda self, *values: sums.append(float(values[0])) or [1.0] * len(values))
    for rank, part in enumerate(parts):
        group = Ranks(parts, rank)
        trunk = replace(Script(lambda block, step: 1.0, tokens_per_frame=stride).trunk(0), sequence=group)
        assert frame_change(trunk, part) is not None
        assert group.sent <= stride
    assert sum(sums) == pytest.approx(float((rows[:, stride:] - rows[:, :-stride]).abs().sum()))


def test_tokens_of_no_one_frame_size_tell_no_motion() -> None:
    assert frame_change(Script(lambda block, step: 1.0, tokens_per_frame=0).trunk(0), torch.ones(1, 8, 1)) is None


def test_ranks_that_hold_the_same_number_anyway_do_not_ask_each_other() -> None:
    halves = [torch.ones(1, 2, 1)] * 2
    group, trunk = Ranks(halves, 0), Script(lambda block, step: 1.0).trunk(0)
    assert replace(trunk, sequence=group).agreed(0.3) == 0.3
    group.gather_rows = lambda rows, counts: torch.tensor([[0.3], [0.5]])  # type: ignore[method-assign]
    assert replace(trunk, sequence=group, branches_apart=True).agreed(0.3) == pytest.approx(0.4)
