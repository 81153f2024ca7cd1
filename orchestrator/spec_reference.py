"""``docs/spec.md``: the sweep's YAML for people, made from its schema so that the two cannot differ."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from orchestrator.geometry import MODELS
from orchestrator.methods import ABSENT, Kind, available
from orchestrator.spec_schema import REF, Schema, spec_schema

SECTIONS = {
    "ArmOptions": "An arm",
    "Prompt": "A prompt",
    "LoraSpec": "An adapter",
    "DvgConfig": "DVG",
    "ClusterConfig": "Workers",
    "SizingConfig": "How wide a clip runs",
    "PatienceConfig": "When a worker counts as hung",
    "TrackingConfig": "Tracking",
    "MetricsConfig": "Metrics",
}
"""Headings, in the order of the page."""
INTRO = """\
# The sweep spec

One YAML file says what to make, with which arms, on which workers: `dvg sweep SPEC.yaml`. This page is made by
`dvg schema --markdown`. The files in [experiments/specs](../experiments/specs) are examples; [quickstart.md](quickstart.md)
starts with one.

    model: wan-mini
    prompts: prompts.txt
    seeds: [0, 1]
    arms:
      full: {planner: full}
      dvg: {planner: dvg}
    sweep:
      budget: [0.4, 0.5, 0.7]

That is four arms: `full`, which has no budget, so that its three points are one, and `dvg-budget0.4`, `dvg-budget0.5` and
`dvg-budget0.7`. What an arm does not say is inherited from the spec, and what neither says is the model's default: that is what
**None** means below, a key left out.

Unknown keys, keys written twice, values of another form and combinations that cannot work are refused together, one line each,
before anything starts. Any key can be changed on the command line, dotted where it is nested:

    dvg sweep SPEC.yaml "seeds=[0]" cluster.pods=2 arms.dvg.budget=0.4 only=full,dvg

`dvg sweep SPEC.yaml --print-config` prints what comes of it all. Relative paths start at the spec's folder, or else at the
working directory.

## In an editor

    dvg schema > sweep.schema.json

and this as a spec's first line, for editors with the YAML language server (VS Code's YAML extension, Neovim, Helix and others),
which then complete and check while one types:

    # yaml-language-server: $schema=sweep.schema.json

The schema knows form, names and ranges. What depends on the model (a shape's divisors, a budget that no schedule meets, weights
that are missing) only `dvg plan SPEC.yaml` and `dvg sweep` can tell.
"""
ABSENT_INTRO = """\
## Methods that are not there

Specs may name these, as those of the paper's tables do ([reproducing.md](reproducing.md)), and are refused with a line that says
which arms are concerned; `only=` makes the others.

| name | kind | what |
|---|---|---|
"""
PLURALS = {"number": "numbers", "text": "texts"}
TABLE = "| key | takes | default | meaning |\n|---|---|---|---|\n"


def spec_reference() -> str:
    """The whole page."""
    schema = spec_schema()
    of_arms = schema["$defs"]["ArmOptions"]["properties"]
    own = {key: part for key, part in schema["properties"].items() if key not in of_arms}
    above = f"## The spec\n\nBesides these, every key of [an arm](#{anchor('An arm')}), for all arms.\n\n"
    whole = above + _table(own, schema["required"])
    parts = [whole, *(_section(name, schema["$defs"][name]) for name in SECTIONS)]
    return "\n".join([INTRO, *parts, ABSENT_INTRO + _absent()])


def anchor(heading: str) -> str:
    """Where a heading is found on the page."""
    return heading.lower().replace(" ", "-")


def _section(name: str, section: Schema) -> str:
    return f"## {SECTIONS[name]}\n\n{section['description']}\n\n{_table(section['properties'], section.get('required', ()))}"


def _table(properties: Mapping[str, Schema], required: Collection[str] = ()) -> str:
    rows = (
        f"| `{key}` | {form(part)} | {'required' if key in required else _default(part)} | {_cell(part['description'])} |\n"
        for key, part in properties.items()
    )
    return TABLE + "".join(rows)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _default(part: Schema) -> str:
    return f"`{json.dumps(part['default']).strip(chr(34))}`" if part.get("default", "") != "" else "–"


def form(part: Schema) -> str:
    """What a value may be, in words: ``number, above 0, at most 1``."""
    if "$ref" in part:
        heading = SECTIONS[part["$ref"].removeprefix(REF)]
        return f"[{heading[0].lower() + heading[1:] if heading != 'DVG' else heading}](#{anchor(heading)})"
    if "enum" in part:
        return _choices([value for value in part["enum"] if value is not None])
    for word in ("anyOf", "oneOf"):
        if word in part:
            return " or ".join(dict.fromkeys(form(one) for one in part[word] if one != {"type": "null"}))
    return ", ".join([_kind(part), *_limits(part)])


def _choices(values: list[Any]) -> str:
    if values == list(MODELS):
        return "[a model](models.md)"
    return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in values)


def _kind(part: Schema) -> str:
    kind = part.get("type", "")
    if kind == "array":
        items = part.get("items", {})
        return "empty list" if items == {"not": {}} else f"list of {_inner(part)}"
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`", "object": "mapping"}
    if "patternProperties" in part:
        (inner,) = part["patternProperties"].values()
        return f"names, each of {form(inner)}"
    if "propertyNames" in part:
        return "`{name: {setting: value}}`"
    if "maxProperties" in part:
        return " or ".join(f"`{{{key}: number}}`" for key in part["properties"])
    return names[kind]


def _inner(part: Schema) -> str:
    if "prefixItems" in part:
        return f"{len(part['prefixItems'])} numbers"
    inner = PLURALS.get(form(part["items"]), form(part["items"]))
    return f"({inner})" if " or " in inner or ", " in inner else inner


def _limits(part: Schema) -> Iterator[str]:
    """Of numbers; those of text are told in words beside it."""
    words = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    for word, told in words.items():
        if word in part:
            yield f"{told} {part[word]:,}" if part[word] < 2**63 else "below 2^63"


def _absent() -> str:
    kinds: dict[Kind, str] = {"planner": "planners", "accelerator": "accelerators"}
    rows = "".join(f"| `{name}` | {method.kind} | {method.source} |\n" for name, method in ABSENT.items())
    there = "; ".join(f"{told}: {', '.join(f'`{name}`' for name in available(kind)) or 'none'}" for kind, told in kinds.items())
    return f"{rows}\nAvailable {there}.\n"
