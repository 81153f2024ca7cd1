"""The workers of a sweep: how many of each, on what, and how they share their work."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.options import AttentionName, Backend
from orchestrator.patience import PatienceConfig
from orchestrator.sizing import SizingConfig


class ClusterConfig(BaseModel):
    """The workers of a sweep. On a machine without GPUs all of them share its cores."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    sketch_workers: int = Field(1, ge=1)
    """Actors that encode text, run stage 1 and choose the action."""
    pods: int = Field(1, ge=1)
    """Heavy pods, each on one node."""
    max_pods: int | None = Field(None, ge=1)
    """Pods asked of a cluster that grows; the sweep starts with the first ``pods`` of them. None: as many as ``pods``."""
    heavy_ranks: int = Field(2, ge=1, le=8)
    """Ranks of a heavy pod, which runs every stage after the sketch."""
    decode_workers: int = Field(1, ge=1)
    """Actors that decode the latent and write the video."""
    num_threads: int | None = Field(None, ge=1)
    """Torch threads of a CPU worker; None: the cluster's cores shared out evenly, at least one each."""
    gpus_per_sketch: float = Field(0, ge=0)
    """GPUs that a sketch worker reserves; 0: CPU."""
    gpus_per_rank: float = Field(0, ge=0)
    """The same of a rank of a pod."""
    gpus_per_decode: float = Field(0, ge=0)
    """The same of a decode worker."""
    attention: AttentionName = "auto"
    """Attention kernel of a worker on a GPU; auto: the fastest there, measured when it starts."""
    compile: Literal["auto", True, False] = "auto"
    """Compile the transformer's repeated block; auto: on a GPU."""
    sizing: SizingConfig = SizingConfig()
    """How many of the pod's ranks a clip is given, stage by stage."""
    backend: Backend = "auto"
    """How the ranks of a slice share attention (see ``dvg doctor``); auto: the fastest that passes a trial on the pod."""
    decode_on: Literal["workers", "pod", "sketchers"] = "workers"
    """Where videos are decoded: on workers of their own, split over idle ranks of a pod, or by the sketch workers in between."""
    collective_timeout_s: float = Field(300, gt=0, allow_inf_nan=False)
    """How long a rank waits for the others of its slice before the slice is given up."""
    nvlink_multicast: bool = False
    """Let NCCL use NVLink multicast (NVLS), which some hosts grant and then stall on."""
    checkpoints: bool = True
    """Keep a clip's latent at every stage boundary until its video is there, so that it goes on from its last one."""
    grace_s: float = Field(90, ge=0, allow_inf_nan=False)
    """After a notice that a worker will be taken away: how long it may still finish what it does."""
    patience: PatienceConfig = PatienceConfig()
    """After which silence a worker is taken for hung."""
    price_per_gpu_hour: float | None = Field(None, ge=0, allow_inf_nan=False)
    """For ``dvg plan``, in whatever currency."""
    address: str | None = None
    """Address of a running Ray cluster; None: RAY_ADDRESS if set, otherwise a local cluster for this sweep alone."""

    @property
    def compile_blocks(self) -> bool | None:
        return None if self.compile == "auto" else self.compile

    @property
    def most_pods(self) -> int:
        return max(self.pods, self.max_pods or self.pods)
