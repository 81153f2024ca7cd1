"""``dvg gc``: what sweeps that are gone left on a cluster, and its removal."""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.cli_cluster import follow, patiently
from orchestrator.cluster import missing_environment
from orchestrator.head import Head, address_of
from orchestrator.leftovers import Held, held, left_behind
from orchestrator.mistakes import RunError
from orchestrator.naming import PREFIX
from orchestrator.submission import new_tag


def run_gc(sweep: str | None, address: str | None, yes: bool, as_json: bool) -> int:
    """List what was left behind; remove it with ``yes``. Raises RunError without a cluster.

    Only a process inside the cluster can remove anything, so from elsewhere the same command runs there, as a job.
    """
    inside = address == "auto" or (address is None and _in_a_job())
    head = patiently(lambda: Head(_own_dashboard() if inside else address_of(address)))
    found = left_behind(holdings(head), sweep)
    _show(found, as_json, yes)
    if not found or not yes:
        return 0
    if not inside:
        return _remove_there(head, sweep)
    for one in found:
        _remove(one)
    return 0


def holdings(head: Head) -> list[Held]:
    return patiently(lambda: held(head.rows("actors"), head.rows("placement_groups"), head.rows("jobs")))


def _in_a_job() -> bool:
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def _own_dashboard() -> str:
    """Join the cluster that this machine is part of; its dashboard's address. Raises RunError."""
    os.environ.update(missing_environment(os.environ, joining=True))
    import ray

    try:
        context = ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise RunError(f"no Ray cluster can be joined from here: {' '.join(str(error).split())[:300]}") from error
    return f"http://{context.dashboard_url}"


def _remove_there(head: Head, sweep: str | None) -> int:
    words = ["dvg", "gc", "--address", "auto", "--yes", *(["--", sweep] if sweep else [])]
    job_id = patiently(lambda: head.run(f"{PREFIX}gc-{new_tag()}", shlex.join(words)))
    return follow(head, job_id, Console(stderr=True, highlight=False, markup=False, soft_wrap=True))


def _remove(one: Held) -> None:
    """End one actor or placement group, by its id; gone already is as good."""
    import ray
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if one.what == "actor":
        try:
            ray.kill(ray.get_actor(one.name, namespace=one.namespace))
        except ValueError:
            print(f"gone already: {one.name}", file=sys.stderr)
            return
    else:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(one.id)))
    print(f"removed {one.what} {one.name}", file=sys.stderr)


def _show(found: Sequence[Held], as_json: bool, yes: bool) -> None:
    if as_json:
        from orchestrator.cli import print_json

        rows: list[dict[str, Any]] = [dataclasses.asdict(one) for one in found]
        print_json(rows)
        return
    console = Console()
    if not found:
        console.print("nothing is left behind")
        return
    table = Table("sweep", "what", "name", "state", "GPUs", "job")
    for one in found:
        table.add_row(*(escape(text) for text in (one.sweep, one.what, one.name, one.state, f"{one.gpus:g}", one.job)))
    console.print(table)
    if not yes:
        console.print("the same command with --yes removes them")
