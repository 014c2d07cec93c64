"""An engine that serves digits@7, for all tests of a module."""

from collections.abc import Iterator

import pytest

from tests.agent.engine.conftest import listeners, shared
from tests.agent.engine.harness import Listeners

__all__ = ["api", "listeners", "shared"]


@pytest.fixture
def api(shared: Listeners) -> Iterator[str]:
    yield f"unix:{shared.path}"
