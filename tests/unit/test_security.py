"""Secrets stay in the environment, and what a person writes is data: never markup, a path or a command."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from orchestrator.arms import make_item
from orchestrator.config import build_sweep
from orchestrator.events import Failed
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError
from orchestrator.naming import Holding, holding
from orchestrator.paths import RunPaths, file_name
from orchestrator.progress import Progress
from tests.arms import ARM
from tests.fakerun import make_record

ROOT = Path(__file__).parents[2]
SECRET = "hunter2-a-secret"
SECRETS = {
    "HF_TOKEN": f"hf_{SECRET}",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "RAY_AUTH_TOKEN": f"ray-{SECRET}",
    "MLFLOW_TRACKING_PASSWORD": SECRET,
    "MLFLOW_TRACKING_URI": f"http://someone:{SECRET}@127.0.0.1:9",
    "DVG_TRACEBACK": "",
}
HOSTILE = [
    "../../etc/passwd",
    "/etc/passwd",
    "a\0b",
    "$(touch pwned) `touch pwned`; touch pwned & | > pwned",
    "line one\nline two\r\n\t",
    "long " * 2000,
    "名前 \u202e\u200b é 🎬",
    "CON",
    "..",
    "-rf",
    ".hidden",
    "[red]not red[/red] [/] [link=http://x]",
    "</title><script>alert(1)</script><img src=x onerror=alert(1)>",
    "{{ 7 * 7 }} {% raw %} %s %n {0}",
]
RUN = "run [red] [/x] $(touch pwned)"
PROMPTS = [" ".join(text for text in HOSTILE if "\0" not in text), "..", "-rf"]
TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=60))


def sweep(folder: Path, prompts: list[str], *overrides: str) -> subprocess.CompletedProcess[str]:
    """``dvg sweep --local`` in a process of its own, with secrets in its environment."""
    spec = {"name": "s", "prompts": prompts, "frames": 5, "height": 48, "width": 48, "steps": 4, "planner": "full"}
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    return dvg(folder, "sweep", "spec.yaml", *overrides, "--out", RUN, "--local")


def dvg(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    quick = {"PYTHONPATH": str(ROOT), "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}
    started = [sys.executable, "-m", "orchestrator", *command]
    return subprocess.run(started, cwd=folder, env=kept | SECRETS | quick, capture_output=True, text=True, check=False)


def holders(folder: Path) -> list[str]:
    """Files of a folder that hold the secret."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path.relative_to(folder)) for path in files if SECRET.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run of hostile prompts, and what it printed."""
    folder = tmp_path_factory.mktemp("hostile")
    done = sweep(folder, PROMPTS)
    assert done.returncode == 0, done.stdout + done.stderr
    mirrored = dvg(folder, "track", RUN, "--uri", f"sqlite:///{folder}/mlflow.db")
    assert mirrored.returncode == 0, mirrored.stdout + mirrored.stderr
    return folder, done.stdout + done.stderr + mirrored.stdout + mirrored.stderr


def test_no_secret_of_the_environment_is_in_a_run_in_mlflow_or_in_what_was_printed(finished: tuple[Path, str]) -> None:
    folder, told = finished
    assert holders(folder) == []
    assert SECRET not in told
    assert "***@" in told, "the server that cannot be reached was not named"
    assert (folder / "mlflow.db").stat().st_size > 0


def test_hostile_prompts_make_one_video_each_inside_the_run_folder_and_run_nothing(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} <= {"spec.yaml", Path(RUN).parts[0], "mlflow.db", "mlartifacts", "mlruns"}
    records = Ledger(RunPaths(folder / RUN)).records()
    assert {record.prompt for record in records} == set(PROMPTS)
    for record in records:
        assert re.fullmatch(r"videos/[\w.=+-]+/[\w.=+-]+/0\.mp4", record.video, re.A)
        assert (folder / RUN / record.video).is_file()
    assert not [path for path in folder.rglob("*") if path.name == "pwned"]


def test_the_report_of_hostile_prompts_holds_no_tag_of_theirs(finished: tuple[Path, str]) -> None:
    page = (finished[0] / RUN / "report.html").read_text()
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "{{ 7 * 7 }}" in page


@pytest.mark.parametrize(
    "override",
    [
        f"tracking.uri=http://me:{SECRET}@host",
        f"weights=https://me:{SECRET}@host/wan",
        f"arms.a.calibration=s3://key:{SECRET}@bucket/c.json",
        f"cluster.address=ray://me:{SECRET}@host",
        f"tracking.videos=http://me:{SECRET}@host",
    ],
)
def test_a_secret_in_a_spec_is_refused_without_being_repeated(tmp_path: Path, override: str) -> None:
    done = sweep(tmp_path, ["a red circle"], override)
    assert done.returncode == 2
    assert SECRET not in done.stdout + done.stderr
    assert holders(tmp_path) == []


@settings(deadline=None)
@given(arm=TEXTS, prompt_id=TEXTS, key=TEXTS)
def test_no_name_leads_out_of_the_run_folder(arm: str, prompt_id: str, key: str) -> None:
    paths = RunPaths(Path("/r"))
    for path in (paths.video(arm, prompt_id, 0), paths.staging(arm, prompt_id, 0, 1), paths.failure(key)):
        assert Path(os.path.normpath(path)) == path
        assert path.is_relative_to("/r")
        assert len(path.name.encode()) <= 255


@settings(deadline=None)
@given(prompt_id=TEXTS, prompt=TEXTS)
def test_a_spec_takes_a_prompt_whole_or_refuses_it_in_words(prompt_id: str, prompt: str) -> None:
    data = {"prompts": [{"prompt": prompt, "id": prompt_id}], "tracking": {"enabled": False}}
    try:
        (item,) = build_sweep(data, Path()).items
    except ConfigError:
        return
    assert item.prompt == prompt
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", item.prompt_id)


@settings(deadline=None)
@given(name=TEXTS)
def test_a_sweeps_name_is_one_line_that_is_one_folder(name: str) -> None:
    try:
        made = build_sweep({"name": name, "prompts": ["x"]}, Path())
    except ConfigError:
        return
    assert Path(made.name).name == made.name
    assert made.name.isprintable()
    assert len(made.name.encode()) <= 100


NUMBERS = st.integers(0, 99)
KINDS = st.sampled_from(["sketch", "pod", "decode"])


@settings(deadline=None)
@given(made=st.builds(Holding, st.text(min_size=1, max_size=30), KINDS, NUMBERS, NUMBERS, st.none() | NUMBERS))
def test_a_name_in_the_cluster_is_read_back_as_the_sweep_that_gave_it(made: Holding) -> None:
    assert holding(made.name) == made


@pytest.mark.parametrize("name", ["", None, "dvg-", "dvg-pod-0", "other-a-pod-0", "dvg-a-pod-x", "dvg-a-train-0", "xdvg-a-pod-0"])
def test_a_name_of_somebody_else_is_not_ours(name: str | None) -> None:
    assert holding(name) is None


@settings(deadline=None)
@given(text=TEXTS)
def test_the_console_shows_errors_as_they_are(text: str) -> None:
    screen = io.StringIO()
    progress = Progress(Console(file=screen, width=100_000, color_system=None), 2)
    progress.on_event(Failed(0.0, "key", 1, "refine", f"<{text}>", ""), [])
    progress.on_failure({"item_key": "key", "arm": "a", "prompt_id": "p", "seed": 0, "attempts": 1, "error": f"<{text}>"})
    shown = screen.getvalue()
    assert "".join(re.sub(r"\s|[\x00-\x1f]", "", shown).split()).count(re.sub(r"\s|[\x00-\x1f]", "", f"<{text}>")) >= 2


@settings(deadline=None)
@given(text=TEXTS)
def test_a_record_keeps_any_text_on_one_line(text: str) -> None:
    item = make_item(ARM, file_name(text), text, 0)
    row = json.dumps(vars(make_record(prompt=item.prompt, prompt_id=item.prompt_id)))
    assert len(row.splitlines()) == 1
    assert json.loads(row)["prompt"] == text
