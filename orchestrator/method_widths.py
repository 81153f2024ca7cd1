"""What an arm's accelerators ask of the ranks that share its clips, checked before any of them is started."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from orchestrator.arms import Arm
from orchestrator.cost import num_branches, split
from orchestrator.degrees import Limits, powers
from orchestrator.demands import request_of
from orchestrator.geometry import model
from orchestrator.methods import Method, available, find, read_settings
from orchestrator.sizing import SizingConfig
from parallel import backends

BLOCKWISE = "dualparal"
"""The planner whose forwards see a block of a long video each, some layers on every rank."""
LEAN = f"{BLOCKWISE} with context_frames 0, order cleanest or fewer blocks in_flight, whose keys it keeps"


def kept_together(arm: Arm) -> str:
    """Why the arm's clips must stay on one rank, as more would split its two branches of guidance; empty if they need not."""
    request = request_of(arm)
    if not arm.accelerators or num_branches(request.geometry, arm.guidance) == 1:
        return ""
    return next((why for method, settings in _accelerators(arm) if (why := method.together(settings, request))), "")


def kept_tensors(arm: Arm) -> float:
    """Tensors of a token's width that its methods keep of each branch of guidance."""
    return sum(method.kept_tensors(settings, model(arm.model)) for method, settings in (*_by_blocks(arm), *_accelerators(arm)))


def kept_told(arm: Arm) -> str:
    """What to take where memory is short of what is kept; empty where little is."""
    names = [method.name for method, settings in _accelerators(arm) if _keeps_much(method, settings, arm)]
    if not names:
        return ""
    lean = [name for name in _whole() if not _keeps_much(find(name, "accelerator"), None, arm)]
    many = f"{names[0]} keeps {kept_tensors(arm):.0f} tensors of every token for each branch of guidance"
    return f"{many}; {', '.join(lean)} keep few"


def _keeps_much(method: Method, settings: Any, arm: Arm) -> bool:
    geometry = model(arm.model)
    return method.kept_tensors(method.settings() if settings is None else settings, geometry) >= geometry.num_layers


def width_mistake(arm: Arm, config: SizingConfig) -> str:
    """Of an arm that is kept on one rank, or on as many as it has layers: a width that was asked for; empty otherwise."""
    num_layers = model(arm.model).num_layers
    if config.rule == "fixed" and arm.planner == BLOCKWISE and (config.width or 1) > num_layers:
        return f"cluster.sizing.width is {config.width}, and planner {BLOCKWISE} gives every rank some of {num_layers} layers"
    if config.rule != "fixed" or (config.width or 1) == 1 or not (why := kept_together(arm)):
        return ""
    return f"cluster.sizing.width is {config.width}, and more than 1 rank would split guidance: {why}"


def backend_mistake(arm: Arm, limits: Limits) -> str:
    """Of an arm that attends otherwise: a pod on some of whose widths the backend shares tokens or keys as its method cannot have
    them; empty otherwise."""
    geometry, methods = model(arm.model), [method for method, _ in _accelerators(arm)]
    uneven = [method.name for method in methods if method.lever == "tokens"]
    by_head = [method.name for method in methods if method.lever in ("attention", "tokens")]
    shares = [split(width, num_branches(geometry, arm.guidance))[1] for width in powers(limits.max_width)]
    backend = backends.settled(limits.backend, limits.device_type)
    *others, last = [name for name in backends.names() if not backends.needs_equal_shares(name)]
    instead = f"take backend {', '.join(others)} or {last}"
    if uneven and max(shares) > 1 and backends.needs_equal_shares(backend):
        return f"backend {backend} needs as many tokens on every rank, and {uneven[0]} leaves some out; {instead}"
    if not by_head or all(backends.head_ranks(backend, geometry.heads, share) == share for share in shares):
        return ""
    ring = f"backend {backend} sends keys and values round a ring, so no rank has all of a head"
    return f"{ring}, and {by_head[0]} decides by head; {instead}"


def sharding_mistake(arm: Arm, num_ranks: int) -> str:
    """Why an arm cannot run with the model's weights spread over so many ranks; empty if it can."""
    if num_ranks == 1:
        return ""
    if why := kept_together(arm):
        return f"{_spread(arm, num_ranks)}, so they must work on each clip together: {why}"
    methods = *_by_blocks(arm), *_accelerators(arm)
    partly = [method.name for method, settings in methods if not method.leaves_whole_forwards(settings)]
    if not partly:
        return ""
    whole = ", ".join(_whole())
    instead = f"an accelerator that leaves out whole forwards ({whole})" if partly[0] != BLOCKWISE else LEAN
    return (
        f"{_spread(arm, num_ranks)}, all of which join in every block that one computes, and {partly[0]} computes parts of a "
        f"forward; take GPUs that hold the model whole, or {instead}"
    )


def _spread(arm: Arm, num_ranks: int) -> str:
    return f"the weights of {arm.model} and what goes beside them are too much for one GPU, so {num_ranks} ranks share them"


def _by_blocks(arm: Arm) -> Iterator[tuple[Method, Any]]:
    """The planner, where it has each forward see a block of a long video."""
    if arm.planner == BLOCKWISE:
        method = find(arm.planner, "planner")
        yield method, read_settings(method, arm.planner_settings)


def _accelerators(arm: Arm) -> Iterator[tuple[Method, Any]]:
    for use in arm.accelerators:
        method = find(use.name, "accelerator")
        yield method, read_settings(method, use.settings)


def _whole() -> list[str]:
    """Caches that leave out whole forwards, as they come."""
    methods = [find(name, "accelerator") for name in available("accelerator")]
    return [method.name for method in methods if method.lever == "cache" and method.leaves_whole_forwards(method.settings())]
