"""Whether a sweep's workers fit a cluster's nodes and its GPUs' memory."""

from __future__ import annotations

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cluster_config import ClusterConfig
from orchestrator.machines import _alike, _node, machines_of_file
from orchestrator.mistakes import ConfigError
from orchestrator.placement import Machines, NodeType, most_pods, placement_mistakes
from orchestrator.residency import Held, memory_mistakes, rank_holds, sketcher_holds
from orchestrator.resolve_sizing import sizing_of
from tests.arms import ARM

ROOT = pathlib.Path(__file__).parents[2]
ON_GPUS = {"gpus_per_sketch": 1, "gpus_per_rank": 1, "gpus_per_decode": 1}


def gpus(**options):
    return ClusterConfig(**{**ON_GPUS, "heavy_ranks": 8, **options})


def cluster(*nodes, most=None):
    return Machines(nodes, "the cluster", most)


HEAVY = NodeType("heavy", 2, 192, 8, "heavy")
SKETCH = NodeType("sketch", 2, 48, 4, "sketch")


def test_pods_sketchers_and_decoders_find_nodes_of_their_roles():
    both = cluster(HEAVY, SKETCH)
    assert placement_mistakes(gpus(pods=2, sketch_workers=6, decode_workers=2), both) == []
    (told,) = placement_mistakes(gpus(pods=2, sketch_workers=7, decode_workers=2), both)
    assert told.startswith("1 of 2 decode workers (1 GPU each) find a place on nodes of role sketch or decode")


def test_a_pod_is_never_spread_over_nodes():
    (told,) = placement_mistakes(gpus(), cluster(NodeType("half", 4, 96, 4, "heavy"), SKETCH))
    assert "a pod is whole on one node, 8 x 1 GPU" in told
    assert "4 x half (4 GPUs)" in told


def test_every_pool_without_a_place_is_told_at_once():
    told = placement_mistakes(gpus(pods=3, sketch_workers=9), cluster(HEAVY, SKETCH))
    assert len(told) == 3
    assert told[0].startswith("2 of 3 pods")
    assert told[1].startswith("8 of 9 sketch")
    assert told[2].startswith("decode workers take 1 GPU each, and no node")


def test_nodes_with_roles_of_others_hold_nobody_else():
    told = placement_mistakes(gpus(), cluster(HEAVY))
    assert [line.split(" for ")[0] for line in told] == ["no node of role sketch", "no node of role sketch or decode"]


def test_without_roles_any_node_will_do_and_workers_share_it():
    one = cluster(NodeType("box", 1, 64, 8))
    assert placement_mistakes(gpus(heavy_ranks=4, sketch_workers=3), one) == []
    assert placement_mistakes(gpus(heavy_ranks=8), one)
    halves = gpus(heavy_ranks=4, sketch_workers=6, gpus_per_sketch=0.5)
    assert placement_mistakes(halves, one) == []


def test_a_machine_of_cpus_shares_its_cores_out_and_the_sweep_decodes_where_it_says():
    two_cores = cluster(NodeType("here", 1, 2))
    assert placement_mistakes(ClusterConfig(heavy_ranks=8, sketch_workers=3, decode_workers=3), two_cores) == []
    tight = cluster(HEAVY, NodeType("sketch", 1, 48, 1, "sketch"))
    assert placement_mistakes(gpus(), tight)
    assert placement_mistakes(gpus(decode_on="pod"), tight) == []


def test_nodes_in_use_are_filled_before_others_are_asked_for():
    apart = cluster(NodeType("small", 3, 16, 1), NodeType("big", 2, 64, 8), most=1)
    assert placement_mistakes(gpus(heavy_ranks=4, sketch_workers=3), apart) == []
    alone = cluster(NodeType("big", 1, 64, 8), NodeType("small", 2, 16, 1))
    assert placement_mistakes(gpus(heavy_ranks=4, sketch_workers=5), alone) == []


def test_processes_reserve_as_many_cpus_as_let_all_of_them_in():
    few = cluster(NodeType("heavy", 1, 2, 8, "heavy"), NodeType("sketch", 1, 8, 4, "sketch"))
    assert placement_mistakes(gpus(), few) == [], "a quarter of a CPU each"
    none = cluster(NodeType("heavy", 1, 0.05, 8, "heavy"), NodeType("sketch", 1, 8, 4, "sketch"))
    assert placement_mistakes(gpus(), none)


def test_a_thousand_pods_are_placed_in_no_time():
    many = cluster(NodeType("heavy", 1024, 192, 8, "heavy"), NodeType("sketch", 40, 48, 8, "sketch"))
    assert placement_mistakes(gpus(pods=1024, sketch_workers=200, decode_workers=100), many) == []
    assert len(placement_mistakes(gpus(pods=1025, sketch_workers=2000), many)) == 3


def test_more_nodes_than_may_be_up_at_once_are_told():
    config = gpus(pods=2, sketch_workers=8, decode_on="pod")
    assert placement_mistakes(config, cluster(HEAVY, SKETCH, most=4)) == []
    (told,) = placement_mistakes(config, cluster(HEAVY, SKETCH, most=3))
    assert "take 4 nodes, and the cluster allows 3" in told


@given(st.integers(1, 6), st.sampled_from([1, 2, 4, 8]), st.integers(1, 6), st.integers(1, 8))
def test_as_many_pods_fit_as_whole_slices_do(pods, ranks, number, size):
    nodes = cluster(NodeType("n", number, 64, size, "heavy"), NodeType("s", 1, 64, 2, "sketch"))
    config = gpus(pods=1, max_pods=pods, heavy_ranks=ranks)
    assert most_pods(config, nodes) == min(pods, number * (size // ranks))
    fits = placement_mistakes(config.model_copy(update={"pods": pods}), nodes) == []
    assert fits == (pods <= number * (size // ranks))


def test_the_shipped_cluster_file_holds_its_own_example():
    machines = machines_of_file(ROOT / "ray_cluster.yaml")
    assert placement_mistakes(gpus(sketch_workers=3), machines) == []
    assert placement_mistakes(gpus(pods=99), machines)


def test_a_cluster_file_says_how_many_of_each_node_may_come_and_of_the_head_there_is_one(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "max_workers: 3\nhead_node_type: head\navailable_node_types:\n"
        "  head: {resources: {CPU: 4}, max_workers: 0}\n"
        "  idle: {resources: {CPU: 0, GPU: 0}}\n"
        "  heavy: {resources: {CPU: 64, GPU: 8}, labels: {role: heavy}, max_workers: 9}\n"
        "  sketch: {resources: {CPU: 64, GPU: 4}, labels: {role: sketch}, max_workers: 2}\n"
    )
    machines = machines_of_file(path)
    counts = {node.name: (node.number, node.gpus, node.role) for node in machines.nodes}
    assert counts == {"head": (1, 0, None), "heavy": (3, 8, "heavy"), "sketch": (2, 4, "sketch")}
    assert machines.most_workers == 3


def test_a_running_node_says_its_role_its_gpus_and_their_memory():
    rows = [
        {"Resources": {"CPU": 96.0, "GPU": 8.0, "accelerator_type:H100": 1.0}, "Labels": {"role": "heavy"}},
        {"Resources": {"CPU": 96.0, "GPU": 8.0, "accelerator_type:H100": 1.0}, "Labels": {"role": "heavy"}},
        {"Resources": {"CPU": 4.0}},
    ]
    found = _alike(map(_node, rows))
    assert found == (NodeType("heavy node", 2, 96, 8, "heavy", 80.0), NodeType("plain node", 1, 4, 0, None, None))


def test_a_kuberay_manifest_is_read_as_a_cluster(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        """
kind: RayJob
spec:
  rayClusterSpec:
    workerGroupSpecs:
      - groupName: heavy
        maxReplicas: 3
        rayStartParams: {labels: "role=heavy,market=spot", num-cpus: "96"}
        template: {spec: {containers: [{resources: {limits: {cpu: "100", nvidia.com/gpu: 8}}}]}}
      - groupName: sketch
        replicas: 1
        labels: {role: sketch}
        template: {spec: {containers: [{resources: {requests: {cpu: 7500m, nvidia.com/gpu: "4"}}}]}}
"""
    )
    assert machines_of_file(path).nodes == (NodeType("heavy", 3, 96, 8, "heavy"), NodeType("sketch", 1, 7.5, 4, "sketch"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: [", "not valid YAML"),
        ("name: x", "describes no cluster"),
        ("available_node_types: {heavy: {node_config: {}}, sketch: {}}", "node type 'heavy' needs resources"),
        ("{kind: RayJob, spec: {}}", "without workerGroupSpecs"),
        (
            "{max_workers: lots, available_node_types: {}}",
            "^--cluster cluster.yaml: max_workers must be a whole number, not 'lots'$",
        ),
        ("available_node_types: {heavy: null}", "node type 'heavy' needs resources"),
        ("available_node_types: {heavy: 8}", "^--cluster cluster.yaml: node type 'heavy' must hold keys and values, not 8$"),
        (
            "available_node_types: {heavy: {resources: {CPU: 8}, max_workers: lots}}",
            "max_workers of 'heavy' must be a whole number",
        ),
        ("available_node_types: {heavy: {resources: {CPU: 8}, labels: x}}", "labels of 'heavy' must hold keys"),
        ("available_node_types: {heavy: {resources: {CPU: [8]}}}", "CPUs and GPUs of 'heavy' must be a number"),
        ("available_node_types: {heavy: {resources: {CPU: 1.2.3}}}", "CPUs and GPUs of 'heavy' must be a number"),
        ("{kind: RayJob, spec: hello}", "^--cluster cluster.yaml: spec must hold keys and values, not 'hello'$"),
        ("{kind: RayJob, spec: {rayClusterSpec: hello}}", "rayClusterSpec must hold"),
        ("{kind: RayCluster, spec: {workerGroupSpecs: hello}}", "workerGroupSpecs must be a list"),
        ("{kind: RayCluster, spec: {workerGroupSpecs: [hello]}}", "each of workerGroupSpecs must hold"),
        ("{kind: RayCluster, spec: {workerGroupSpecs: [{maxReplicas: lots}]}}", "maxReplicas must be a whole number, not 'lots'"),
        ("{kind: RayCluster, spec: {workerGroupSpecs: [{rayStartParams: 1}]}}", "rayStartParams must hold"),
        ("{kind: RayCluster, spec: {workerGroupSpecs: [{template: {spec: {containers: [x]}}}]}}", "each of containers must hold"),
    ],
)
def test_a_file_that_describes_no_cluster_is_refused(tmp_path, text, told):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told) as refused:
        machines_of_file(path)
    assert not any("\n" in mistake for mistake in refused.value.mistakes)
    with pytest.raises(ConfigError, match="cannot be read"):
        machines_of_file(tmp_path / "none.yaml")


def arm(model, name, **options):
    size = (
        {"num_frames": 121, "height": 480, "width": 848}
        if "hunyuan" in model
        else {"num_frames": 81, "height": 480, "width": 832}
    )
    return ARM.model_copy(update={"name": name, "model": model, **size, **options})


def test_models_stay_loaded_so_those_of_all_arms_add_up_and_arms_that_share_one_count_once():
    one, twin, other = arm("hunyuanvideo-1.5", "a"), arm("hunyuanvideo-1.5", "b", budget=0.4), arm("wan2.1-14b", "c")
    sizing = sizing_of([one, twin, other], gpus(heavy_ranks=1))
    alone, both = rank_holds([one], sizing), rank_holds([one, twin, other], sizing)
    assert rank_holds([one, twin], sizing).weights_gb == pytest.approx(alone.weights_gb)
    assert both.weights_gb == pytest.approx(alone.weights_gb + rank_holds([other], sizing).weights_gb)
    assert sketcher_holds([one, twin], {}).weights_gb == pytest.approx(16.65, abs=0.01)
    two_experts = sketcher_holds([arm("wan2.2-a14b", "d")], {}).weights_gb
    assert two_experts == pytest.approx(sketcher_holds([other], {}).weights_gb)


def test_what_does_not_fit_a_gpu_is_told_with_the_sum_and_cpus_are_not_looked_at():
    held, small = Held(60.0, 30.0), Held(10.0, 5.0)
    (told,) = memory_mistakes(gpus(), held, small, 80.0, 80.0)
    assert "60.0 GB of weights (every arm's models) + 30.0 GB of working memory = 90.0 GB, and its GPU has 80 GB" in told
    assert memory_mistakes(gpus(), held, small, 141.0, 80.0) == []
    assert "a sketch worker" in memory_mistakes(gpus(gpus_per_sketch=0.1), small, small, 141.0, 141.0)[0]
    assert memory_mistakes(gpus(gpus_per_rank=0), held, small, 80.0, None) == []
