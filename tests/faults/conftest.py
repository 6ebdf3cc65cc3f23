"""A lab for each test, which is gone with all its processes afterwards."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.lab import Lab


@pytest.fixture
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    # Its name is short, because it is part of sockets' addresses.
    opened = Lab(tmp_path_factory.mktemp("l") / "l")
    yield opened
    opened.close()
