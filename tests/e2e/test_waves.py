"""The benches `fanout` and `resume` in short: real brokers, real controllers, and deaths."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fleet.shell.blobs import CHUNK_BYTES
from scripts.benches.fanout import Site
from scripts.benches.resume import WINDOW_CHUNKS, one_pull
from tests.brokers import Broker
from tests.e2e.conftest import BROKERS
from tests.e2e.models import MEBIBYTE


@pytest.mark.parametrize("kind", BROKERS)
@pytest.mark.parametrize("shared", [True, False])
def test_a_wave_costs_one_publish_unless_no_topic_may_be_shared(
    kind: str, shared: bool, tmp_path: Path
) -> None:
    with Site(tmp_path / "site", kind, 8, shared=shared) as site:
        run = site.rollout(4)

    copies = run.published / (4 * MEBIBYTE)
    assert site.completed == 1.0
    assert copies <= 1.3 if shared else 8 <= copies <= 8.5


@pytest.mark.parametrize("start", BROKERS.values(), ids=BROKERS)
def test_a_pull_that_dies_again_and_again_costs_little_more_than_the_file(
    start: Callable[[Path], Broker], tmp_path: Path
) -> None:
    kills, size = 5, 16 * MEBIBYTE

    received, published, _ = one_pull(tmp_path, start(tmp_path), seed=3, kills=kills, size=size)

    assert received <= 1.05 * size
    assert published <= size + kills * WINDOW_CHUNKS * CHUNK_BYTES
