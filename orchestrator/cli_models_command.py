"""The command line of ``dvg models``."""

from __future__ import annotations

import pathlib
from typing import Annotated

import typer

models_app = typer.Typer(invoke_without_command=True, help="List the models, and the vocabulary of the embedded one.")


@models_app.callback()
def models(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the models, and the vocabulary of the embedded one."""
    from orchestrator.cli_models import run_models

    if context.invoked_subcommand is None:
        run_models(as_json)


@models_app.command("build-tiny")
def build_tiny(
    name: Annotated[str, typer.Argument(help="A model name; `dvg models` lists them.")],
    folder: Annotated[pathlib.Path, typer.Argument(help="A folder that is empty or does not exist yet.")],
) -> None:
    """Write a tiny checkpoint with random weights in the model's real format, to try the machinery without its weights."""
    from orchestrator.cli_models import run_build_tiny

    run_build_tiny(name, folder)


def register(app: typer.Typer) -> None:
    app.add_typer(models_app, name="models")
