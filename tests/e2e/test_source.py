"""A site's cache beside the broker: a download goes on whatever becomes of either."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.caches import Cache, certificate
from tests.e2e.harness import Agent, Fleet, wait_for
from tests.e2e.models import MEBIBYTE, write_big_model
from tests.e2e.wiretap import Wiretap

LARGEST_CHUNK = 256 * 1024


class Site:
    """A fleet with one device, and a cache that has all of a big release's transfers."""

    def __init__(self, fleet: Fleet, home: Path, cert: Path) -> None:
        self.fleet = fleet
        self.content = write_big_model(home / "big.onnx", 12).read_bytes()
        self.cache = Cache({}, cert)
        source = f"{self.cache.url}/models/{{digest}}"
        self.release = fleet.push(home / "big.onnx", "--source", source)
        stick = home / "big.ffb"
        fleet.command("model", "export", self.release, "--out", str(stick))
        with tarfile.open(stick) as bundle:
            self.cache.files = {
                name: bundle.extractfile(name).read()  # type: ignore[union-attr]
                for name in bundle.getnames()
            }
        self.agent: Agent = fleet.agent("cam-1", transfer={"source_ca_file": str(cert)})
        fleet.wait_until_online(self.agent)

    def roll_out(self) -> int:
        """Bring the release to the device; return the bytes of the model the broker carried."""
        with Wiretap(self.fleet.broker.url, "farflung/a/#") as tap:  # type: ignore[union-attr]
            self.fleet.rollout(self.release)
        self.fleet.wait_until_serving(self.agent, self.release)
        # All but the model is small.
        return max(tap.sent_bytes.values())


@pytest.fixture
def site(mosquitto_fleet: Fleet, tmp_path: Path) -> Iterator[Site]:
    site = Site(mosquitto_fleet, tmp_path, certificate(tmp_path))
    with site.cache:
        yield site


def test_a_model_comes_from_the_cache_and_none_of_it_through_the_broker(site: Site) -> None:
    by_broker = site.roll_out()

    assert by_broker < 64 * 1024
    assert site.cache.sent_bytes >= len(site.content)


def test_a_cache_that_dies_midway_loses_no_chunk(site: Site) -> None:
    site.cache.die_after = 5 * MEBIBYTE

    by_broker = site.roll_out()

    missing = len(site.content) - 5 * MEBIBYTE
    assert missing <= by_broker <= missing + LARGEST_CHUNK
    assert "not asked for 30 s, the broker is" in site.agent.said()


def test_a_cache_that_lies_is_left_at_its_first_wrong_chunk(site: Site) -> None:
    site.cache.manner = "wrong"

    by_broker = site.roll_out()

    assert by_broker >= len(site.content)
    assert "sent wrong bytes; not asked for 30 s" in site.agent.said()
    assert len(site.cache.requests) == 1


def test_a_broker_that_stops_in_the_middle_does_not_stop_a_cache(site: Site) -> None:
    fleet = site.fleet
    fleet.start_rollout(site.release)
    wait_for("the cache to be asked", lambda: site.cache.requests)

    fleet.broker.stop()  # type: ignore[union-attr]

    wait_for("all of it on the disk", lambda: "fetched " in site.agent.said())
    assert site.cache.sent_bytes >= len(site.content)
