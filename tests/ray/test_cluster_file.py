"""The two files that describe a cluster: what Ray accepts, roles that workers ask for, tokens, nothing open to the world."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.cluster_config import ClusterConfig
from orchestrator.crew import ROLES
from orchestrator.submission import STOP_MARGIN_S, sweep_line

ROOT = Path(__file__).parents[2]
FILE, JOB = ROOT / "ray_cluster.yaml", ROOT / "kuberay_rayjob.yaml"


def config() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


def rayjob() -> dict[str, Any]:
    return dict(yaml.safe_load(JOB.read_text()))


def rays_cluster() -> dict[str, Any]:
    return dict(rayjob()["spec"]["rayClusterSpec"])


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every group's name and the spec of its pods."""
    yield "head", rays_cluster()["headGroupSpec"]["template"]["spec"]
    for group in rays_cluster()["workerGroupSpecs"]:
        yield group["groupName"], group["template"]["spec"]


def documented(path: Path) -> ClusterConfig:
    """The cluster settings that the comment at the head of a file tells to write into the spec."""
    found = re.search(r"^# In the spec: (cluster: .*)$", path.read_text(), re.M)
    assert found, path
    return ClusterConfig.model_validate(yaml.safe_load(found[1])["cluster"])


def test_rays_own_validation_accepts_the_cluster_file() -> None:
    validate_config(prepare_config(config()))


@pytest.mark.parametrize("where, key", [("", "max_wrokers"), ("available_node_types.heavy", "min_worker"), ("docker", "imgae")])
def test_rays_own_validation_rejects_a_misspelt_key(where: str, key: str) -> None:
    wrong = copy.deepcopy(config())
    inner = wrong
    for name in filter(None, where.split(".")):
        inner = inner[name]
    inner[key] = 3
    with pytest.raises(jsonschema.ValidationError, match=key):
        validate_config(prepare_config(wrong))


def offered(groups: list[dict[str, Any]]) -> set[str]:
    return {group["labels"]["role"] for group in groups}


@pytest.mark.parametrize("path", [FILE, JOB], ids=lambda path: path.name)
def test_every_role_that_workers_ask_for_is_on_some_node(path: Path) -> None:
    types = list(config()["available_node_types"].values()) if path == FILE else rays_cluster()["workerGroupSpecs"]
    for selector in ROLES.values():
        choices = selector.removeprefix("in(").removesuffix(")").split(",")
        assert offered(types) & set(choices), selector


def test_the_head_takes_no_work() -> None:
    assert config()["available_node_types"]["head"]["resources"] == {"CPU": 0, "GPU": 0}
    assert rays_cluster()["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0", "num-gpus": "0"}


def gpus(pod: dict[str, Any]) -> int:
    limits = [container["resources"]["limits"].get("nvidia.com/gpu", "0") for container in pod["containers"]]
    return sum(map(int, limits))


def test_the_settings_told_in_each_file_fit_its_nodes() -> None:
    types = config()["available_node_types"]
    groups = {group["groupName"]: group for group in rays_cluster()["workerGroupSpecs"]}
    of_ray = {name: (row["resources"]["GPU"], row["max_workers"]) for name, row in types.items() if name != "head"}
    of_kube = {name: (gpus(group["template"]["spec"]), group["maxReplicas"]) for name, group in groups.items()}
    assert of_ray == of_kube
    for path, nodes in ((FILE, of_ray), (JOB, of_kube)):
        asked = documented(path)
        pods_of = {name: number for name, (num_gpus, number) in nodes.items() if num_gpus == asked.heavy_ranks}
        assert asked.most_pods <= sum(number for name, number in pods_of.items() if name.startswith("heavy"))
        others = asked.sketch_workers * asked.gpus_per_sketch + asked.decode_workers * asked.gpus_per_decode
        assert others <= nodes["sketch"][0]
    assert config()["max_workers"] >= sum(row.get("max_workers", 0) for row in types.values())


def test_the_guide_tells_the_settings_of_the_files() -> None:
    (block,) = re.findall(r"(?<=```yaml\n)[^`]+", (ROOT / "docs" / "cluster.md").read_text())
    told = ClusterConfig.model_validate(yaml.safe_load(block)["cluster"])
    assert told == documented(FILE) == documented(JOB)


def test_every_node_starts_ray_in_token_mode_with_its_dashboard_on_loopback() -> None:
    commands = [*config()["head_start_ray_commands"], *config()["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config()["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}


def test_every_worker_may_write_the_bucket_and_the_head_keeps_the_role_that_ray_makes() -> None:
    types = config()["available_node_types"]
    given = {name: row["node_config"].get("IamInstanceProfile") for name, row in types.items()}
    assert given.pop("head") is None
    assert given
    assert all(profile == {"Name": "dvg-nodes"} for profile in given.values()), given
    told = (ROOT / "docs" / "cluster.md").read_text()
    assert "instance profile `dvg-nodes`" in told
    assert "iam:PassRole" in told


def test_spot_nodes_are_asked_for_as_spot_and_are_heavy_nodes_otherwise() -> None:
    types = config()["available_node_types"]
    heavy, spot = types["heavy"], types["heavy-spot"]
    assert spot["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert spot["resources"] == heavy["resources"]
    assert spot["labels"] == heavy["labels"] | {"market": "spot"}


def test_the_rayjob_runs_the_very_line_that_submit_prints_and_names_rays_version() -> None:
    spec = rayjob()["spec"]
    assert (rayjob()["apiVersion"], rayjob()["kind"]) == ("ray.io/v1", "RayJob")
    assert spec["entrypoint"] == sweep_line("/etc/dvg/sweep.yaml", [], "/shared/runs/sweep")
    pinned = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned
    assert rays_cluster()["rayVersion"] == pinned[1]


def test_the_rayjob_has_tokens_grows_and_takes_its_cluster_down() -> None:
    spec, cluster = rayjob()["spec"], rays_cluster()
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"
    assert spec["shutdownAfterJobFinishes"] is True
    for group in cluster["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_a_pod_that_is_taken_away_has_longer_than_a_clips_grace_period() -> None:
    grace_s = ClusterConfig().grace_s
    stop_s = yaml.safe_load(rayjob()["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]
    assert int(stop_s) == grace_s + STOP_MARGIN_S
    for name, pod in pods():
        assert pod["terminationGracePeriodSeconds"] > grace_s + STOP_MARGIN_S, name


def test_workers_are_told_before_their_machine_is_taken_away() -> None:
    assert any("dvg notice --watch aws" in command for command in config()["worker_start_ray_commands"])
    for name, pod in pods():
        if name != "head":
            wait_s = int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][-1])
            assert ClusterConfig().grace_s < wait_s < pod["terminationGracePeriodSeconds"]


def test_every_pod_sees_the_folder_that_results_go_to_and_mounts_what_it_names() -> None:
    out = rayjob()["spec"]["entrypoint"].split()[-1]
    for name, pod in pods():
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            assert set(mounts.values()) <= volumes, name
            assert any(out.startswith(f"{path}/") for path in mounts), name
    head = dict(pods())["head"]["containers"][0]
    assert "/etc/dvg" in {mount["mountPath"] for mount in head["volumeMounts"]}


@pytest.mark.parametrize("path", [FILE, JOB], ids=lambda path: path.name)
def test_no_credential_and_no_port_of_the_world_is_in_a_cluster_file(path: Path) -> None:
    text = path.read_text()
    for told in ("0.0.0.0", "hostPort", "NodePort", "LoadBalancer", "hostNetwork", "privileged", "AWS_", "HF_TOKEN", "password"):
        assert told not in text
