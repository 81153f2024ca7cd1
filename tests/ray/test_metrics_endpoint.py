"""A sweep's metrics at the endpoint of a real Ray node, as Prometheus would take them."""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.request

from orchestrator.meters import Meters
from orchestrator.policy import Throughput
from orchestrator.scheduler import Scheduler, SchedulerConfig
from tests.unit import records
from tests.unit.clockwork import Clockwork
from tests.unit.test_eta import decide, items

PATIENCE_S = 90
"""Ray's agent passes metrics on every ten seconds."""


def scraped(names):
    """``{name: {tags: value}}`` of the node's endpoint, once all of ``names`` are there."""
    import ray

    port = ray.nodes()[0]["MetricsExportPort"]
    deadline = time.monotonic() + PATIENCE_S
    found = {}
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                found = read(answer.read().decode())
        except urllib.error.URLError:
            found = {}
        if set(names) <= set(found):
            return found
        time.sleep(0.5)
    raise AssertionError(f"{set(names) - set(found)} never came; {sorted(name for name in found if 'dvg' in name)} did")


def read(text):
    rows = {}
    for name, tags, value in re.findall(r"^(ray_dvg_\w+){([^}]*)} (\S+)$", text, re.MULTILINE):
        rows.setdefault(name, {})[frozenset(re.findall(r'(\w+)="([^"]*)"', tags))] = float(value)
    return rows


def of(rows, **tags):
    (value,) = [value for have, value in rows.items() if have >= set(tags.items())]
    return value


def test_what_a_sweep_counts_arrives_at_the_nodes_endpoint_on_loopback(cluster):
    scheduler = Scheduler(SchedulerConfig(), Throughput(degrees=(4,)))
    meters = Meters("metered", {"dvg": "wan-mini"}, scheduler)
    world = Clockwork(scheduler, items(3), decide, lambda command, item: 2.0, meters.on_event)
    world.run(sketchers=1, pods=(8,), decoders=1)
    for number in range(3):
        meters.on_record(records.make(number))
    assert meters.on
    found = scraped(["ray_dvg_videos_total", "ray_dvg_queue_depth", "ray_dvg_phase_seconds_bucket", "ray_dvg_pod_busy_share"])
    assert of(found["ray_dvg_videos_total"], sweep="metered", arm="dvg", model="wan-mini") == 3
    assert of(found["ray_dvg_queue_depth"], sweep="metered", boundary="arrived") == 0
    assert of(found["ray_dvg_phase_seconds_bucket"], sweep="metered", phase="refine", le="3.0") == 3
    assert of(found["ray_dvg_gpu_seconds_total"], sweep="metered", pool="heavy") == 3 * 4 * 2.0
