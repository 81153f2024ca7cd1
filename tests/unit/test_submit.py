"""What ``dvg submit`` sends, refuses and follows, without a cluster."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import following
from orchestrator.cli_cluster import SubmitOptions, prepare, run_submit, running_twin, the_job
from orchestrator.following import Follower
from orchestrator.head import Dropped, address_of
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.submission import EXCLUDES, Submission, command_line, exit_code, sweep_line

SPEC = {"name": "tiny", "prompts": ["a red circle"], "planner": "full"}
WORDS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=30)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(spec: dict[str, Any] | None = None, *overrides: str, out: str = "/shared/run", **options: Any) -> Submission:
    path = Path("spec.yaml")
    if spec is not None:
        path.write_text(yaml.safe_dump({**SPEC, **spec}))
    return prepare(path, overrides, SubmitOptions("http://127.0.0.1:8265", out, **options))[0]


def refusal(spec: dict[str, Any] | None = None, *overrides: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        prepared(spec, *overrides, **options)
    return str(refused.value)


@settings(deadline=None)
@given(spec=WORDS, overrides=st.lists(WORDS, max_size=3), out=WORDS)
def test_a_shell_reads_every_word_of_the_entry_point_as_it_was_given(spec: str, overrides: list[str], out: str) -> None:
    line = sweep_line(spec, overrides, out)
    assert shlex.split(line) == ["dvg", "sweep", f"./{spec}" if spec.startswith("-") else spec, *overrides, "--out", out]


def test_a_real_shell_runs_nothing_that_an_override_or_a_name_holds(tmp_path: Path) -> None:
    hostile = [f'prompts=["; touch {tmp_path}/one $(touch {tmp_path}/two) `touch {tmp_path}/three` \n & \'x"]', "-rf", "~", "*"]
    line = sweep_line("a; b.yaml", hostile, "/o u t")
    told = subprocess.run(line.replace("dvg", "printf '%s\\0'", 1), shell=True, capture_output=True, text=True, check=True)
    assert told.stdout.split("\0")[:-1] == ["sweep", "a; b.yaml", *hostile, "--out", "/o u t"]
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None)
@given(name=WORDS, out=WORDS)
def test_the_printed_line_says_the_same_as_what_is_sent(name: str, out: str) -> None:
    job = Submission(name, PurePosixPath("s.yaml"), ("a=b c",), out, Path("/p"), "d", 90, "tag")
    words = shlex.split(command_line(job, "http://127.0.0.1:8265", {"RAY_AUTH_MODE": "token"}))
    assert words[:4] == ["RAY_AUTH_MODE=token", "ray", "job", "submit"]
    options = dict(zip(words[4::2], words[5::2], strict=False))
    sent = json.loads(options["--runtime-env-json"])
    assert sent | {"working_dir": "/p"} == job.runtime_env
    assert json.loads(options["--metadata-json"]) == job.metadata
    assert shlex.join(words[words.index("--") + 1 :]) == job.entrypoint
    assert options["--submission-id"] == job.job_id


@settings(deadline=None)
@given(name=WORDS)
def test_a_job_id_is_one_safe_word_whatever_the_sweep_is_called(name: str) -> None:
    job_id = Submission(name, PurePosixPath("s"), (), "/o", Path("/p"), "d", tag="0a1b").job_id
    assert job_id.startswith("dvg-")
    assert not set(job_id) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.=+-")
    assert len(job_id) < 150


def test_the_job_has_its_grace_period_before_it_is_killed(folder: Path) -> None:
    assert prepared({"cluster": {"grace_s": 45}}).environment == {"RAY_JOB_STOP_WAIT_TIME_S": "75"}


def test_a_name_given_to_submit_is_the_sweeps_own(folder: Path) -> None:
    job = prepared(name="other")
    assert (job.name, job.metadata["dvg_sweep"]) == ("other", "other")
    assert "name=other" in shlex.split(job.entrypoint)


@pytest.mark.parametrize("out", ["run", "./run", "../run", "", "~/run"])
def test_a_relative_out_is_refused_with_the_reason(folder: Path, out: str) -> None:
    assert "thrown away" in refusal(out=out)


def test_options_of_the_sweep_are_passed_on_and_its_working_folder_must_stay_too(folder: Path) -> None:
    job = prepared(out="s3://bucket/run", work="/shared/work", limit=3, force=True)
    assert shlex.split(job.entrypoint)[-5:] == ["--work", "/shared/work", "--limit", "3", "--force"]
    assert "--work 'work' must be an absolute path" in refusal(out="s3://bucket/run", work="work")
    assert "--work" in refusal(work="s3://bucket/work")


def test_a_password_is_never_sent(folder: Path) -> None:
    told = refusal({"tracking": {"uri": "http://me:hunter2@mlflow"}}, out="s3://key:hunter2@bucket/run")
    assert "hunter2" not in told
    assert "environment" in told
    assert "hunter2" not in refusal(None, "tracking.uri=http://me:hunter2@mlflow")
    prepared({"prompts": ["http://me:hunter2@place on a sign"]})


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"prompts": "missing.txt"}, "'missing.txt' does not exist"),
        ({"prompts": "../outside.txt"}, "outside the working folder"),
        ({"prompts": "runs/ignored.txt"}, "left out by"),
        ({"weights": "ignored/weights"}, "left out by"),
        ({"arms": {"a": {"image": "missing.png"}}}, "arms.a.image: 'missing.png' does not exist"),
        ({"prompts": [{"prompt": "x", "image": "gone.png"}]}, "'gone.png' does not exist"),
        ({"lora": ["missing.safetensors"]}, "lora: 'missing.safetensors' does not exist"),
        ({"sweep": {"calibration": ["missing.json"]}}, "sweep.calibration: 'missing.json' does not exist"),
        ({"cluster": {"address": "10.0.0.1:6379"}}, "cluster.address"),
    ],
)
def test_files_that_the_job_will_not_have_are_refused_by_name(folder: Path, settings: dict[str, Any], told: str) -> None:
    (folder.parent / "outside.txt").write_text("a prompt")
    for name in ("runs/ignored.txt", "ignored/weights/model.bin"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("a prompt")
    (folder / ".gitignore").write_text("/ignored/\n")
    assert told in refusal(settings)


def test_an_absolute_path_of_this_machine_inside_the_folder_is_refused_and_others_are_told(folder: Path) -> None:
    (folder / "p.txt").write_text("a red circle")
    assert "write 'p.txt'" in refusal({"prompts": str(folder / "p.txt")})
    Path("spec.yaml").write_text(yaml.safe_dump({**SPEC, "weights": "/shared/wan", "lora": ["org/adapter"]}))
    _, outside = prepare(Path("spec.yaml"), [], SubmitOptions("http://127.0.0.1:8265", "/shared/run"))
    assert outside == ["weights: /shared/wan"]


def test_files_beside_the_spec_and_repositories_of_the_hub_are_found(folder: Path) -> None:
    specs = folder / "specs"
    specs.mkdir()
    (specs / "p.txt").write_text("a red circle")
    (specs / "s.yaml").write_text(yaml.safe_dump({**SPEC, "prompts": "p.txt", "weights": "org/name@main"}))
    job, outside = prepare(specs / "s.yaml", [], SubmitOptions("http://127.0.0.1:8265", "s3://bucket/run"))
    assert (str(job.spec), outside) == ("specs/s.yaml", [])


def test_a_folder_beyond_rays_limit_is_refused_with_its_largest_parts(folder: Path) -> None:
    (folder / "weights").mkdir()
    for name, mib in {"weights/big.bin": 500, "other.bin": 20, "runs": 0}.items():
        if mib:
            with (folder / name).open("wb") as file:
                file.truncate(mib * 2**20)
    told = refusal()
    assert "weights (500 MiB), other.bin (20 MiB)" in told
    (folder / ".rayignore").write_text("weights\n")
    prepared()


def test_our_own_results_and_environments_stay_here(folder: Path) -> None:
    from orchestrator.carried import carried

    for name in EXCLUDES[:4]:
        (folder / name).mkdir()
        (folder / name / "x").write_text("x")
    assert set(carried(folder).sizes) == {"spec.yaml"}


def test_a_dry_run_prints_the_line_alone_and_ray_says_nothing_before_it(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import logging

    (folder / ".gitignore").write_text("weights\n")
    handler, ray = logging.StreamHandler(), logging.getLogger("ray")
    usual = ray.level
    ray.addHandler(handler)
    ray.setLevel(logging.INFO)
    logging.getLogger("ray._private.runtime_env.packaging").setLevel(logging.NOTSET)
    try:
        code = run_submit(Path("spec.yaml"), (), SubmitOptions("http://127.0.0.1:8265", "/shared/run", dry_run=True))
    finally:
        ray.removeHandler(handler)
        ray.setLevel(usual)
    told = capfd.readouterr()
    assert code == 0
    assert told.out.startswith("RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 ")
    assert told.out.count("\n") == 1
    assert told.err == f"in {folder}:\n"


def test_a_spec_outside_the_folder_or_misspelt_is_refused(folder: Path) -> None:
    assert "outside the working folder" in refusal(working_dir=folder / "sub")
    assert "did you mean 'planner'" in refusal({"planer": "full"})


@pytest.mark.parametrize("address", ["127.0.0.1:8265", "ray://h:1", "http://u:hunter2@h:1", "http://h:1/x"])
def test_an_address_that_is_not_a_dashboards_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(ConfigError, match="dashboard") as refused:
        address_of(address)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "status, code, ends",
    [("SUCCEEDED", 0, 0), ("FAILED", 1, 1), ("FAILED", 3, 3), ("FAILED", 2, 2), ("FAILED", 137, 1), ("STOPPED", None, 130)],
)
def test_submit_exits_as_the_sweep_did(status: str, code: int | None, ends: int) -> None:
    assert exit_code(status, code) == ends


def ray_job(name: str, sweep: str | None, status: str = "RUNNING", **metadata: str) -> Any:
    told = {"dvg_sweep": sweep, **metadata} if sweep else metadata
    return SimpleNamespace(submission_id=name, status=status, metadata=told)


def test_the_same_sweep_is_followed_while_it_runs_and_another_one_is_kept_out_of_its_folder(folder: Path) -> None:
    job = prepared()
    same = SimpleNamespace(submission_id="one", status="RUNNING", metadata=job.metadata)
    assert running_twin([same], job) == "one"
    assert running_twin([SimpleNamespace(**{**vars(same), "status": "FAILED"})], job) is None
    assert running_twin([ray_job("two", "tiny", dvg_out="/shared/elsewhere")], job) is None
    with pytest.raises(ConfigError, match="dvg stop one"):
        running_twin([ray_job("one", "tiny", dvg_out=job.out, dvg_spec="changed")], job)


def test_stop_means_exactly_one_running_sweep() -> None:
    jobs = [ray_job("a1", "a"), ray_job("ab", "a-b"), ray_job("b1", "b"), ray_job("b2", "b"), ray_job("x", None)]
    jobs.append(ray_job("old", "old", "SUCCEEDED"))
    assert the_job(jobs, "a").submission_id == "a1"
    assert the_job(jobs, "b2").submission_id == "b2"
    for name in ("b", "x", "old", "a1x", ""):
        with pytest.raises(ConfigError):
            the_job(jobs, name)


class Flaky:
    """A head whose connection breaks after so many pieces of the log, each time anew."""

    address = "http://127.0.0.1:8265"

    def __init__(self, pieces: list[str], breaks: list[int | None], unreachable: int = 0) -> None:
        self.pieces, self.breaks, self.unreachable = pieces, breaks, unreachable
        self.ended = False

    def job(self, job_id: str) -> Any:
        if self.unreachable:
            self.unreachable -= 1
            raise Dropped("nobody there")
        return SimpleNamespace(status="SUCCEEDED" if self.ended else "RUNNING")

    async def log(self, job_id: str) -> AsyncIterator[str]:
        after = self.breaks.pop(0)
        for number, piece in enumerate(self.pieces):
            if number == after:
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield piece
        self.ended = True


@settings(deadline=None)
@given(
    pieces=st.lists(st.text(max_size=8), max_size=6),
    breaks=st.lists(st.integers(0, 5), max_size=4),
    unreachable=st.integers(0, 3),
)
def test_the_log_is_written_once_and_whole_wherever_the_connection_breaks(
    pieces: list[str], breaks: list[int], unreachable: int
) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(following, "RETRY_S", 0.0)
    written: list[str] = []
    follower = Follower(Flaky(pieces, [*breaks, None], unreachable), "job", written.append, lambda line: None)
    assert follower.follow().status == "SUCCEEDED"
    assert "".join(written) == "".join(pieces)
    patch.undo()


def test_a_lost_connection_is_told_once_and_a_lost_head_ends_the_following(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "RETRY_S", 0.0)
    told: list[str] = []
    Follower(Flaky(["x"], [0, 0, None], 3), "job", lambda text: None, told.append).follow()
    assert [line.split("(")[0].strip() for line in told] == ["connection to http://127.0.0.1:8265 lost", "connected again"]
    monkeypatch.setattr(following, "LOST_S", 0.0)
    with pytest.raises(RunError, match="the same command goes on"):
        Follower(Flaky(["x"], [None], 10**6), "job", lambda text: None, told.append).follow()
