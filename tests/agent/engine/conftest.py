"""Fixtures: listening sockets that outlive engines, and clients."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.engine.harness import Client, Listeners


@pytest.fixture
def listeners(tmp_path: Path) -> Iterator[Listeners]:
    kept = Listeners(tmp_path)
    yield kept
    kept.close()


@pytest.fixture
def client(listeners: Listeners) -> Iterator[Client]:
    opened = Client(listeners.port)
    yield opened
    opened.close()
