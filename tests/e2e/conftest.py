"""Fleets for the end-to-end tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.brokers import start_mosquitto, start_nats
from tests.e2e.harness import Fleet

BROKERS = {"nats": start_nats, "mosquitto": start_mosquitto}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(params=BROKERS)
def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on a broker of its own that lets everybody in; once on each kind of broker."""
    with Fleet(tmp_path, BROKERS[request.param](tmp_path)) as fleet:
        yield fleet


@pytest.fixture
def mosquitto_fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet on a broker of its own that lets everybody in."""
    with Fleet(tmp_path, start_mosquitto(tmp_path)) as fleet:
        yield fleet


@pytest.fixture
def default_fleet(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet as `fleet serve` makes it without options."""
    with Fleet(tmp_path, "nats") as fleet:
        yield fleet
