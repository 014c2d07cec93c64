"""A source that lies and a disk that fails, through a real broker, against a real agent."""

import errno
import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest
import zstandard

from tests.brokers import free_port, start_mosquitto
from tests.e2e.harness import SAMPLES, Agent, wait_for
from tests.e2e.source import DEVICE, PUBLIC_KEY, Release, Source, honestly, release_of
from wire.ids import digest_hex
from wire.transfer import ChunkFrame
from wire.twin import Phase, Reason

HUGE = 2**63
FATES = ("lose", "twice", "late", "cut", "flip", "long", "stray", *["good"] * 14)
BOMB_BYTES = 256 * 1024 * 1024


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Agent, Source]]:
    """An agent that serves digits@1 and digits-b@1, and the source that it depends on."""
    home = tmp_path_factory.mktemp(DEVICE)
    with start_mosquitto(home) as broker, Source(broker.url) as source:
        config = {
            "device": DEVICE,
            "data_dir": str(home / "data"),
            "broker": {"url": broker.url},
            "controller": {"public_keys": [PUBLIC_KEY]},
            "api": {"tcp": f"127.0.0.1:{(port := free_port())}"},
            "engine": {"runtimes": ["onnxruntime"]},
            "telemetry": {"window_s": 1, "health_s": 1},
            "transfer": {"reserve_mb": 0},
        }
        agent = Agent(DEVICE, home, port, config, "tests.e2e.faulty_agent")
        try:
            models = [release_of(SAMPLES / "digits-1", 1, name) for name in ("digits", "other")]
            rollout = source.want(*models)
            for release in models:
                assert source.wait_until_over(rollout, release.model).phase is Phase.COMMITTED
            source.wait_until_serving({"digits": 1, "other": 1})
            yield agent, source
        finally:
            agent.kill()
            print(agent.said()[-8000:])


@pytest.fixture
def agent(scene: tuple[Agent, Source]) -> Agent:
    return scene[0]


@pytest.fixture
def source(scene: tuple[Agent, Source]) -> Iterator[Source]:
    source = scene[1]
    yield source
    source.spoil = honestly


def newer(source: Source, packed: bytes | None = None) -> Release:
    """Return a release of the digits that the device has never seen."""
    version = source.version = source.version + 1
    return release_of(SAMPLES / f"digits-{2 + version % 2}", version, packed=packed)


def check_untouched(agent: Agent, source: Source, before: dict[str, int]) -> None:
    """See that what served still serves, and that nothing is left of what was tried."""
    assert source.serving() == before
    wait_for("an empty partial/", lambda: not list((agent.data_dir / "partial").iterdir()), 30)
    journal = json.loads((agent.data_dir / "journal.json").read_bytes())["journal"]
    installed = [*journal["champions"].values(), *journal["previous"].values()]
    kept = {digest_hex(digest) for each in installed for digest in each["files"]}
    blobs = agent.data_dir / "blobs"
    wait_for("kept blobs alone", lambda: {path.name for path in blobs.iterdir()} == kept, 30)


def test_a_line_that_mangles_every_third_frame_only_slows_it_down(source: Source) -> None:
    dice = random.Random(7)
    held: list[bytes] = []

    def mangle(frame: ChunkFrame) -> Iterable[bytes]:
        body = frame.encode()
        match dice.choice(FATES):
            case "lose":
                return []
            case "twice":
                return [body, body]
            case "late":
                held.append(body)
                return []
            case "cut":
                return [body[: dice.randrange(len(body))]]
            case "flip":
                place = dice.randrange(len(body))
                return [body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]]
            case "long":
                return [body + bytes(2_000_000)]
            case "stray":
                return [ChunkFrame(frame.part, frame.number + 2**31, frame.payload).encode()]
        late, held[:] = held[:], []
        return [body, *late]

    source.spoil = mangle
    release = newer(source)

    report = source.wait_until_over(source.want(release))

    assert report.phase is Phase.COMMITTED
    source.wait_until_serving({"digits": release.manifest.version, "other": 1})
    wait_for("the count of bad frames", lambda: source.health and source.health.chunks_bad > 0, 30)


def test_poison_is_counted_and_asked_for_again_with_patience(source: Source) -> None:
    release = newer(source)
    weights = release.shipments[1].offer
    lies: list[int] = []

    def poison(frame: ChunkFrame) -> Iterable[bytes]:
        if frame.part == "index" or frame.number < 4 or len(lies) == 20:
            return [frame.encode()]
        lies.append(frame.number)
        return [replace(frame, payload=bytes(len(frame.payload))).encode()]

    source.spoil = poison
    bad_before = source.health.chunks_bad if source.health else 0
    report = source.wait_until_over(source.want(release))

    assert report.phase is Phase.COMMITTED
    assert source.asked[weights.index] <= 6
    wait_for("a count", lambda: source.health and source.health.chunks_bad >= bad_before + 20, 30)


def test_a_wrong_index_is_never_believed(agent: Agent, source: Source) -> None:
    before = source.serving()
    release = newer(source)

    def forge(frame: ChunkFrame) -> Iterable[bytes]:
        wrong = replace(frame, payload=bytes(len(frame.payload)))
        return [(wrong if frame.part == "index" else frame).encode()]

    source.spoil = forge
    report = source.wait_until_over(source.want(release))

    assert (report.phase, report.reason) == (Phase.TIMED_OUT, Reason.NO_PROGRESS)
    assert source.asked[release.shipments[0].offer.index] <= 6
    check_untouched(agent, source, before)


def test_an_offer_of_more_bytes_than_any_disk_has_is_no_order(agent: Agent, source: Source) -> None:
    before = source.serving()
    release = newer(source)

    rollout = source.want(release, claim={"file_bytes": HUGE, "transfer_bytes": HUGE})

    def refused() -> bool:
        told = source.reported.refusals if source.reported else ()
        return any(str(HUGE) in text for text in told)

    wait_for("the refusal", refused, 30)
    assert source.reported is not None
    assert all(each.rollout != rollout for each in source.reported.deployments)
    check_untouched(agent, source, before)


def test_a_bomb_ends_at_the_size_that_was_promised(agent: Agent, source: Source) -> None:
    before = source.serving()
    bomb = zstandard.compress(bytes(BOMB_BYTES))
    assert source.health is not None

    report = source.wait_until_over(source.want(newer(source, packed=bomb)))

    assert (report.phase, report.reason) == (Phase.FAILED, Reason.BAD_ARTIFACT)
    assert "unpacked, got more" in report.detail
    check_untouched(agent, source, before)


def test_a_withdrawn_release_leaves_in_the_middle_of_its_transfer(
    agent: Agent, source: Source
) -> None:
    before = source.serving()
    release = newer(source)
    seen: list[ChunkFrame] = []

    def half(frame: ChunkFrame) -> Iterable[bytes]:
        seen.append(frame)
        return [frame.encode()] if len(seen) < 12 else []

    source.spoil = half
    rollout = source.want(release)
    wait_for("half of it", lambda: len(seen) >= 12, 30)
    source.withdraw("digits")

    report = source.wait_until_over(rollout)

    assert (report.phase, report.reason) == (Phase.SUPERSEDED, Reason.WITHDRAWN)
    check_untouched(agent, source, before)


def test_two_models_at_once_both_arrive(agent: Agent, source: Source) -> None:
    digits = newer(source)
    other = release_of(SAMPLES / "digits-3", digits.manifest.version, "other")

    rollout = source.want(digits, other)

    for model in ("digits", "other"):
        assert source.wait_until_over(rollout, model).phase is Phase.COMMITTED
    version = digits.manifest.version
    source.wait_until_serving({"digits": version, "other": version})
    check_untouched(agent, source, {"digits": version, "other": version})


def test_what_vanished_from_the_disk_is_fetched_again(agent: Agent, source: Source) -> None:
    release = newer(source)
    labels = release.manifest.labels
    assert labels is not None
    lost = agent.data_dir / "blobs" / digest_hex(labels.digest)
    lost.unlink()

    report = source.wait_until_over(source.want(release))

    assert report.phase is Phase.COMMITTED
    assert lost.exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [(errno.ENOSPC, Reason.NO_SPACE), (errno.EIO, Reason.IO_ERROR)],
    ids=["full", "broken"],
)
def test_a_disk_that_fails_costs_the_rollout_alone(
    agent: Agent, source: Source, code: int, reason: Reason
) -> None:
    before = source.serving()
    order = agent.home / "fault"

    for skip in range(13):  # every operation until the first file is in its slot
        order.write_text(f"{code} {skip}")
        report = source.wait_until_over(source.want(newer(source)))

        assert (report.phase, report.reason) == (Phase.FAILED, reason), f"after {skip} operations"
        assert not order.exists()
        check_untouched(agent, source, before)
