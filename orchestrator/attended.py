"""What attention kept in a clip, as its record tells it: means, and every step in one short text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator.types import Attended

NOT_MEASURED = "-"


def told(attended: Sequence[Attended]) -> dict[str, Any]:
    """The fields of a record that say it; nothing where every step was dense and unmeasured."""
    if not attended:
        return {}
    recalls = [step.recall for step in attended if step.recall is not None]
    return {
        "sparsity": sum(step.sparsity for step in attended) / len(attended),
        "recall": sum(recalls) / len(recalls) if recalls else None,
        "choose_s": sum(step.choose_s for step in attended),
        "attend_s": sum(step.attend_s for step in attended),
        "attended": as_text(attended),
    }


def as_text(attended: Iterable[Attended]) -> str:
    """``step:sparsity:recall:choose_s:attend_s`` of every step, joined by ``|``: ``6:0.742:0.981:0.012:0.140``."""
    return "|".join(
        f"{step.step}:{step.sparsity:.4g}:{NOT_MEASURED if step.recall is None else f'{step.recall:.4g}'}"
        f":{step.choose_s:.4g}:{step.attend_s:.4g}"
        for step in attended
    )


def from_text(text: str) -> tuple[Attended, ...]:
    """Inverse of :func:`as_text`, to four digits. Raises ValueError for anything else."""
    return tuple(_step(part) for part in text.split("|")) if text else ()


def _step(text: str) -> Attended:
    parts = text.split(":")
    if len(parts) != 5:
        raise ValueError(f"{text!r} is no step:sparsity:recall:choose_s:attend_s")
    step, sparsity, recall, choose_s, attend_s = parts
    known = None if recall == NOT_MEASURED else float(recall)
    return Attended(int(step), float(sparsity), known, float(choose_s), float(attend_s))
