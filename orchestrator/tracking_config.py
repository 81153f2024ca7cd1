"""The ``tracking:`` key of a spec: what of a run goes to MLflow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]


class TrackingConfig(BaseModel):
    """The MLflow mirror of ``records.jsonl``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    enabled: bool = True
    """False: nothing goes to MLflow."""
    uri: str | None = None
    """None: MLFLOW_TRACKING_URI if set, otherwise an sqlite file in the run folder."""
    experiment: str = "dvg"
    """MLflow's experiment that the runs are in."""
    per_prompt: Literal["auto", "runs", "steps"] = "auto"
    """What a prompt of an arm becomes: a run of its own, or a step of the arm's metrics; auto: runs for up to 1,000 prompts
    and seeds."""
    videos: Literal["auto", "none", "sample", "all"] | Count = "auto"
    """Whose videos are uploaded, of every arm: none, so many prompts, one in ten (sample), all; auto: all of up to 50 items,
    else a sample."""
    strips: Literal["none", "all"] | Count = 16
    """Prompts of which every arm gets a strip of keyframes as an image."""
    system_metrics: bool = True
    """CPU, memory, disk, network and GPUs of every node, under the sweep run."""
    traces: bool = False
    """One trace per video with a span per stage."""
