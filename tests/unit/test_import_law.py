"""Who may import whom (docs/structure.md): read from the source, so that a lazy import counts too."""

from __future__ import annotations

import ast
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SHARED_NAMES = (
    "types",
    "attended",
    "model_geometry",
    "catalogue",
    "geometry",
    "dvg_config",
    "schedules",
    "matching",
    "actions",
    "waves",
    "cost",
    "budgets",
    "arms",
    "degrees",
    "mistakes",
    "methods",
    "presets",
    "flops",
    "vgdfr",
    "progressive",
    "long_video",
)
DECIDING = (
    "events",
    "eventlog",
    "books",
    "packing",
    "patience",
    "plan",
    "policy",
    "sizing",
    "slices",
    "split",
    "tally",
    "eta",
    "scheduler",
)
SCHEDULING = ("audit", "canonical", "dispatch", "forecast", "horizon", "hurry", "lanes", "objectives", "pool")
SIMULATING = (
    "allotment",
    "demands",
    "simulator",
    "simulator_baselines",
    "simulator_bound",
    "simulator_meter",
    "simulator_parts",
    "simulator_replay",
    "simulator_report",
    "simulator_world",
)
PURE_PARALLEL = frozenset({"parallel", "parallel.backends"})
"""What a backend can do is known without torch."""
PURE = (*SHARED_NAMES, *DECIDING, *SCHEDULING, *SIMULATING)
PURE_MODULES = frozenset(f"orchestrator.{name}" for name in PURE)
SHARED = frozenset(f"orchestrator.{name}" for name in SHARED_NAMES)
RAY_MODULES = (
    "orchestrator.driver",
    "orchestrator.jobs",
    "orchestrator.pods",
    "orchestrator.cluster",
    "orchestrator.crew",
    "orchestrator.errands",
    "orchestrator.inbox",
    "orchestrator.outside",
    "orchestrator.doctor",
    "orchestrator.head",
    "orchestrator.carried",
    "orchestrator.cli_gc",
    "orchestrator.machines",
    "orchestrator.meters",
)


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: pathlib.Path) -> set[str]:
    """Every module this file names in an import, wherever in the file; ``from a import b`` counts as ``a`` and ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def files(package: str) -> list[pathlib.Path]:
    return sorted((ROOT / package).rglob("*.py"))


def top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def ours(names: set[str], package: str) -> set[str]:
    return {name for name in names if name.split(".")[0] == package}


def allowed(name: str, modules: frozenset[str]) -> bool:
    """``name`` is the bare package, one of ``modules``, or something inside one."""
    return name == "orchestrator" or any(name == module or name.startswith(module + ".") for module in modules)


@pytest.mark.parametrize("name", PURE)
def test_the_deciding_modules_import_only_the_standard_library_pydantic_and_each_other(name: str) -> None:
    found = imports(ROOT / "orchestrator" / f"{name}.py")
    assert top(found) <= set(sys.stdlib_module_names) | {"pydantic", "pydantic_core", "orchestrator", "parallel"}
    assert ours(found, "parallel") <= PURE_PARALLEL
    for inner in ours(found, "orchestrator"):
        assert allowed(inner, PURE_MODULES), inner


@pytest.mark.parametrize("path", files("parallel"), ids=module_name)
def test_parallel_knows_neither_ray_nor_the_stages(path: pathlib.Path) -> None:
    found = imports(path)
    assert not top(found) & {"ray", "mlflow", "stages", "experiments"}
    assert all(allowed(inner, SHARED) for inner in ours(found, "orchestrator"))


@pytest.mark.parametrize("path", files("stages"), ids=module_name)
def test_stages_know_neither_ray_nor_mlflow_nor_the_scheduler(path: pathlib.Path) -> None:
    found = imports(path)
    assert not top(found) & {"ray", "mlflow", "experiments"}
    for inner in ours(found, "orchestrator"):
        assert allowed(inner, SHARED), inner


@pytest.mark.parametrize("path", files("orchestrator"), ids=module_name)
def test_in_the_orchestrator_only_the_shell_knows_ray_and_only_the_cli_knows_the_experiments(path: pathlib.Path) -> None:
    name, found = module_name(path), top(imports(path))
    if name not in RAY_MODULES:
        assert "ray" not in found
    if not name.startswith("orchestrator.cli"):
        assert "experiments" not in found
    if not name.startswith(("orchestrator.cli", "orchestrator.doctor")):
        assert "mlflow" not in found


def test_the_cli_imports_nothing_heavy_at_its_top() -> None:
    for path in (ROOT / "orchestrator").glob("cli*.py"):
        names: set[str] = set()
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
        names.discard("stages.models.embedded")  # a path and a name, nothing more
        assert not top(names) & {"torch", "ray", "mlflow", "diffusers", "stages", "experiments"}
