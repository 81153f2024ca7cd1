"""``dvg methods``: every planner and accelerator, what it combines with, what it needs and what can be set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console


Row = dict[str, Any]


def methods(
    names: Annotated[list[str] | None, typer.Argument(help="Tell all of these; without: one line for each there is.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List planners, accelerators and presets; of those named, also their settings."""
    from rich.console import Console

    from orchestrator.cli import print_json
    from orchestrator.method_rows import every_method, not_there, preset_rows

    found = _asked(every_method(), names or [])
    if as_json:
        print_json({"methods": found, **({} if names else {"presets": preset_rows(), "not in this version": not_there()})})
    elif names:
        for row in found:
            _print_details(Console(), row)
    else:
        _print_table(Console(), found)


def _asked(rows: list[Row], names: list[str]) -> list[Row]:
    """Raises ConfigError for a name that is none, with the choices."""
    from orchestrator.methods import ABSENT
    from orchestrator.mistakes import ConfigError, unknown

    known = {row["name"]: row for row in rows}
    wrong = [
        f"{name} ({ABSENT[name].source}) is not available in this version" if name in ABSENT else unknown("method", name, known)
        for name in names
        if name not in known
    ]
    if wrong:
        raise ConfigError(wrong)
    return [known[name] for name in names] if names else rows


MIN_WIDTH = 118


def _print_table(console: Console, rows: list[Row]) -> None:
    """Never narrower than it can be read: a terminal that is may wrap the lines."""
    from rich.console import Console
    from rich.table import Table

    from orchestrator.method_rows import not_there, preset_rows

    wide = Console(width=max(console.width, MIN_WIDTH))
    table = Table(header_style="bold", box=None, padding=(0, 2, 0, 0))
    for heading in ("method", "kind", "saves on", "follows", "source"):
        table.add_column(heading, no_wrap=heading != "source")
    for row in rows:
        table.add_row(row["name"], row["kind"], row["lever"], row["follows"], row["source"])
    wide.print(table)
    wide.print("\n[bold]Presets[/]")
    for row in preset_rows():
        wide.print(f"{row['name']:10}{row['what']}; {row['measured']}", highlight=False, soft_wrap=True)
    absent = "; ".join(f"{name} ({source})" for name, source in not_there().items())
    wide.print(f"\nNot in this version: {absent}", highlight=False)
    wide.print("Settings, what each combines with and needs: dvg methods NAME, or --json", highlight=False)


def _print_details(console: Console, row: Row) -> None:
    """One method, as a paragraph and a table of its settings."""
    from rich.markup import escape
    from rich.table import Table

    console.print(f"[bold]{row['name']}[/], {row['kind']}, {row['follows']}: {escape(row['summary'])}", highlight=False)
    facts = {"source": row["source"], "combines with": row["combines"], "needs": row["needs"], "ranks": row["ranks"]}
    for name, told in facts.items():
        if told:
            console.print(f"  {name}: {escape(told)}", highlight=False)
    if row["settings"]:
        table = Table(header_style="bold", box=None, padding=(0, 2, 0, 2))
        for heading in ("setting", "default", "what"):
            table.add_column(heading, overflow="fold")
        for setting in row["settings"]:
            table.add_row(setting["name"], escape(setting["default_told"]), escape(setting["what"]))
        console.print(table)
    console.print()


def register(app: typer.Typer) -> None:
    app.command()(methods)
