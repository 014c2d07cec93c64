"""Fixtures: listening sockets that outlive engines, engines that serve, and clients."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.engine.harness import Client, Engine, Listeners, Release, engine
from tests.agent.engine.models import onnx_classifier


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


@pytest.fixture
def serving(tmp_path: Path, listeners: Listeners) -> Iterator[Engine]:
    """An engine that serves digits@7 on `listeners`."""
    with engine(listeners) as started:
        started.serve(Release(tmp_path / "release", onnx_classifier(), version=7))
        yield started


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Listeners]:
    """Where one engine serves digits@7 to all tests of a module that only ask."""
    folder = tmp_path_factory.mktemp("shared")
    kept = Listeners(folder)
    with engine(kept) as started:
        started.serve(Release(folder / "release", onnx_classifier(), version=7))
        yield kept
    kept.close()


@pytest.fixture(scope="module")
def asker(shared: Listeners) -> Iterator[Client]:
    """A client of `shared`."""
    opened = Client(shared.port)
    yield opened
    opened.close()
