"""No method of attention makes the host wait for the device: of tensors that have shapes and no values, none may be asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import Request, available, find, read_settings
from orchestrator.types import Grid
from stages.accelerators.attencarve import on_host
from stages.accelerators.attending import Here, Log
from stages.accelerators.block_sparse import BlockSparse, SparseSettings
from stages.sparse import kernel
from stages.sparse.pattern import Pattern, in_a_row
from tests.unit.attention_calls import GEOMETRY, dense, here

METHODS = [name for name in available("accelerator") if find(name, "accelerator").lever == "attention"]
MORE: dict[str, dict[str, Any]] = {"freelong": {"window": 3}, "svg2": {"first_rounds": 3}}
"""Settings by which a short clip is sparse, and soon done."""
GRID: Grid = (6, 9, 10)
NUM_TEXT = 7


@pytest.fixture(autouse=True)
def nothing_known() -> Iterator[None]:
    """What is kept between clips was made of tensors with values; of those here nothing may stay."""
    on_host.cache_clear()
    yield
    on_host.cache_clear()


def made(name: str) -> Any:
    """As a clip of wan-mini at its own settings would have it, but sparse from the first step and layer on."""
    method = find(name, "accelerator")
    sparse = {key: 0.0 for key in ("dense_steps", "dense_layers") if key in method.settings.model_fields}
    request = Request(GEOMETRY, GEOMETRY.default_shape, 10, 3.0, "full", DvgConfig())
    return method.make(method.resolve(read_settings(method, {**sparse, **MORE.get(name, {})}), request), GEOMETRY)


def run(attending: Any, log: Log, device: str = "cpu", mode: TorchDispatchMode | None = None) -> None:
    with mode or FakeTensorMode():
        for step in range(4):
            branch = step % 2
            shape = 1, GEOMETRY.heads, 540 + NUM_TEXT + branch, GEOMETRY.head_dim
            q, k, v = (torch.empty(shape, dtype=torch.bfloat16, device=device) for _ in range(3))
            where = here(GRID, log, step, 0, branch, heads=range(GEOMETRY.heads))
            found: Tensor = attending.attend(q, k, v, where, dense)
            assert found.shape == q.shape


class Awaited(RuntimeError):
    """A copy that the host waits for."""


class NoWaiting(TorchDispatchMode):
    """Refuses blocking copies from the host to a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_):
            source, given = (args[1], args[2:]) if func.overloadpacket is torch.ops.aten.copy_ else (args[0], ())
            is_free = (kwargs or {}).get("non_blocking", given[0] if given else False)
            if source.device.type != found.device.type and not is_free:
                raise Awaited(f"a copy from {source.device} to {found.device}")
        return found


@pytest.mark.parametrize("name", METHODS)
def test_what_is_kept_is_chosen_attended_to_and_counted_on_the_device(name: str) -> None:
    log = Log(GEOMETRY.num_layers)
    run(made(name), log)
    assert any(isinstance(call.density, Tensor) or call.density != 1 for call in log.calls), "something was left out"


@pytest.mark.parametrize("name", METHODS)
def test_nothing_is_copied_to_the_device_that_the_host_waits_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tensors of no device, which have shapes too: FlexAttention is of no matter here."""
    monkeypatch.setattr(kernel, "by_mask", lambda q, k, v, pattern: torch.empty_like(q))
    run(made(name), Log(GEOMETRY.num_layers), "meta", NoWaiting())


@pytest.mark.parametrize("copied", [lambda x: x.to("meta"), lambda x: torch.empty_like(x, device="meta").copy_(x)])
def test_a_copy_that_the_host_waits_for_is_found_out(copied: Callable[[Tensor], Tensor]) -> None:
    with NoWaiting(), pytest.raises(Awaited):
        copied(torch.ones(2))


def test_a_method_that_asks_for_a_number_is_found_out() -> None:
    class Asking(BlockSparse):
        def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern | None:
            blocks = in_a_row(here.num_image, 64, q.device)
            keep = blocks.mean(q) @ blocks.mean(k).transpose(1, 2) > 0
            return Pattern(blocks, blocks, keep) if bool(keep.any()) else None

    with pytest.raises(DataDependentOutputException):
        run(Asking(SparseSettings(dense_steps=0, dense_layers=0), GEOMETRY), Log(GEOMETRY.num_layers))
