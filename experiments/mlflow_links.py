"""Links into MLflow's own pages, in the notes that they show: the arms as a flat list, as charts, and compared.

Runs below another are folded away where the list goes by time, and charts show what is not folded. So the links sort by density.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote

NOTE = "mlflow.note.content"
BY_DENSITY = f"&orderByKey={quote('metrics.`density`')}&orderByAsc=true"


def experiment_note(experiment_id: str) -> str:
    return (
        f"Arms of every sweep: {_views(experiment_id, ARM)}. Search for `{ARM}` or `tags.level = 'prompt'`, sorted by a metric."
    )


def sweep_note(experiment_id: str, sweep_key: str, arm_run_ids: Sequence[str]) -> str:
    """For the sweep run. Comparing is parallel coordinates, scatter, box and contour plots."""
    mine = f"{ARM} and tags.sweep_key = '{sweep_key}'"
    compared = f"#/compare-runs?runs={_json(list(arm_run_ids))}&experiments={_json([experiment_id])}"
    return f"Arms: {_views(experiment_id, mine)}" + (f", [compared]({compared})." if len(arm_run_ids) > 1 else ".")


ARM = "tags.level = 'arm'"


def _views(experiment_id: str, found_by: str) -> str:
    page = f"#/experiments/{experiment_id}/runs?searchFilter={quote(found_by)}{BY_DENSITY}"
    return f"[table]({page}), [charts and strips]({page}&compareRunsMode=CHART)"


def _json(value: Sequence[str]) -> str:
    return quote(json.dumps(value, separators=(",", ":")))
