"""What a run measured of its own forwards, as the cost that predictions rest on; and how busy the GPUs' driver says they are."""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Iterable, Iterator

import torch

from experiments.calibrate_fit import About, compose
from orchestrator.arms import Arm
from orchestrator.calibration import Calibration, StepRow, device_name
from orchestrator.cost import CostModel, num_branches
from orchestrator.geometry import model
from orchestrator.types import Grid

SAMPLE_S = 0.2


def fitted(arm: Arm, rows: Iterable[tuple[int, Grid, float]], transition_token_s: float) -> Calibration:
    """Of several slices of one width the mean counts, as each makes its share of the videos."""
    by_place: dict[tuple[int, Grid], list[float]] = {}
    for width, grid, seconds in rows:
        by_place.setdefault((width, grid), []).append(seconds)
    num_tokens = model(arm.model).num_tokens
    steps = [
        StepRow(grid=grid, tokens=num_tokens(grid), degree=width, backend="native", median_s=statistics.mean(seconds), repeats=3)
        for (width, grid), seconds in by_place.items()
    ]
    about = About(arm.model, device_name(), "", "auto", str(torch.__version__), True, "random", None, transition_token_s)
    return compose(steps, about)


def cost_of(calibration: Calibration, arm: Arm, decode_s: float) -> CostModel:
    return CostModel(
        label="calibrated",
        device=calibration.device,
        forwards=calibration.forwards(),
        num_branches=num_branches(model(arm.model), arm.guidance),
        transition_token_s=calibration.transition_token_s,
        decode_s=decode_s,
    )


@contextlib.contextmanager
def busy_gpus() -> Iterator[list[list[float]]]:
    """Rows of (time, percent busy of each GPU), filled while the block runs; none without NVIDIA's driver."""
    rows: list[list[float]] = []
    done = threading.Event()
    thread = threading.Thread(target=_sample, args=(rows, done), daemon=True)
    thread.start()
    try:
        yield rows
    finally:
        done.set()
        thread.join(timeout=5)


def _sample(rows: list[list[float]], done: threading.Event) -> None:
    try:
        import pynvml

        pynvml.nvmlInit()
        gpus = [pynvml.nvmlDeviceGetHandleByIndex(k) for k in range(pynvml.nvmlDeviceGetCount())]
    except Exception as error:  # noqa: BLE001 - a machine without such GPUs has no such figures, which the result then lacks
        print(f"no figures of the GPU's driver: {error}", flush=True)
        return
    while not done.wait(SAMPLE_S):
        rows.append([time.time(), *(float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu) for gpu in gpus)])
