"""One gang of four ranks for all tests that do not break it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.dist.gang import Gang


@pytest.fixture(scope="package")
def gang() -> Iterator[Gang]:
    made = Gang(4)
    yield made
    made.close()
