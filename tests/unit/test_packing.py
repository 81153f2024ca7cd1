"""Whether a crew fits the nodes of a cluster, and the numbers behind a refusal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster import Cluster
from orchestrator.cluster_config import ClusterConfig
from orchestrator.crew import Crew
from orchestrator.packing import Node, Wish, left_over, refusal
from orchestrator.pods import ClipWorkshop

POD = Wish("pod", {"CPU": 1.0, "GPU": 1.0}, 8, frozenset({"heavy"}))
SKETCH = Wish("sketch", {"CPU": 1.0, "GPU": 1.0}, 1, frozenset({"sketch"}))


def node(num_cpus: float, num_gpus: float = 0, role: str = "") -> Node:
    return Node({"CPU": num_cpus, "GPU": num_gpus}, role)


def crew(config: ClusterConfig, *nodes: Node) -> Crew:
    num_cpus, num_gpus = (sum(each.resources[name] for each in nodes) for name in ("CPU", "GPU"))
    return Crew(Cluster("here", True, num_cpus, num_gpus, any(each.role for each in nodes), nodes), config, ClipWorkshop({}))


def test_a_pod_needs_one_node_however_much_there_is_in_all() -> None:
    assert left_over([node(64, 4, "heavy")] * 3, [POD]) == [POD]
    assert left_over([node(64, 8, "heavy")], [POD, POD]) == [POD]
    assert left_over([node(64, 8, "heavy")] * 2, [POD, POD]) == []


def test_who_asks_for_a_role_takes_no_other_node() -> None:
    nodes = [node(64, 8, "heavy"), node(8, 1, "sketch")]
    assert left_over(nodes, [SKETCH, SKETCH]) == [SKETCH]
    assert left_over([node(64, 8)], [POD]) == [POD]


def test_small_wishes_take_the_fullest_node_so_that_a_whole_one_stays_free_for_a_pod() -> None:
    one = Wish("sketch", {"GPU": 1.0})
    assert left_over([node(8, 8), node(8, 2)], [one, one, Wish("pod", {"GPU": 1.0}, 8)]) == []


@given(
    st.lists(st.tuples(st.integers(1, 8), st.integers(1, 4)), max_size=12), st.lists(st.integers(1, 16), min_size=1, max_size=6)
)
def test_nothing_is_given_twice(wishes: list[tuple[int, int]], sizes: list[int]) -> None:
    asked = [Wish("pod", {"CPU": float(cpus)}, number) for cpus, number in wishes]
    refused = left_over([node(size) for size in sizes], asked)
    given_cpus = sum(wish.total()["CPU"] for wish in asked) - sum(wish.total()["CPU"] for wish in refused)
    assert 0 <= given_cpus <= sum(sizes)


def test_a_refusal_says_what_was_asked_and_what_there_is() -> None:
    told = refusal([node(4), node(60, 7, "heavy")], POD, [SKETCH])
    assert told.startswith("no single node offered 8 x {'CPU': 1.0, 'GPU': 1.0} for a heavy pod beside sketch workers of 1 x ")
    assert told.endswith("the cluster has 64 CPUs and 7 GPUs in all")


def test_a_cluster_of_our_own_is_refused_only_when_not_even_one_pod_fits() -> None:
    gpus = ClusterConfig(gpus_per_rank=1, heavy_ranks=4, pods=3)
    assert crew(gpus, node(16, 4)).refusal() is None
    assert "offered 4 x " in str(crew(gpus, node(16, 3)).refusal())
    beside = crew(ClusterConfig(gpus_per_rank=1, heavy_ranks=4, gpus_per_sketch=1), node(16, 4)).refusal()
    assert "beside sketch workers of 1 x {'CPU': 1.0, 'GPU': 1.0}" in str(beside)


def test_actors_ask_for_a_whole_cpu_wherever_nodes_have_them_or_are_still_to_come() -> None:
    roomy = [node(4, role="sketch"), node(2, role="heavy"), node(2, role="heavy")]
    assert crew(ClusterConfig(pods=2), *roomy).needs("pod") == {"CPU": 1.0}
    assert crew(ClusterConfig(pods=2), node(0, role="head"), node(0, role="head")).needs("pod") == {"CPU": 1.0}
    assert crew(ClusterConfig(), node(0, role="head")).needs("pod") == {"CPU": 1.0}
    assert crew(ClusterConfig(pods=2), node(1, role="sketch"), node(1, role="heavy")).needs("pod") == {"CPU": 0.25}


@pytest.mark.parametrize("pods, most", [(1, 1), (2, 2), (2, 5)])
def test_the_first_pods_are_asked_for_at_once_and_before_anybody_else(pods: int, most: int) -> None:
    slots = crew(ClusterConfig(pods=pods, max_pods=most), node(64)).slots()
    assert slots[:pods] == [("pod", slot) for slot in range(pods)]
    assert {kind for kind, _ in slots[pods:]} == {"sketch", "decode"}
