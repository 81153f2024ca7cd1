"""Where the lists of the suites are: VBench's own comes with the project, VBench-I2V's from its user."""

from __future__ import annotations

import functools
import gzip
import json
import os
import pathlib
from typing import Any

from orchestrator.suites import DIMENSIONS, I2V_DIMENSIONS, QUALITY_DIMENSIONS, Suite, entries_of, named

FULL_INFO = pathlib.Path(__file__).parents[1] / "experiments" / "prompts" / "VBench_full_info.json.gz"
NUM_ENTRIES = 946
I2V_VARIABLE = "VBENCH_I2V_DIR"
I2V_FOLDER = "vbench2_beta_i2v"
I2V_LISTS = ("vbench2_i2v_full_info.json", "i2v_full_info.json")
NUM_I2V_ENTRIES = 1118


def load_suite(name: str) -> Suite:
    """The suite of a name. Raises ValueError with the choices, or saying where VBench-I2V's files must lie."""
    return named(name, _whole)


def _whole(name: str) -> Suite:
    return _vbench() if name == "vbench" else i2v_suite(i2v_folder(), name.removeprefix("vbench-i2v-"))


@functools.cache
def _vbench() -> Suite:
    return Suite("vbench", _counted(entries_of(full_info(), DIMENSIONS, FULL_INFO.name), NUM_ENTRIES, FULL_INFO.name))


def full_info() -> Any:
    """VBench's ``VBench_full_info.json`` as its package has it."""
    return json.loads(gzip.decompress(FULL_INFO.read_bytes()))


def i2v_folder() -> pathlib.Path:
    """The user's copy of ``vbench2_beta_i2v``: where ``VBENCH_I2V_DIR`` says, here, or in VBench's cache."""
    cache = os.environ.get("VBENCH_CACHE_DIR") or pathlib.Path.home() / ".cache" / "vbench"
    told = os.environ.get(I2V_VARIABLE)
    places = [pathlib.Path(told)] if told else [pathlib.Path(I2V_FOLDER), pathlib.Path(cache) / I2V_FOLDER]
    for place in places:
        if any((place / name).is_file() for name in I2V_LISTS):
            return place.absolute()
    looked = ", ".join(str(place.absolute()) for place in places)
    raise ValueError(
        f"VBench-I2V's list is not part of VBench's package: get the folder {I2V_FOLDER} of the repository Vchitect/VBench "
        f"(with {I2V_LISTS[0]}), put its images under data/crop/<ratio>, and name it in {I2V_VARIABLE} (looked in {looked})"
    )


def i2v_suite(folder: pathlib.Path, ratio: str) -> Suite:
    """VBench-I2V as a folder has it. Raises ValueError for another number of entries, or images that are missing."""
    path = next(folder / name for name in I2V_LISTS if (folder / name).is_file())
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    entries = _counted(entries_of(data, (*I2V_DIMENSIONS, *QUALITY_DIMENSIONS), str(path)), NUM_I2V_ENTRIES, str(path))
    images = folder / "data" / "crop" / ratio
    names = list(dict.fromkeys(entry.image for entry in entries))
    missing = [str(name) for name in names if name is None or not (images / name).is_file()]
    if missing:
        raise ValueError(f"{images}: {len(missing)} of {len(names)} images are missing, the first {missing[0]!r}")
    return Suite(f"vbench-i2v-{ratio}", entries, "vbench-i2v", folder=str(images))


def _counted(entries: tuple[Any, ...], number: int, where: str) -> tuple[Any, ...]:
    if len(entries) != number:
        raise ValueError(f"{where} has {len(entries)} entries; the official list has {number}")
    return entries
