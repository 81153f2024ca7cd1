"""Files of what was measured of models: those that ship, those of the user, and which of them is nearest to a request."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Request
from orchestrator.mistakes import read_model
from orchestrator.types import Grid


class Row(BaseModel):
    """Of a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Fit(Row):
    """What every file says of the clips that it was measured on."""

    format: Literal[1] = 1
    model: str
    revision: str
    """Fingerprint of the weights."""
    grids: tuple[Grid, ...] = Field(min_length=1)
    """Latent grids of the clips."""
    num_steps: int = Field(ge=1)
    solver: str
    shift: float = Field(gt=0)
    guidance: float
    num_clips: int = Field(ge=1)


AnyFit = TypeVar("AnyFit", bound=Fit)


@dataclass(frozen=True)
class Shelf(Generic[AnyFit]):
    """Of one kind of file."""

    kind: type[AnyFit]
    shipped: Path
    variable: str
    """Of the environment: the user's folder."""
    folder: str
    """Its name in the user's cache, where the variable is not set."""
    measure: str
    """The command that writes such files."""

    @property
    def user_folder(self) -> Path:
        if chosen := os.environ.get(self.variable):
            return Path(chosen)
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dvg" / self.folder

    def command(self, geometry: ModelGeometry) -> str:
        """What measures a fit of this model."""
        return f"{self.measure} {geometry.name}"

    def load(self, path: Path) -> AnyFit:
        """Raises ValueError, naming the file and what to do, when it is missing or no fit."""
        return read_model(self.kind, path, "fit", self.measure)

    def find(self, request: Request, file: str | None = None) -> AnyFit | None:
        """The fit in ``file``, whatever weights it is of, or the one of the request's weights that is nearest to it.

        The user's folder comes before what ships; then count solver, steps, shift, whether and how much is guided, and tokens.
        Raises ValueError for a broken file, one of another model, and where all fits are of other weights.
        """
        geometry = request.geometry
        if file is not None:
            fit = self.load(Path(file))
            if fit.model != geometry.name:
                told = f"fit {file!r} is of {fit.model}, not of {geometry.name}"
                raise ValueError(f"{told}: measure one with {self.command(geometry)}")
            return fit
        own = self._of(geometry)
        same = [(path, fit) for path, fit in own if not request.revision or fit.revision in ("", request.revision)]
        if own and not same:
            raise ValueError(
                f"the fit {str(own[0][0])!r} is of other weights of {geometry.name} ({own[0][1].revision}, not "
                f"{request.revision}): measure one with {self.command(geometry)} --weights, or name that file as fit to take it "
                "all the same"
            )
        place = {folder: number for number, folder in enumerate(self._folders)}

        def nearest(found: tuple[Path, AnyFit]) -> tuple[float, ...]:
            return place[found[0].parent], *_distance(request, found[1])

        return min(same, key=nearest)[1] if same else None

    @property
    def _folders(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys((self.user_folder, self.shipped)))

    def _of(self, geometry: ModelGeometry) -> list[tuple[Path, AnyFit]]:
        every = [(path, self.load(path)) for folder in self._folders for path in sorted(folder.glob("*.json"))]
        return [(path, fit) for path, fit in every if fit.model == geometry.name]


def _distance(request: Request, fit: Fit) -> tuple[float, ...]:
    """What a fit differs by, what matters most first."""
    geometry = request.geometry
    tokens = geometry.num_tokens(geometry.latent_grid(request.shape))
    return (
        fit.solver != (request.solver or geometry.solver),
        abs(fit.num_steps - request.num_steps),
        abs(fit.shift - geometry.full_shift),
        (fit.guidance > 1) != (request.guidance > 1),
        abs(fit.guidance - request.guidance),
        min(abs(geometry.num_tokens(grid) - tokens) for grid in fit.grids),
    )
