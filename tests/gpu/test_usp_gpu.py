"""Every exchange over NCCL on 2 and 4 GPUs against one GPU; usp's ring among them (4 GPUs: heads over 2, a ring of 2).

xfuser merges wrong sums in silence on several of its paths, so each case has its control. Prompts are short, as a mask or an
order of tokens that is wrong shows most there.
"""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor

from parallel import backends
from parallel.groups import Groups, join_store, open_store
from parallel.layout import layout
from parallel.seam import Exchange, Seam

NUM_GPUS = torch.cuda.device_count()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(NUM_GPUS < 2, reason=f"needs 2 GPUs, there are {NUM_GPUS}")]

HEAD_DIM = 128
CLOSE, APART = 1e-2, 0.3
"""Relative distances: rounding of bf16, once more for a ring; and what one attention left on its rank makes of it."""
TIMEOUT = timedelta(seconds=120)


class Case(NamedTuple):
    num_image: int
    num_text: int
    heads: int


CASES = (Case(4096, 0, 8), Case(4090, 6, 8), Case(8190, 2, 6), Case(65_536, 64, 4), Case(4091, 6, 8))
"""The last has 4,097 tokens, which only an exchange for uneven shares takes."""


def inputs(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(case.num_image)
    rows = [torch.randn(1, case.heads, case.num_image + case.num_text, HEAD_DIM, generator=generator) for _ in range(3)]
    return [x.to("cuda", torch.bfloat16) for x in rows]


def distance(found: Tensor, case: Case) -> float:
    q, k, v = inputs(case)
    exact = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, : case.num_image].float()
    return float((found.float() - exact).norm() / exact.norm())


def attended(groups: Groups, width: int, case: Case, exchange: Exchange | None) -> float:
    """How far from one GPU all ranks of the first ``width`` come together."""
    seam = Seam(F.scaled_dot_product_attention)
    seam.attach(layout(groups, 0, width, 1), exchange)
    image, text = seam.cut(case.num_image, case.num_text)
    num = case.num_image
    q, k, v = (torch.cat([x[:, :, :num][:, :, image], x[:, :, num:][:, :, text]], 2) for x in inputs(case))
    rows = seam(q, k, v).transpose(1, 2).flatten(2)[:, : image.stop - image.start]
    return distance(seam.join(rows), case)


def rank(index: int, num_ranks: int, name: str, folder: Path) -> None:
    """One GPU of a pod: ``(found, control)`` for each width and case, to a file."""
    torch.cuda.set_device(index)
    told = folder / "port"
    if index == 0:
        store, port = open_store("127.0.0.1", TIMEOUT)
        (folder / "partial").write_text(str(port))
        (folder / "partial").rename(told)
    else:
        while not told.exists():
            time.sleep(0.05)
        store = join_store("127.0.0.1", int(told.read_text()), TIMEOUT)
    groups = Groups(store, index, num_ranks, torch.device("cuda", index), TIMEOUT)
    exchange = backends.make(name, groups)
    found = {}
    for width in (1, 2, 4, 2, 1):
        for case in allowed(name, width) if index < width <= num_ranks else ():
            pair = attended(groups, width, case, exchange), attended(groups, width, case, None)
            found[width, case] = max(pair[0], found.get((width, case), pair)[0]), pair[1]
    torch.save(found, folder / f"{index}.pt")
    torch.cuda.synchronize()
    groups.close()


def allowed(name: str, width: int) -> list[Case]:
    def mistakes(case: Case) -> list[str]:
        tokens = [case.num_image + case.num_text]
        return backends.mistakes(name, heads=case.heads, num_tokens=tokens, degree=width, device_type="cuda")

    return [case for case in CASES if not mistakes(case)]


@pytest.mark.parametrize("num_ranks", [2, 4])
@pytest.mark.parametrize("name", backends.names())
def test_all_ranks_find_what_one_gpu_finds_and_the_control_does_not(name: str, num_ranks: int, tmp_path: Path) -> None:
    if num_ranks > NUM_GPUS:
        pytest.skip(f"needs {num_ranks} GPUs, there are {NUM_GPUS}")
    if (problem := backends.missing(name)) is not None:
        pytest.skip(f"{name}: {problem}")
    multiprocessing.spawn(rank, (num_ranks, name, tmp_path), nprocs=num_ranks)
    for index in range(num_ranks):
        answers = torch.load(tmp_path / f"{index}.pt", weights_only=False)
        assert {width for width, _ in answers} == {width for width in (1, 2, 4) if index < width <= num_ranks}
        for (width, case), (found, control) in answers.items():
            assert found < CLOSE, (width, case)
            assert width == 1 or control > APART, (width, case)
