"""What tells weights from others of the same name: files, and folders of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from experiments.vbench import weights
from experiments.vbench.weights import BERT, CLIP_B, DINO_CODE, END_BYTES, fingerprint, roots
from experiments.vbench.work import measuring


@pytest.fixture
def where(tmp_path: Path) -> dict[str, Path]:
    return roots({"VBENCH_CACHE_DIR": str(tmp_path), "HF_HOME": str(tmp_path / "hf"), "TORCH_HOME": str(tmp_path / "torch")})


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """DINO's code, which is a folder."""
    folder = tmp_path / "dino_model/facebookresearch_dino_main"
    folder.mkdir(parents=True)
    (folder / "hubconf.py").write_text("def dino_vitb16(): pass\n")
    (folder / "vision_transformer.py").write_text("depth = 12\n")
    return folder


def rewritten(folder: Path) -> None:
    path = folder / "vision_transformer.py"
    path.write_text("depth = 24\n")
    os.utime(path, ns=(0, 1))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "other content of the same size": rewritten,
    "another file": lambda folder: (folder / "utils.py").write_text(""),
    "one file less": lambda folder: (folder / "hubconf.py").unlink(),
    "a file of another name": lambda folder: (folder / "hubconf.py").rename(folder / "hub.py"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_folder_of_weights_is_another_when_its_files_are(how: str, code: Path, where: dict[str, Path]) -> None:
    before = fingerprint([DINO_CODE], where)
    assert before == fingerprint([DINO_CODE], where)
    CHANGES[how](code)
    assert fingerprint([DINO_CODE], where) != before


def test_what_a_run_leaves_in_a_folder_does_not_make_it_another(code: Path, where: dict[str, Path]) -> None:
    before = fingerprint([DINO_CODE], where)
    (code / "__pycache__").mkdir()
    (code / "__pycache__/hubconf.pyc").write_text("compiled")
    assert fingerprint([DINO_CODE], where) == before


def test_a_folder_whose_files_are_links_is_known_by_what_they_lead_to(tmp_path: Path, where: dict[str, Path]) -> None:
    snapshot = tmp_path / "hf/hub/models--bert-base-uncased/snapshots/abc"
    snapshot.mkdir(parents=True)
    blob = tmp_path / "blob"
    blob.write_text("one")
    (snapshot / "model.safetensors").symlink_to(blob)
    (snapshot / "gone").symlink_to(tmp_path / "nowhere")
    before = fingerprint([BERT], where)
    blob.write_text("other")
    assert before != fingerprint([BERT], where)


def test_a_file_is_read_again_only_when_it_was_touched(
    tmp_path: Path, where: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "clip_model/ViT-B-32.pt"
    path.parent.mkdir()
    path.write_bytes(b"a" * 3 * END_BYTES)
    before = fingerprint([CLIP_B], where)
    opened: list[object] = []
    weights._mark.cache_clear()
    open_path = Path.open
    monkeypatch.setattr(Path, "open", lambda self, *rest: opened.append(self) or open_path(self, *rest))
    assert fingerprint([CLIP_B], where) == fingerprint([CLIP_B], where) == before
    assert opened == [path]
    os.utime(path, ns=(0, 1))
    assert fingerprint([CLIP_B], where) == before
    assert opened == [path, path]


def test_other_code_of_dino_makes_other_keys_for_subject_consistency(code: Path, tmp_path: Path) -> None:
    environment = {"VBENCH_CACHE_DIR": str(tmp_path), "TORCH_HOME": str(tmp_path / "torch")}
    before = measuring("0.1.5", ("subject_consistency",), environment)
    rewritten(code)
    assert measuring("0.1.5", ("subject_consistency",), environment).weights != before.weights
