"""Dense attention and each query's sum of weights: the reference on a CPU, and which kernel a GPU is asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from stages.sparse import dense
from stages.sparse.dense import dense_with_sums


@pytest.mark.parametrize("num_tokens", [1, 90, 300])
def test_on_a_cpu_it_is_attention_as_defined(num_tokens: int) -> None:
    q, k, v = torch.randn(3, 1, 2, num_tokens, 16, generator=torch.Generator().manual_seed(0))
    found, sums = dense_with_sums(q, k, v)
    scores = q @ k.transpose(2, 3) / 4
    torch.testing.assert_close(found, torch.softmax(scores, dim=-1) @ v)
    torch.testing.assert_close(sums, scores.logsumexp(-1))


USABLE = {
    "both": (64, True, True, "cudnn"),
    "flash": (64, False, True, "flash"),
    "a width that flash does not take": (60, False, True, "pattern"),
    "none": (64, False, False, "pattern"),
}


@pytest.mark.parametrize(("head_dim", "has_cudnn", "has_flash", "expected"), USABLE.values(), ids=USABLE)
def test_on_a_gpu_it_is_the_faster_kernel_that_takes_the_tensors(
    head_dim: int, has_cudnn: bool, has_flash: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On tensors that have no values; their shapes are those that torch's kernels give."""
    asked: list[str] = []

    def noted(name: str, kernel: Callable[..., object]) -> Callable[..., object]:
        def run(*given: Tensor) -> object:
            asked.append(name)
            return kernel(*given)

        return run

    monkeypatch.setattr(torch.backends.cuda, "can_use_cudnn_attention", lambda asked: has_cudnn)
    monkeypatch.setattr(torch.backends.cuda, "can_use_flash_attention", lambda asked: has_flash)
    monkeypatch.setattr(dense, "_cudnn", noted("cudnn", dense._cudnn))
    monkeypatch.setattr(dense, "_flash", noted("flash", dense._flash))
    monkeypatch.setattr(
        dense, "_by_pattern", noted("pattern", lambda q, k, v: (q, q.new_empty(q.shape[:3], dtype=torch.float32)))
    )
    with FakeTensorMode():
        q, k, v = (torch.empty(1, 3, 200, head_dim, dtype=torch.bfloat16, device="cuda") for _ in range(3))
        found, sums = dense_with_sums(q, k, v)
    assert asked == [expected]
    assert (found.shape, sums.shape, sums.dtype) == (q.shape, (1, 3, 200), torch.float32)
