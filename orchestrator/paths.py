"""Every file name of a run folder, and names that are safe as files."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

VIDEOS = "videos"


@dataclass(frozen=True)
class RunPaths:
    """The files of one run. ``root`` is made absolute, because workers have working folders of their own."""

    root: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root).absolute())

    @property
    def config(self) -> Path:
        return self.root / "config.resolved.yaml"

    @property
    def manifest(self) -> Path:
        return self.root / "manifest.json"

    @property
    def records(self) -> Path:
        return self.root / "records.jsonl"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def quality(self) -> Path:
        return self.root / "quality.jsonl"

    @property
    def summary(self) -> Path:
        return self.root / "summary.csv"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def sheet(self) -> Path:
        """The contact sheet."""
        return self.root / "sheet.png"

    @property
    def tracking(self) -> Path:
        return self.root / "tracking.json"

    @property
    def system(self) -> Path:
        """What the nodes were doing: one row per node and sample."""
        return self.root / "system.jsonl"

    @property
    def lock(self) -> Path:
        return self.root / ".lock"

    @property
    def tracking_lock(self) -> Path:
        """Held by the one process that writes the run to MLflow."""
        return self.root / ".tracking.lock"

    @property
    def owner(self) -> Path:
        """Who writes the run; see :mod:`orchestrator.ownership`."""
        return self.root / ".owner.json"

    @property
    def output(self) -> Path:
        """In a working folder: the URL that the run's files go to."""
        return self.root / ".output"

    @property
    def checkpoints(self) -> Path:
        """Latents of items at work, at their last stage boundary."""
        return self.root / "checkpoints"

    @property
    def superseded(self) -> Path:
        """What ``--force`` set aside."""
        return self.root / "superseded"

    @property
    def mlflow_uri(self) -> str:
        """Where runs are tracked when no other place is given."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    @property
    def mlflow_artifacts(self) -> Path:
        """Where MLflow puts artifacts when it tracks into the run folder."""
        return self.root / "mlartifacts"

    @property
    def failures(self) -> Path:
        return self.root / "failures"

    def failure(self, item_key: str) -> Path:
        return self.failures / f"{file_name(item_key)}.failure.json"

    @property
    def videos(self) -> Path:
        return self.root / VIDEOS

    @property
    def vbench(self) -> Path:
        """Scores, by suite and arm."""
        return self.root / "vbench"

    def vbench_suite(self, suite: str) -> Path:
        """What the suite is: its list's digest and counts."""
        return self.vbench / file_name(suite) / "suite.json"

    def vbench_arm(self, suite: str, arm: str) -> Path:
        """One arm's view, shards and results under one suite."""
        return self.vbench / file_name(suite) / file_name(arm)

    def vbench_view(self, suite: str, arm: str) -> Path:
        """Links to the arm's videos under the benchmark's names, and nothing else."""
        return self.vbench_arm(suite, arm) / "view"

    def vbench_results(self, suite: str, arm: str) -> Path:
        return self.vbench_arm(suite, arm) / f"{file_name(arm)}_eval_results.json"

    def video(self, arm: str, prompt_id: str, seed: int) -> Path:
        return self.root / video_name(arm, prompt_id, seed)

    def sidecar(self, arm: str, prompt_id: str, seed: int) -> Path:
        """The video's record, written before the video appears."""
        return self.root / sidecar_name(arm, prompt_id, seed)

    def staging(self, arm: str, prompt_id: str, seed: int, attempt: int) -> Path:
        """Where one attempt writes its video; a late earlier attempt can never touch a later one's file."""
        return self.root / staging_name(arm, prompt_id, seed, attempt)

    def is_draft(self, name: str, seed: int) -> bool:
        """Whether a file beside a video is an unfinished one of it; an encoder's own carry a second dot."""
        return name.startswith((f".{seed}.", f"..{seed}."))

    def relative(self, path: Path) -> str:
        """``path`` as it is written in records: relative to the run folder, with forward slashes."""
        return path.relative_to(self.root).as_posix()


def video_name(arm: str, prompt_id: str, seed: int) -> str:
    """As records and stores name it: relative to the run folder, with forward slashes. The next two likewise."""
    return _beside(arm, prompt_id, f"{seed}.mp4")


def sidecar_name(arm: str, prompt_id: str, seed: int) -> str:
    return _beside(arm, prompt_id, f"{seed}.json")


def staging_name(arm: str, prompt_id: str, seed: int, attempt: int) -> str:
    return _beside(arm, prompt_id, f".{seed}.{attempt}.mp4")


def _beside(arm: str, prompt_id: str, name: str) -> str:
    return f"{VIDEOS}/{file_name(arm)}/{file_name(prompt_id)}/{name}"


def file_name(text: str) -> str:
    """``text`` itself where it is safe as one file name, else a slug with a hash of the whole text."""
    if re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,99}", text):
        return text
    return slug(text)


def slug(text: str, max_chars: int = 40) -> str:
    """Lower-case words joined by dashes and eight hex digits of the text's hash: readable, safe and unique."""
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:max_chars].strip("-")
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{words}-{digest}" if words else digest
