"""A machine is about to be taken away: its workers are told, so that clips finish there or go on elsewhere.

Each worker of a sweep takes SIGTERM for such a notice. Who learns of it first differs: Kubernetes runs a hook in the pod,
the clouds answer on an address that every machine of theirs has.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable

import psutil
import requests

from orchestrator.mistakes import ConfigError
from orchestrator.naming import PREFIX

WORKERS = re.compile(rf"ray::({PREFIX}.*|(SketchActor|PodRank|DecodeActor)\b.*)", re.S)
"""How Ray titles the processes of ``orchestrator.pods``: by their names, and by their classes while they work."""
POLL_S = 5.0
ASK_S = 2.0
"""How long a cloud's own address may take to answer."""
AWS, GCP = "http://169.254.169.254", "http://metadata.google.internal"


def workers_here() -> list[psutil.Process]:
    """The processes of this user on this machine, or in this container, that work for sweeps."""
    found = []
    for process in psutil.process_iter(["cmdline", "uids"]):
        title = (process.info["cmdline"] or [""])[0]
        if WORKERS.fullmatch(title) and process.info["uids"] and process.info["uids"].real == os.getuid():
            found.append(process)
    return found


def give_notice(wait_s: float) -> int:
    """Tell every worker here, and wait until they are gone or the time is over; how many were told."""
    told = workers_here()
    for process in told:
        try:
            process.send_signal(signal.SIGTERM)
        except psutil.NoSuchProcess:
            continue
    print(f"told {len(told)} workers that this machine goes away", file=sys.stderr, flush=True)
    _, left = psutil.wait_procs(told, timeout=wait_s)
    print(f"{len(told) - len(left)} of them have ended", file=sys.stderr, flush=True)
    return len(told)


def watch(cloud: str, wait_s: float, poll_s: float = POLL_S) -> int:
    """Ask the cloud until it says that this machine goes away, then give notice. Raises ConfigError for another cloud."""
    if cloud not in CLOUDS:
        raise ConfigError([f"--watch {cloud!r} is unknown; choices: {', '.join(CLOUDS)}"])
    while not announced(CLOUDS[cloud]):
        time.sleep(poll_s)
    return give_notice(wait_s)


def announced(ask: Callable[[], bool]) -> bool:
    """An address that does not answer now has announced nothing."""
    try:
        return ask()
    except requests.RequestException:
        return False


def aws(base: str = AWS) -> bool:
    """The interruption notice of a spot instance, two minutes ahead: 404 until it is there."""
    lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    token = requests.put(f"{base}/latest/api/token", headers=lifetime, timeout=ASK_S)
    token.raise_for_status()
    shown = {"X-aws-ec2-metadata-token": token.text}
    return requests.get(f"{base}/latest/meta-data/spot/instance-action", headers=shown, timeout=ASK_S).status_code == 200


def gcp(base: str = GCP) -> bool:
    """Whether a spot machine is preempted, 30 seconds ahead."""
    flavour = {"Metadata-Flavor": "Google"}
    answer = requests.get(f"{base}/computeMetadata/v1/instance/preempted", headers=flavour, timeout=ASK_S)
    return answer.ok and answer.text.strip() == "TRUE"


CLOUDS: dict[str, Callable[[], bool]] = {"aws": aws, "gcp": gcp}
