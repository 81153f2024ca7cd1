"""What of VBench can run here, and what each dimension lacks: asked of VBench's own interpreter, without loading anything."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.vbench.dimensions import FILTER, NOT_IN_PACKAGE, STATIC_FILTER, TABLE, known
from experiments.vbench.weights import missing, roots
from orchestrator.mistakes import ConfigError

VARIABLE = "DVG_VBENCH_PYTHON"
FOLDER = ".venv-vbench"
HOW = f"`make vbench-env` builds it, in {FOLDER}; --vbench-python or {VARIABLE} names another"
ASK = """
import importlib.metadata as m, importlib.util as u, json, sys
def here(name):
    try:
        return u.find_spec(name) is not None
    except (ImportError, ValueError):
        return False
def version(name):
    try:
        return m.version(name)
    except m.PackageNotFoundError:
        return ""
found = u.find_spec("vbench") if here("vbench") else None
print(json.dumps({
    "version": version("vbench"), "torch": version("torch"), "python": sys.version.split()[0],
    "package": list(found.submodule_search_locations)[0] if found else "",
    "modules": {name: here(name) for name in sys.argv[1:]},
}))
"""
ASK_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Environment:
    """VBench's environment as it was found."""

    python: str
    version: str
    torch: str
    package: str
    modules: Mapping[str, bool] = field(default_factory=dict)


def interpreter(told: str | None = None, environment: Mapping[str, str] = os.environ) -> str:
    """Path of VBench's interpreter: as told, as the environment says, or beside the project. Raises ConfigError without one."""
    named = told or environment.get(VARIABLE)
    beside = Path(__file__).parents[2] / FOLDER / "bin" / "python"
    path = Path(named).absolute() if named else beside  # not resolved: a venv's python is a link that must be called as it is
    if not path.is_file():
        raise ConfigError([f"VBench needs an environment of its own, and there is no interpreter at {path}; {HOW}"])
    return str(path)


def ask(python: str) -> Environment:
    """Raises ConfigError when the interpreter cannot be run or has no VBench."""
    names = sorted({name for dimension in (*TABLE.values(), FILTER) for name in dimension.modules})
    try:
        done = subprocess.run(
            [python, "-P", "-c", ASK, *names], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False, env=_clean()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError([f"{python} cannot be run: {error}; {HOW}"]) from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ConfigError([f"{python} cannot be asked: {last}; {HOW}"])
    found = json.loads(done.stdout)
    if not found["package"]:
        raise ConfigError([f"{python} has no vbench; {HOW}"])
    return Environment(python, found["version"], found["torch"], found["package"], found["modules"])


def _clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}


def unavailable(dimensions: Sequence[str], found: Environment, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Why each dimension that cannot run cannot: packages and files that are missing, and where they go."""
    told = {name: _lacks(name, found, environment) for name in dimensions}
    return {name: why for name, why in told.items() if why}


def _lacks(name: str, found: Environment, environment: Mapping[str, str]) -> str:
    dimension = known(name)
    if dimension is None:
        return NOT_IN_PACKAGE
    absent = [f"no {module} in {found.python}" for module in dimension.modules if not found.modules.get(module)]
    return "; ".join([*absent, *missing(dimension.weights, roots(environment))])


def everything(environment: Mapping[str, str] = os.environ) -> tuple[Environment, dict[str, str]]:
    """For ``dvg doctor``: the environment, and why dimensions, or the filter of static videos, cannot run. Raises ConfigError."""
    found = ask(interpreter(environment=environment))
    return found, unavailable((*TABLE, STATIC_FILTER), found, environment)
