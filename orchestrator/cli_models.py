"""``dvg models``: what there is to run, and tiny checkpoints to try it with."""

from __future__ import annotations

import os
import pathlib
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator import geometry
from orchestrator.cli import print_json
from orchestrator.mistakes import ConfigError
from stages.models import embedded

MIN_WIDTH = 112
SHOWN = ("model", "from", "default shape", "steps", "guidance", "guidance low", "solver")
"""What fits on a screen; --json has the rest."""
TASKS = {"none": "text", "optional": "text, image", "required": "image"}
"""What a model makes a video from, besides its prompt."""


def run_models(as_json: bool) -> None:
    """Every model's geometry; for the embedded one also the words it knows and a prompt to try."""
    from experiments.embedded.captions import EXAMPLE
    from stages.vocabulary import vocabulary

    rows = [_model_row(model) for model in geometry.MODELS.values()]
    words, example = vocabulary(embedded.FOLDER), EXAMPLE
    if as_json:
        print_json({"models": rows, "wan-mini": {"vocabulary": list(words), "example": example}})
        return
    console = Console()
    _print_table(rows)
    console.print("\n[bold]Published weights[/]")
    for row in rows:
        console.print(f"{row['model']:36}{row['weights']}", highlight=False, soft_wrap=True)
    console.print(f"\n[bold]wan-mini[/] ships with the project and knows {len(words)} words:")
    console.print(", ".join(words), highlight=False)
    console.print(f"\nFor example: [italic]{example}[/]")


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Never narrower than its cells: a terminal that is may wrap the lines."""
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for heading in SHOWN:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*("" if row[heading] is None else str(row[heading]) for heading in SHOWN))
    Console(width=max(Console().width, MIN_WIDTH)).print(table)


def _model_row(model: geometry.ModelGeometry) -> dict[str, Any]:
    shape = model.default_shape
    return {
        "model": model.name,
        "family": model.family,
        "from": TASKS[model.image],
        "default shape": f"{shape.num_frames}x{shape.height}x{shape.width}",
        "tokens": model.num_tokens(model.latent_grid(shape)),
        "steps": model.default_steps,
        "guidance": model.default_guidance,
        "guidance low": model.default_guidance_low,
        "solver": model.solver,
        "shift": model.full_shift,
        "heads": model.heads,
        "weights": model.hub or "ships with the project",
    }


def run_build_tiny(name: str, folder: pathlib.Path) -> None:
    """Build it. Raises ConfigError for an unknown model or a folder that holds something."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # diffusers brings DeepSpeed in, which tells at length what it looked for
    from stages.models import tiny

    try:
        tiny.build(name, folder)
    except ValueError as error:
        raise ConfigError([str(error)]) from error
    except OSError as error:
        raise ConfigError([f"folder {str(folder)!r} cannot be written: {error.strerror or error}"]) from error
    example = f'wrote {folder}; for example: dvg generate "a prompt" --model {name} --weights {folder}'
    Console().print(example, soft_wrap=True, markup=False)
