"""What is decided before Ray runs: authentication, loopback, devices, shares of a machine, who goes where."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster import Cluster, missing_environment
from orchestrator.cluster_config import ClusterConfig
from orchestrator.crew import Crew, environment
from orchestrator.pods import ClipWorkshop, device_of, interface_of
from parallel.groups import aligned_ranks


def crew(config: ClusterConfig, num_cpus: float = 2) -> Crew:
    return Crew(Cluster("here", True, num_cpus, 0, False), config, ClipWorkshop({}))


def test_a_cluster_of_our_own_gets_a_fresh_token_and_loopback(tmp_path: Path) -> None:
    first, second = (missing_environment({}, joining=False, home=tmp_path) for _ in range(2))
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) >= 32
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    assert first["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert list(tmp_path.iterdir()) == []


def test_no_setting_opens_a_cluster_of_our_own_to_the_network(tmp_path: Path) -> None:
    opened = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}
    assert missing_environment(opened, joining=False, home=tmp_path)["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"


def test_a_joined_cluster_decides_the_mode_and_gets_no_loopback(tmp_path: Path) -> None:
    assert missing_environment({}, joining=True, home=tmp_path) == {"RAY_AUTH_MODE": "disabled"}
    assert missing_environment({"RAY_AUTH_TOKEN": "x"}, joining=True, home=tmp_path) == {"RAY_AUTH_MODE": "token"}
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("x")
    assert missing_environment({}, joining=True, home=tmp_path) == {"RAY_AUTH_MODE": "token"}


@pytest.mark.parametrize("joining", [True, False])
@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_a_mode_that_is_set_is_left_alone(tmp_path: Path, mode: str, joining: bool) -> None:
    missing = missing_environment({"RAY_AUTH_MODE": mode}, joining, home=tmp_path)
    assert not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"} & missing.keys()


def test_a_gpu_is_found_among_the_visible_ones() -> None:
    assert device_of([], None) == "cpu"
    assert device_of(["3"], None) == "cuda:3"
    assert device_of(["6"], "4,6") == "cuda:1"
    assert device_of(["GPU-b"], "GPU-a, GPU-b") == "cuda:1"
    with pytest.raises(ValueError, match=r"GPU 7 .* CUDA_VISIBLE_DEVICES=4,6"):
        device_of(["7"], "4,6")


def test_gpu_actors_see_all_gpus_and_cpu_actors_none() -> None:
    assert environment(1, 4)["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in environment(1, 4)
    assert environment(0, 4)["CUDA_VISIBLE_DEVICES"] == ""
    assert environment(0, 4)["OMP_NUM_THREADS"] == "4"


def test_nvlink_multicast_is_off_unless_it_is_asked_for() -> None:
    assert environment(1, 4)["NCCL_NVLS_ENABLE"] == "0"
    assert environment(1, 4)["TORCH_SYMM_MEM_DISABLE_MULTICAST"] == "1"
    assert not {"NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST"} & environment(1, 4, nvlink_multicast=True).keys()
    assert "NCCL_NVLS_ENABLE" not in environment(0, 4)


def test_a_pod_that_decodes_loads_the_vae_and_takes_the_place_of_the_decode_workers() -> None:
    apart, together = crew(ClusterConfig()), crew(ClusterConfig(decode_on="pod"))
    assert apart.parts("pod") == {"transformer"}
    assert together.parts("pod") == {"transformer", "vae"}
    assert {kind for kind, _ in together.slots()} == {"sketch", "pod"}
    assert together.num_actors == apart.num_actors - 1
    shared = crew(ClusterConfig(decode_on="sketchers"))
    assert (shared.parts("sketch"), shared.parts("pod")) == ({"text", "transformer", "vae"}, {"transformer"})
    assert shared.slots() == together.slots()


@given(st.integers(1, 9))
def test_groups_are_aligned_nested_and_in_one_order(num_ranks: int) -> None:
    slices = aligned_ranks(num_ranks)
    for piece in slices:
        assert len(piece) >= 2
        assert piece.start % len(piece) == 0
        assert piece.stop <= num_ranks
    assert [len(piece) for piece in slices] == sorted(len(piece) for piece in slices)
    if num_ranks in (2, 4, 8):
        assert range(num_ranks) in slices
        assert len(slices) == num_ranks - 1


@given(
    st.builds(ClusterConfig, sketch_workers=st.integers(1, 9), heavy_ranks=st.integers(1, 8), decode_workers=st.integers(1, 9)),
    st.integers(1, 64),
)
def test_a_full_crew_always_fits_the_cpus_and_threads_do_not_outnumber_them_needlessly(
    config: ClusterConfig, num_cpus: int
) -> None:
    made = crew(config, num_cpus)
    numbers = {"sketch": config.sketch_workers, "pod": config.heavy_ranks, "decode": config.decode_workers}
    assert sum(number * made.needs(kind)["CPU"] for kind, number in numbers.items()) <= num_cpus + 1e-9
    assert made.num_threads == 1 or made.num_threads * made.num_actors <= num_cpus
    assert sorted({kind for kind, _ in made.slots()}) == ["decode", "pod", "sketch"]


def test_gpus_are_reserved_by_kind_as_configured() -> None:
    made = crew(ClusterConfig(gpus_per_rank=1, gpus_per_sketch=0.5))
    assert made.needs("pod")["GPU"] == 1
    assert made.needs("sketch")["GPU"] == 0.5
    assert "GPU" not in made.needs("decode")
    assert crew(ClusterConfig(num_threads=7)).num_threads == 7


def test_the_loopback_interface_is_found_by_its_address() -> None:
    assert interface_of("127.0.0.1").startswith("lo")
    with pytest.raises(RuntimeError, match=r"no network interface has address 203\.0\.113\.9; there are: .*127\.0\.0\.1"):
        interface_of("203.0.113.9")
