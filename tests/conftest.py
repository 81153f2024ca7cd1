"""How the whole suite is run: what starts clusters in one process, one after the other, and all the rest beside it."""

from __future__ import annotations

import os
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported: every process computes on one core

FOLDERS = ("ray", "dist", "gpu", "vbench")
"""Their files come in this order, and before those of all other folders."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: FOLDERS.index(item.path.parent.name) if item.path.parent.name in FOLDERS else len(FOLDERS))


class FromBothEnds(LoadFileScheduling):  # type: ignore[misc]
    """Files by xdist: the first process takes them from the front, the others from the back, until they meet."""

    def _split_scope(self, nodeid: str) -> str:
        """A file; those that need a GPU are one, as they would not fit beside each other."""
        file: str = super()._split_scope(nodeid)
        return "gpu" if file.startswith("tests/gpu/") else file

    def _assign_work_unit(self, node: Any) -> None:
        if node is not self.nodes[0]:
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> FromBothEnds:
    config.option.loadscopereorder = False
    return FromBothEnds(config, log)
