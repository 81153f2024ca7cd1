"""What a reader must know before believing a comparison, in whole sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from experiments.compare.arms import Arm, Key
from experiments.compare.pairing import Pairing
from experiments.compare.stats import FEW_PROMPTS

Pairings = Mapping[str, Pairing]


def notes_on(arms: Sequence[Arm], base: Arm | None, pairings: Pairings) -> Iterable[str]:
    """The gravest first: no figure at all, then figures to doubt, then figures that may change."""
    if base is None:
        yield "no base: no run names a reference and none has a full run, so there are no speedups and differences; give --base"
    else:
        others = [arm for arm in arms if arm is not base and arm.records]
        yield from _not_comparable(others, base, pairings)
        yield from _machines(others, base)
        yield from _models(others, base)
        yield from _software(others, base)
        yield from _partly(others, base, pairings)
    yield from _references(arms)
    yield from _unavailable(arms)
    yield from _few(arms)
    yield from _unfinished(arms)


def _not_comparable(others: Sequence[Arm], base: Arm, pairings: Pairings) -> Iterable[str]:
    why = [(arm, (told,)) for arm in others for told in _obstacles(pairings[arm.label], base)]
    return [f"{arms}: {told}" for arms, (told,) in _grouped(why)]


def _obstacles(pairing: Pairing, base: Arm) -> Iterable[str]:
    nothing = "no speedup, no differences, not on the front"
    if not pairing.num_common:
        yield f"no prompt and seed in common with {base.label}: {nothing}"
    for why, number in pairing.refused.items():
        left = "speedup and differences leave them out" if pairing.keys else nothing
        yield f"{number} of {pairing.num_common} videos have {why}: {left}"


def _machines(others: Sequence[Arm], base: Arm) -> Iterable[str]:
    """Of a processor whose cores are not known for both, only its kind counts."""
    unlike = [arm for arm in others if _on_other_machines(arm, base)]
    for arms, machines in _grouped((arm, arm.machines) for arm in unlike):
        here, there = _all(machines), _all(base.machines)
        yield f"other hardware: {arms} on {here}, {base.label} on {there}; seconds and speedups compare the machines too"


def _on_other_machines(arm: Arm, base: Arm) -> bool:
    both_known = arm.run.cores and base.run.cores
    return arm.on(arm.run.cores if both_known else None) != base.on(base.run.cores if both_known else None)


def _models(others: Sequence[Arm], base: Arm) -> Iterable[str]:
    for arms, models in _grouped((arm, arm.models) for arm in others if arm.models != base.models):
        yield f"other models: {arms} with {_all(models)}, {base.label} with {_all(base.models)}"


def _software(others: Sequence[Arm], base: Arm) -> Iterable[str]:
    told = set()
    for arm in others:
        ours, theirs = arm.run.packages, base.run.packages
        unlike = [name for name in ours if name in theirs and ours[name] != theirs[name]]
        if unlike and arm.run.name not in told:
            told.add(arm.run.name)
            versions = ", ".join(f"{name} {ours[name]} and {theirs[name]}" for name in unlike)
            yield f"other software: {arm.run.name} and {base.run.name} ran with {versions}"


def _partly(others: Sequence[Arm], base: Arm, pairings: Pairings) -> Iterable[str]:
    for arm in others:
        number = pairings[arm.label].num_common
        if number and (number < len(base.records) or number < len(arm.records)):
            told = f"{arm.label} has {len(arm.records)} videos, {base.label} {len(base.records)}, {number} in common"
            yield f"{told}: speedup and differences are over these, other columns over each arm's own"


def _references(arms: Sequence[Arm]) -> Iterable[str]:
    measured = [arm for arm in arms if arm.references]
    held: dict[Key, str] = {}
    if all(held.setdefault(key, sha256) == sha256 for arm in measured for key, sha256 in arm.references.items()):
        return
    against = [(arm, (f"the {' and '.join(sorted(arm.reference_arms))} of {arm.run.name}",)) for arm in measured]
    told = "; ".join(f"{labels} against {one}" for labels, (one,) in _grouped(against))
    yield f"PSNR, SSIM and the like were measured against different videos: {told}"


def _unavailable(arms: Sequence[Arm]) -> Iterable[str]:
    """Metrics that were asked for and could not be had, by their reason."""
    found: dict[str, dict[str, set[str]]] = {}
    for run in {arm.run.where: arm.run for arm in arms}.values():
        for row in run.quality:
            for name, why in (row.get("unavailable") or {}).items():
                found.setdefault(str(why), {}).setdefault(name, set()).add(row["item_key"])
    for why, names in found.items():
        told = _names(names, limit=8)
        yield f"not available for {len(set.union(*names.values()))} videos: {told} ({why})"


def _few(arms: Sequence[Arm]) -> Iterable[str]:
    most = max(len({prompt for prompt, _ in arm.records}) for arm in arms)
    if most < FEW_PROMPTS:
        yield f"{most} prompt{'s' * (most != 1)} only: intervals over so few are too narrow, where there are any"


def _unfinished(arms: Sequence[Arm]) -> Iterable[str]:
    for run in {arm.run.where: arm.run for arm in arms}.values():
        if run.num_left:
            yield f"{run.name} is not finished: {run.num_left} items are still to make"


def _grouped(pairs: Iterable[tuple[Arm, tuple[str, ...]]]) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Names of the arms that share a fact, and the fact."""
    found: dict[tuple[str, ...], list[str]] = {}
    for arm, fact in pairs:
        found.setdefault(fact, []).append(arm.label)
    return [(_names(labels), fact) for fact, labels in found.items()]


def _names(labels: Iterable[str], limit: int = 4) -> str:
    found = list(labels)
    return ", ".join(found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")


def _all(values: Iterable[str]) -> str:
    return " and ".join(values) or "nothing known"
