"""``dvg schema``: what a sweep's YAML may hold, for editors and for people."""

from __future__ import annotations

from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    app.command()(schema)


def schema(
    markdown: Annotated[bool, typer.Option("--markdown", help="The reference for people, as in docs/spec.md.")] = False,
) -> None:
    """Print the JSON schema of a sweep's YAML; an editor that is given it completes and checks specs."""
    from orchestrator.cli import print_json
    from orchestrator.spec_reference import spec_reference
    from orchestrator.spec_schema import spec_schema

    if markdown:
        typer.echo(spec_reference(), nl=False)
    else:
        print_json(spec_schema())
