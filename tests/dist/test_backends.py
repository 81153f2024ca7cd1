"""Every exchange that runs without a GPU, against one rank; and what each refuses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from parallel import backends
from parallel.groups import Group, Groups
from parallel.layout import layout
from parallel.native import Native
from parallel.seam import Attention, Exchange, Seam
from parallel.trial import passing
from tests.dist.gang import Gang

ON_CPU = ("auto", "native", "ulysses")
HEAD_DIM = 6
WIDTHS = (1, 2, 4, 2, 1)
made: dict[str, Exchange] = {}
"""Of this rank: a pod makes its exchange once."""


@cache
def inputs(num_tokens: int, heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return [torch.randn(1, heads, num_tokens, HEAD_DIM, generator=generator) for _ in range(3)]


def expected(num_image: int, num_text: int, heads: int) -> Tensor:
    found = F.scaled_dot_product_attention(*inputs(num_image + num_text, heads))
    return found.transpose(1, 2).flatten(2)[:, :num_image]


def attended(
    groups: Groups, start: int, width: int, num_image: int, num_text: int, heads: int, name: str, is_control: bool = False
) -> Tensor | None:
    """Image rows that one slice finds together."""
    if name not in made:
        made[name] = backends.make(name, groups)
    if groups.rank not in range(start, start + width):
        return None
    seam = Seam(F.scaled_dot_product_attention)
    seam.attach(layout(groups, start, width, 1), None if is_control else made[name])
    image, text = seam.cut(num_image, num_text)
    q, k, v = (
        torch.cat([x[:, :, :num_image][:, :, image], x[:, :, num_image:][:, :, text]], 2)
        for x in inputs(num_image + num_text, heads)
    )
    rows = seam(q, k, v).transpose(1, 2).flatten(2)[:, : image.stop - image.start]
    return seam.join(rows)


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("num_image,num_text,heads", [(16, 0, 4), (37, 0, 8), (3, 0, 4), (1, 0, 4), (36, 7, 8), (13, 2, 12)])
def test_any_number_of_tokens_on_any_width_equals_one_rank(
    gang: Gang, name: str, num_image: int, num_text: int, heads: int
) -> None:
    for width in WIDTHS:
        for found in gang.run(attended, 0, width, num_image, num_text, heads, name)[:width]:
            torch.testing.assert_close(found, expected(num_image, num_text, heads), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ON_CPU)
def test_two_slices_of_one_pod_do_not_meet(gang: Gang, name: str) -> None:
    for start in (0, 2):
        gang_found = gang.run(attended, start, 2, 11 + start, 0, 4, name)
        for found in gang_found[start : start + 2]:
            torch.testing.assert_close(found, expected(11 + start, 0, 4), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ON_CPU)
def test_attention_that_stays_on_its_rank_differs(gang: Gang, name: str) -> None:
    found = gang.run(attended, 0, 4, 37, 5, 8, name, True)[0]
    assert (found - expected(37, 5, 8)).abs().max() > 0.1


@dataclass
class Wrong:
    """On one rank: an exchange that raises, or that leaves attention where it is."""

    rank: int
    raises: bool
    name: str = "wrong"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, local: Attention, group: Group, counts: tuple[int, ...]) -> Tensor:
        found = Native()(q, k, v, local, group, counts)
        if group.rank != self.rank:
            return found
        if self.raises:
            raise RuntimeError("no peer access")
        return local(q, k, v)


def tried(groups: Groups, rank: int, raises: bool) -> str:
    return passing(Wrong(rank, raises), groups).name


@pytest.mark.parametrize("raises", [False, True])
def test_an_exchange_that_fails_on_one_rank_is_used_on_none(gang: Gang, raises: bool) -> None:
    assert gang.run(tried, 2, raises) == ["native"] * 4


def test_an_exchange_that_passes_its_trial_is_used(gang: Gang) -> None:
    assert gang.run(tried, 9, False) == ["wrong"] * 4


def test_auto_is_settled_by_the_device() -> None:
    assert [backends.settled("auto", kind) for kind in ("cuda", "cpu")] == ["peer", "native"]
    assert [backends.settled(name, "cpu") for name in backends.names()[1:]] == list(backends.names()[1:])
    uneven = {"heads": 40, "num_tokens": [101], "degree": 8}
    assert all(backends.mistakes("auto", **uneven, device_type=kind) == [] for kind in ("cuda", "cpu"))


@given(st.sampled_from(backends.names()), st.integers(1, 48), st.sampled_from([1, 2, 4, 8]), st.integers(1, 10_000))
def test_a_degree_that_is_allowed_divides_what_its_backend_divides(name: str, heads: int, degree: int, num_tokens: int) -> None:
    found = backends.mistakes(name, heads=heads, num_tokens=[num_tokens], degree=degree, device_type="cuda")
    heads_divide = heads % backends.head_ranks(name, heads, degree) == 0
    tokens_divide = name != "usp" or num_tokens % degree == 0
    assert (found == []) == (heads_divide and tokens_divide)


@pytest.mark.parametrize("name", ON_CPU)
def test_heads_that_do_not_divide_are_refused_with_the_arithmetic(name: str) -> None:
    (found,) = backends.mistakes(name, heads=12, num_tokens=[101], degree=8, device_type="cpu")
    assert "12 heads" in found
    assert "12 / 8 = 1.5" in found


def test_usp_refuses_a_cpu_and_uneven_tokens_and_names_those_that_can() -> None:
    no_gpu, uneven = backends.mistakes("usp", heads=40, num_tokens=[32_760, 32_761], degree=8, device_type="cpu")
    assert "GPU" in no_gpu
    assert "32,761 tokens / 8" in uneven
    assert all("native and ulysses" in told for told in (no_gpu, uneven))


def test_usp_lengthens_its_ring_where_heads_do_not_divide() -> None:
    assert [backends.head_ranks("usp", heads, 8) for heads in (40, 12, 6, 3)] == [4, 4, 2, 1]


def test_one_rank_is_refused_nothing() -> None:
    assert backends.mistakes("usp", heads=7, num_tokens=[13], degree=1, device_type="cpu") == []


def test_a_degree_that_no_slice_has_is_refused() -> None:
    assert "power of 2" in backends.mistakes("native", heads=12, num_tokens=[12], degree=3, device_type="cpu")[0]


def test_an_unknown_backend_is_refused_with_the_choices() -> None:
    told = r"'ring' is not known. Choices: auto, native, peer, ulysses, usp"
    with pytest.raises(ValueError, match=told):
        backends.missing("ring")
    with pytest.raises(ValueError, match=told):
        backends.mistakes("ring", heads=1, num_tokens=[], degree=1, device_type="cpu")


def test_what_runs_here_is_told_apart_from_what_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends.missing("native") is None
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    assert backends.missing("ulysses") == "deepspeed is not installed"
    assert backends.missing("usp") == "xfuser and yunchang and triton are not installed"
    with pytest.raises(ValueError, match="'ulysses' cannot run here: deepspeed is not installed"):
        backends.make("ulysses", None)  # type: ignore[arg-type]


def test_usp_without_a_gpu_is_refused_before_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: object())
    if not torch.cuda.is_available():
        assert backends.missing("usp") == "it needs a GPU"
