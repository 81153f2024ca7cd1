"""Starts a Ray cluster for one sweep on this machine alone, or joins one that is running.

Ray is imported inside functions throughout the Ray shell: it reads its environment when it is imported, and what must be
set differs between starting and joining.
"""

from __future__ import annotations

import gc
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from orchestrator.mistakes import RunError
from orchestrator.packing import Node

OBJECT_STORE_BYTES = 256 * 2**20
"""Shared memory of a local cluster: a boundary is at most some tens of MB, and only a few live at once."""

LOOPBACK_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""The one switch that puts every socket on 127.0.0.1 when it is "0"; a cluster of ours never runs without."""

LOCAL_ENVIRONMENT = {
    LOOPBACK_SWITCH: "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # leaves CUDA_VISIBLE_DEVICES to us, and silences the notice about it
    "RAY_prestart_worker_first_driver": "0",  # a process for every core, which no actor with an environment of its own can use
}


@dataclass(frozen=True)
class Cluster:
    """A connection to Ray. ``owned``: this process started it and ends it."""

    address: str
    owned: bool
    num_cpus: float
    num_gpus: float
    uses_roles: bool
    """Nodes carry a ``role`` label (ray_cluster.yaml), so workers ask for theirs."""
    alive: tuple[Node, ...] = ()
    """The nodes there were at the start."""

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes there were at the start; unknown, one with everything."""
        return self.alive or (Node({"CPU": self.num_cpus, "GPU": self.num_gpus}),)

    def look_again(self) -> tuple[Node, ...]:
        """The nodes there are now."""
        return nodes_alive()

    def leave(self) -> None:
        """Disconnect; end the cluster if it is ours. Other drivers of a joined cluster notice nothing.

        Collection pauses meanwhile: a reference that another thread frees while Ray shuts down would end this process.
        """
        import ray

        gc.collect()
        gc.disable()
        try:
            ray.shutdown()
        finally:
            gc.enable()


def start_or_join(address: str | None = None, num_cpus: int | None = None, num_gpus: int | None = None) -> Cluster:
    """Join ``address``, else RAY_ADDRESS, else start a cluster that listens on 127.0.0.1 alone.

    ``num_cpus`` and ``num_gpus`` are what a cluster started here claims to have; None: what the machine has.
    Raises RunError when there is no cluster at the address.
    """
    found = address or os.environ.get("RAY_ADDRESS")
    os.environ.update(missing_environment(os.environ, joining=bool(found)))
    import ray

    if found:
        try:
            ray.init(address=found, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            raise RunError(f"no Ray cluster can be joined at {found!r}: {' '.join(str(error).split())[:500]}") from error
    else:
        _start(num_cpus, num_gpus)
    return _describe(owned=not found)


def _start(num_cpus: int | None, num_gpus: int | None) -> None:
    """Raises RunError, with nothing left running, should the cluster not be on loopback after all."""
    import ray
    from ray._private import ray_constants
    from ray._raylet import Config  # type: ignore[attr-defined]

    # Both are read when Ray is imported, which somebody else may have done before the environment was set.
    ray_constants.ENABLE_RAY_CLUSTER = False
    Config.initialize("")
    ray.init(
        address="local",
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        log_to_driver=False,
        logging_level="ERROR",
        _node_ip_address="127.0.0.1",
    )
    address = ray.util.get_node_ip_address()
    if address != "127.0.0.1":
        ray.shutdown()
        raise RunError(f"the local Ray cluster would listen on {address}; it must stay on 127.0.0.1")


def missing_environment(environment: Mapping[str, str], joining: bool, home: Path | None = None) -> dict[str, str]:
    """What Ray must find in its environment and does not, its authentication mode first of all.

    Unset, Ray writes a token file into the home folder and later clusters and clients disagree about the mode. A cluster
    of ours gets a token that lives in the environment of its processes only; a joined one decides, and has a token or not.
    """
    missing: dict[str, str] = {}
    if "RAY_AUTH_MODE" not in environment:
        token_file = (home or Path.home()) / ".ray" / "auth_token"
        has_token = bool({"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & environment.keys()) or token_file.exists()
        missing["RAY_AUTH_MODE"] = "token" if has_token or not joining else "disabled"
        if not joining and not has_token:
            missing["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if not joining:
        missing |= {key: value for key, value in LOCAL_ENVIRONMENT.items() if key not in environment or key == LOOPBACK_SWITCH}
    return missing


def _describe(owned: bool) -> Cluster:
    import ray

    alive = nodes_alive()
    return Cluster(
        address=ray.get_runtime_context().gcs_address,
        owned=owned,
        num_cpus=sum(node.resources.get("CPU", 0.0) for node in alive),
        num_gpus=sum(node.resources.get("GPU", 0.0) for node in alive),
        uses_roles=any(node.role for node in alive),
        alive=alive,
    )


def nodes_alive() -> tuple[Node, ...]:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    return tuple(Node(node.get("Resources", {}), node.get("Labels", {}).get("role", "")) for node in alive)
