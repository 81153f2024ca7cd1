"""What ``experiments.bench.chaos`` did and found, for people."""

from __future__ import annotations

import json
from typing import Any


def report(found: dict[str, Any]) -> str:
    """Markdown."""
    options = found["options"]
    lost = found["losses"]
    video = f"{options['frames']} x {options['side']} x {options['side']}, {options['steps']} steps, width {options['width']}"
    where = " in one process" if options["calm"] == "local" else ""
    lines = [
        "# A sweep under fire",
        "",
        f"{found['items']} items of wan-mini ({video}), 2 pods of 2 ranks, a sketch and a decode worker on {found['nodes']} "
        f"nodes of one machine; seed {options['seed']}.",
        "",
        "| killed (-9) | times |",
        "| --- | --- |",
        *(f"| {kind} | {number} |" for kind, number in sorted(found["kills"].items())),
        f"| all, of {options['kills']} asked for | {found['num_kills']} |",
        "",
        f"Starts of the driver: {found['driver_starts']}, of which after it gave up by itself: {len(found['gave_up'])}. "
        f"Workers lost, as the scheduler saw it: {json.dumps(lost['workers_lost'])}; "
        f"clips that went with them: {lost['clips_interrupted']}; "
        f"work done again: {lost['work_lost_s']:.0f} s. "
        f"Attempts that items took: {json.dumps(found['attempts'])}.",
        f"The whole took {found['disturbed_s']:.0f} s, undisturbed {found['undisturbed_s']:.0f} s{where}.",
        "",
        "| afterwards | |",
        "| --- | --- |",
        *(f"| {name} | {'holds' if not wrong else f'{len(wrong)} times not'} |" for name, wrong in found["mistakes"].items()),
        "",
        *(f"- {name}: {line}" for name, wrong in found["mistakes"].items() for line in wrong[:10]),
    ]
    return "\n".join(lines) + "\n"
