"""What comes in is counted once, acknowledged when it is stored, and believed if it can be true."""

import errno
import random
import time
import zlib
from pathlib import Path

import pytest

from fleet.core.plausible import MAX_CLASSES, MAX_COUNT
from fleet.core.query import Query
from fleet.ingest import MAX_BUFFERED, MAX_OF_ONE, Ingest
from fleet.shell.telemetry import Telemetry
from tests.fleet.samples import sample_manifest
from wire.codec import DecodeError
from wire.packing import DICTIONARY, pack, unpack
from wire.telemetry import Batch, DeviceEvent, Health, ScoreWindow

RELEASE = sample_manifest(1)
NOW = 1_790_000_000
DAY_S = 86_400


def window(seq: int, device: str = "cam-1", boot: str = "b", **fields: object) -> ScoreWindow:
    values = {
        "device": device, "boot": boot, "seq": seq, "model": RELEASE.model,
        "version": RELEASE.version, "manifest": RELEASE.digest,
        "variant": RELEASE.variants[0].name, "start": NOW - 60, "end": NOW, "requests": seq,
        **fields,
    }  # fmt: skip
    return ScoreWindow.model_validate(values)


def event(seq: int, device: str = "cam-1") -> DeviceEvent:
    return DeviceEvent(device=device, boot="b", seq=seq, at=NOW, kind="gap", text="lost")


class Side:
    """The controller's side, on a real database that can be opened again."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = float(NOW)
        self.open()

    def open(self) -> None:
        self.telemetry = Telemetry(self.path)
        self.ingest = Ingest(self.telemetry, lambda window: window.manifest == RELEASE.digest)

    def reopen(self) -> None:
        self.telemetry.close()
        self.open()

    def take(self, *items: ScoreWindow | DeviceEvent, complete: bool = True) -> bool:
        batch = Batch(
            device=items[0].device,
            windows=tuple(item for item in items if isinstance(item, ScoreWindow)),
            events=tuple(item for item in items if isinstance(item, DeviceEvent)),
            complete=complete,
        )
        return self.ingest.take(batch, pack(batch), self.now)

    def requests(self, device: str | None = None) -> int:
        return sum(totals.requests for totals in self.telemetry.totals(device))


@pytest.fixture
def side(tmp_path: Path) -> Side:
    return Side(tmp_path / "telemetry.db")


def test_what_is_stored_is_acknowledged_and_a_repeat_only_again(side: Side) -> None:
    side.take(window(1), window(2))
    first = side.ingest.commit()
    side.take(window(1), window(2), window(3))
    side.take(window(3))
    second = side.ingest.commit()

    assert (first, second) == ({"cam-1": 2}, {"cam-1": 3})
    assert side.requests() == 1 + 2 + 3
    assert side.ingest.dropped["repeat"] == 2
    assert side.ingest.commit() == {}


def test_nothing_is_acknowledged_that_the_disk_refused(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*rest: object) -> None:
        raise OSError(errno.ENOSPC, "no space")

    side.take(window(1))
    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "commit", full)
        with pytest.raises(OSError, match="no space"):
            side.ingest.commit()

    assert side.ingest.ledger("cam-1").acked == 0
    assert side.ingest.commit() == {"cam-1": 1}
    assert side.requests() == 1


def test_how_far_it_came_is_known_after_a_restart(side: Side) -> None:
    side.take(window(1), window(4))
    side.take(window(9), complete=False)
    side.ingest.commit()
    side.telemetry.merge(NOW)

    side.reopen()
    side.take(window(4), window(9), window(10))

    assert side.ingest.commit() == {"cam-1": 10}
    assert side.requests() == 1 + 4 + 9 + 10
    assert side.ingest.ledger("cam-1").missing == 2 + 4, "2, 3 and 5 to 8"


def test_an_event_that_comes_twice_is_told_and_kept_once(side: Side) -> None:
    side.take(event(1), complete=False)
    told = side.ingest.events()
    side.ingest.commit()
    side.take(event(1), window(2))
    side.ingest.commit()
    side.take(event(1))
    again = side.ingest.events()
    side.ingest.commit()

    assert [each.text for each in told] == ["lost"]
    assert again == []
    assert len(side.telemetry.events("cam-1")) == 1


def test_duplicates_and_disorder_between_restarts_leave_exact_sums(side: Side) -> None:
    rng = random.Random(7)
    sent: dict[str, list[list[ScoreWindow]]] = {}
    for device in ("cam-1", "cam-2", "cam-3"):
        numbers = [window(seq, device, boot=f"b{seq // 40}") for seq in range(1, 121)]
        sent[device] = [numbers[at : at + 5] for at in range(0, 120, 5)]

    for _ in range(300):
        device = rng.choice(sorted(sent))
        acked = side.ingest.ledger(device).acked
        later = [batch for batch in sent[device] if batch[-1].seq > acked]
        old = [batch for batch in sent[device] if batch[-1].seq <= acked]
        match rng.randrange(6):
            case 0 if old:
                side.take(*rng.choice(old))
            case 1 if len(later) > 1:
                side.take(*rng.choice(later[1:]), complete=False)
            case 2:
                side.reopen()
            case 3:
                side.telemetry.merge(side.now)
            case _ if later:
                # All that the device holds up to there, or a part of it twice.
                count = rng.randint(1, 2)
                side.take(*(item for batch in later[:count] for item in batch))
        if rng.random() < 0.7:
            side.ingest.commit()
    for device, batches in sent.items():
        side.take(*(item for batch in batches for item in batch))
        side.ingest.commit()
        assert side.ingest.ledger(device).acked == 120
        assert side.requests(device) == sum(range(1, 121))
        assert side.ingest.ledger(device).missing == 0


@pytest.mark.parametrize(
    "years", [-56, -1, 1, 80], ids=["1970", "a year ago", "in a year", "in 2100"]
)
def test_a_clock_that_is_years_off_costs_no_count(side: Side, years: int) -> None:
    at = max(60, NOW + years * 365 * DAY_S)
    side.take(window(1, start=at - 60, end=at), window(2))
    side.ingest.commit()
    side.telemetry.merge(NOW)
    side.telemetry.prune(NOW)

    [told] = side.telemetry.slices(Query(RELEASE.model, since=NOW - DAY_S, until=NOW + DAY_S))

    assert side.requests() == 3
    assert told.totals.requests == 3, "it is counted when it came"
    assert (told.totals.since, told.totals.until) == (NOW - 60, NOW)
    assert side.ingest.clock_odd == 1


@pytest.mark.parametrize(
    ("why", "fields"),
    [
        ("order", {"start": NOW + 1}),
        ("order", {"first": 9}),
        ("size", {"requests": MAX_COUNT + 1}),
        ("size", {"latency": {"bins": {3: 2**53}}}),
        ("size", {"drift": {0: [2**53]}}),
        ("estimate", {"estimate": {"samples": 1, "sum_p": 2**53}}),
        ("labels", {"labelled": 1, "correct": 2}),
        ("classes", {"predicted": dict.fromkeys(range(MAX_CLASSES + 1), 1)}),
        ("release", {"manifest": "sha256:" + "0" * 64}),
    ],
)
def test_what_cannot_be_true_changes_nothing_but_a_counter(
    side: Side, why: str, fields: dict[str, object]
) -> None:
    side.take(window(1))
    side.take(window(2, **fields))

    acked = side.ingest.commit()
    side.telemetry.merge(NOW)

    assert acked == {"cam-1": 2}, "or the device would send it for ever"
    assert side.requests() == 1
    assert dict(side.ingest.dropped) == {why: 1}


def test_one_device_cannot_crowd_out_the_others(side: Side) -> None:
    many = [window(seq, "loud") for seq in range(1, 101)]

    taken = sum(side.take(*many) for _ in range(MAX_BUFFERED // 100))
    other = side.take(window(1, "quiet"))

    assert taken == MAX_OF_ONE // 100
    assert other
    assert side.ingest.dropped["flood"] == MAX_BUFFERED - MAX_OF_ONE


def test_what_many_devices_send_at_once_is_bounded_too(side: Side) -> None:
    many = MAX_OF_ONE // 500
    taken = [
        side.take(*(window(seq, f"cam-{number}") for seq in range(1, 501)))
        for number in range(MAX_BUFFERED // MAX_OF_ONE + 1)
        for _ in range(many)
    ]

    assert taken.count(False) == many
    assert side.ingest.dropped["flood"] == MAX_OF_ONE


def test_a_bomb_is_refused_before_it_goes_off() -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9, zdict=DICTIONARY)
    bomb = b"\x01" + deflater.compress(bytes(200_000_000)) + deflater.flush()
    began = time.process_time()

    with pytest.raises(DecodeError):
        unpack(bomb)

    assert len(bomb) < 250_000
    assert time.process_time() - began < 1


def test_a_batch_that_speaks_for_another_device_is_none() -> None:
    honest = Batch(device="cam-1", windows=(window(1),))
    forged = Batch.model_construct(device="cam-2", windows=(window(1),), health=(), events=())

    assert unpack(pack(honest)) == honest
    assert {each.device for each in unpack(pack(forged)).windows} == {"cam-2"}, (
        "items have no device of their own: whose topic it is, is who speaks"
    )


def test_health_is_no_window(side: Side) -> None:
    health = Health(
        device="cam-1", boot="b", seq=1, at=NOW, uptime_s=1, cpu_percent=1, load_1m=1,
        memory_total_bytes=1, memory_available_bytes=1, disk_free_bytes=1, agent_cpu_percent=0,
        agent_rss_bytes=1,
    )  # fmt: skip
    batch = Batch(device="cam-1", health=(health,), complete=True)

    side.ingest.take(batch, pack(batch), side.now)

    assert side.ingest.commit() == {"cam-1": 1}
    assert side.telemetry.health("cam-1") == [health]
    assert side.telemetry.totals() == []
