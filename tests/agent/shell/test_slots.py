import errno
import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from agent.core.events import (
    BlobRefused,
    BlobStored,
    Event,
    ManifestRead,
    TransferFailed,
    TransferOpened,
)
from agent.core.state import Deployment, Installed, Journal
from agent.errors import DeviceError
from agent.shell.slots import Slots
from agent.shell.slots import slots as slots_module
from tests.agent.shell.desk import CHUNK, Desk, index_of, noise, offer_of
from wire.codec import encode
from wire.ids import digest_hex, digest_of
from wire.manifest import File, Manifest, TensorSpec, Variant
from wire.transfer import Offer
from wire.twin import Desired, Phase, Reason

STUCK_S = slots_module.CLOSE_S
"""What a stop takes that waits for something that does not end."""

DIGEST = digest_of(b"release")
JOURNAL = Journal(
    desired=Desired(device="pi-1", revision=4),
    champions={"digits": Installed("digits", 1, DIGEST, "onnx-int8", (DIGEST,), "r-1", 1000)},
    deployments={
        "digits": Deployment(
            "digits", 2, DIGEST, "r-2", "rollout", Phase.FAILED, 5.25, reason=Reason.HUNG
        )
    },
    crashes={"digits": 2},
    commands=("c-1", "c-2"),
)
OTHER = Journal(crashes={"digits": 3})


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "data")
    yield desk
    desk.slots.close()


# ---- journal


def test_a_journal_comes_back_as_it_was(desk: Desk) -> None:
    assert desk.slots.load_journal() == Journal()

    desk.slots.save_journal(OTHER)
    desk.slots.save_journal(JOURNAL)

    assert desk.slots.load_journal() == JOURNAL
    assert desk.slots.flash_bytes_written > 500


@pytest.mark.parametrize(
    "damage",
    [b"", b"\0" * 900, b'{"version":1,"journal":{"cra', b"[]", b'{"version":1,"journal":{"x":'],
    ids=["empty", "zeros", "torn", "other", "cut"],
)
def test_a_damaged_journal_is_put_aside_for_the_copy_before_it(
    desk: Desk, tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    desk.slots.save_journal(JOURNAL)
    desk.slots.save_journal(OTHER)
    path = tmp_path / "data" / "journal.json"
    path.write_bytes(damage)

    journal = desk.slots.load_journal()

    assert journal == JOURNAL
    assert (tmp_path / "data" / "journal.bad").read_bytes() == damage
    (record,) = caplog.records
    assert "going on from the copy before it" in record.getMessage()
    assert "\n" not in record.getMessage()
    desk.slots.save_journal(OTHER)
    assert desk.slots.load_journal() == OTHER


def test_a_power_cut_between_the_two_renames_leaves_the_copy_before(
    desk: Desk, tmp_path: Path
) -> None:
    desk.slots.save_journal(JOURNAL)
    data = tmp_path / "data"
    (data / "journal.json").replace(data / "journal.prev.json")

    assert desk.slots.load_journal() == JOURNAL


def test_without_any_readable_journal_the_agent_starts_empty(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "data" / "journal.json").write_bytes(b"\0")
    (tmp_path / "data" / "journal.prev.json").write_bytes(b"\xff")

    assert desk.slots.load_journal() == Journal()


def test_a_journal_of_a_later_version_is_read_as_far_as_it_is_understood(
    desk: Desk, tmp_path: Path
) -> None:
    desk.slots.save_journal(JOURNAL)
    path = tmp_path / "data" / "journal.json"
    text = path.read_text().replace('"version":1', '"version":9', 1)
    path.write_text(text.replace('"crashes":', '"moods":{"a":1},"crashes":'))

    assert desk.slots.load_journal() == JOURNAL


def test_a_second_agent_on_the_same_directory_is_turned_away(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match=f"another agent \\(process {os.getpid()}\\) uses it"):
        Slots(tmp_path / "data", 0, desk.events.put)


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DeviceError, match=r"expected a directory to write in, got Not a directory"):
        Slots(tmp_path / "file" / "data", 0, lambda _: None)


# ---- transfers


def test_a_complete_transfer_becomes_a_blob(desk: Desk, tmp_path: Path) -> None:
    data = noise(3 * CHUNK + 100)
    offer = offer_of(data)

    assert desk.open(offer) == TransferOpened(offer.transfer, b"", frozenset())
    desk.fill(offer, data)
    desk.slots.finish(offer)

    assert desk.next() == BlobStored(offer.file)
    assert desk.slots.blobs() == {offer.file}
    assert desk.slots.blob_path(offer.file).read_bytes() == data
    assert list((tmp_path / "data" / "partial").iterdir()) == []
    assert desk.slots.flash_bytes_written >= len(data)


def test_an_empty_file_is_a_file_too(desk: Desk) -> None:
    assert desk.slots.blob_path(desk.store(b"")).read_bytes() == b""


def test_a_reopened_transfer_counts_only_bytes_that_hash_right(desk: Desk, tmp_path: Path) -> None:
    data = noise(5 * CHUNK)
    offer = offer_of(data)
    desk.open(offer)
    desk.slots.write_index(offer.transfer, index_of(data))
    for number in (0, 1, 3):
        desk.slots.write_chunk(
            offer.transfer, number * CHUNK, data[number * CHUNK : (number + 1) * CHUNK]
        )
    desk.slots.close_transfer(offer.transfer)
    part = tmp_path / "data" / "partial" / f"{digest_hex(offer.transfer)}.part"
    with part.open("r+b") as file:
        file.seek(CHUNK + 7)
        file.write(b"\0")

    opened = desk.open(offer)

    assert opened == TransferOpened(offer.transfer, index_of(data), frozenset({0, 3}))


def test_a_damaged_index_is_not_trusted(desk: Desk, tmp_path: Path) -> None:
    data = noise(2 * CHUNK)
    offer = offer_of(data)
    desk.fill(offer, data)
    index = tmp_path / "data" / "partial" / f"{digest_hex(offer.transfer)}.index"
    index.write_bytes(b"\0" * index.stat().st_size)

    assert desk.open(offer) == TransferOpened(offer.transfer, b"", frozenset())


def test_an_agent_killed_in_the_middle_of_a_download_resumes_it(tmp_path: Path) -> None:
    data = noise(64 * CHUNK)
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "data")], stdout=subprocess.PIPE
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"half\n"
        child.send_signal(signal.SIGKILL)

    desk = Desk(tmp_path / "data")
    opened = desk.open(offer_of(data))

    assert opened.present == frozenset(range(32))
    for number in range(32, 64):
        desk.slots.write_chunk(
            opened.transfer, number * CHUNK, data[number * CHUNK : (number + 1) * CHUNK]
        )
    desk.slots.finish(offer_of(data))
    assert desk.next() == BlobStored(digest_of(data))
    desk.slots.close()


WRITER = """
import sys, time
from pathlib import Path
from tests.agent.shell.test_slots import CHUNK, Desk, index_of, noise, offer_of
desk = Desk(Path(sys.argv[1]))
data = noise(64 * CHUNK)
offer = offer_of(data)
desk.open(offer)
desk.slots.write_index(offer.transfer, index_of(data))
for number in range(32):
    desk.slots.write_chunk(offer.transfer, number * CHUNK, data[number * CHUNK:][:CHUNK])
print("half", flush=True)
time.sleep(30)
"""


def test_compressed_transfers_are_unpacked(desk: Desk) -> None:
    data = b"weights " * 100_000
    packed = zstandard.compress(data, 19)
    offer = offer_of(data, packed=packed)
    desk.fill(offer, packed)

    desk.slots.finish(offer)

    assert desk.next() == BlobStored(offer.file)
    assert desk.slots.blob_path(offer.file).read_bytes() == data


def _wide_window() -> bytes:
    parameters = zstandard.ZstdCompressionParameters.from_level(19, window_log=27)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(b"a" * 100_000) + packer.flush()


@pytest.mark.parametrize(
    ("packed", "size", "expected"),
    [
        (zstandard.compress(bytes(50_000_000)), 1000, (Reason.BAD_ARTIFACT, "got more")),
        (zstandard.compress(b"other bytes!"), 12, (Reason.DIGEST_MISMATCH, "got sha256:")),
        (zstandard.compress(b"short"), 12, (Reason.DIGEST_MISMATCH, "expected 12 bytes, got 5")),
        (noise(5000), 12, (Reason.BAD_ARTIFACT, "expected zstd")),
        (_wide_window(), 100_000, (Reason.BAD_ARTIFACT, "expected zstd")),
    ],
    ids=["bomb", "wrong", "short", "noise", "window"],
)
def test_a_transfer_that_unpacks_to_something_else_is_deleted(
    desk: Desk, tmp_path: Path, packed: bytes, size: int, expected: tuple[Reason, str]
) -> None:
    offer = offer_of(b"what was promised", packed=packed, size=size)
    desk.fill(offer, packed)
    before = desk.slots.flash_bytes_written

    desk.slots.finish(offer)

    event = desk.next()
    assert isinstance(event, BlobRefused)
    assert (event.file, event.reason) == (offer.file, expected[0])
    assert expected[1] in event.detail
    assert desk.slots.flash_bytes_written - before <= size
    assert desk.slots.blobs() == frozenset()
    assert list((tmp_path / "data" / "partial").iterdir()) == []


def test_bytes_that_changed_on_disk_are_found_at_the_end(desk: Desk, tmp_path: Path) -> None:
    data = noise(3 * CHUNK)
    offer = offer_of(data)
    desk.fill(offer, data)
    part = tmp_path / "data" / "partial" / f"{digest_hex(offer.transfer)}.part"
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    desk.slots.finish(offer)

    event = desk.next()
    assert isinstance(event, BlobRefused)
    assert event.reason is Reason.DIGEST_MISMATCH
    assert not part.exists()


def test_finishing_what_is_not_open_is_refused(desk: Desk) -> None:
    desk.slots.finish(offer_of(b"data"))

    event = desk.next()
    assert isinstance(event, BlobRefused)
    assert event.reason is Reason.IO_ERROR


# ---- a full disk


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 1 MiB: a tmpfs where we may mount one, a counting `pwrite` elsewhere."""
    root = tmp_path / "small"
    root.mkdir()
    mounted = (
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", root],
            capture_output=True,
            check=False,
        ).returncode
        == 0
    )
    if not mounted:
        left = 1024 * 1024
        write = os.pwrite

        def pwrite(fd: int, data: bytes, offset: int) -> int:
            nonlocal left
            if len(data) > left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left -= len(data)
            return write(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", pwrite)
    yield root
    if mounted:
        subprocess.run(["umount", "-l", root], check=True)


def test_a_full_disk_fails_the_transfer_and_leaves_the_rest_alone(small_disk: Path) -> None:
    desk = Desk(small_disk)
    kept = desk.store(noise(100_000, seed=1))
    data = noise(2_000_000)
    offer = offer_of(data)

    desk.fill(offer, data)

    event = desk.next()
    assert event == TransferFailed(offer.transfer, Reason.NO_SPACE, "No space left on device")
    assert desk.events.empty()
    assert desk.slots.blobs() == {kept}
    desk.slots.close()


def test_a_full_disk_gives_up_partials_for_the_journal(tmp_path: Path) -> None:
    root = tmp_path / "data"
    desk = Desk(root)
    data = noise(10 * CHUNK)
    offer = offer_of(data)
    desk.fill(offer, data)
    part = root / "partial" / f"{digest_hex(offer.transfer)}.part"

    def pwrite(fd: int, piece: bytes, offset: int) -> int:
        if part.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, piece, offset)

    write = os.pwrite
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        desk.slots.save_journal(JOURNAL)

    assert desk.slots.load_journal() == JOURNAL
    event = desk.next()
    assert isinstance(event, TransferFailed)
    assert (event.transfer, event.reason) == (offer.transfer, Reason.NO_SPACE)
    desk.slots.close()


def test_a_journal_that_cannot_be_written_at_all_leaves_the_old_one(desk: Desk) -> None:
    def pwrite(fd: int, piece: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    desk.slots.save_journal(JOURNAL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(DeviceError, match=r"journal: cannot write .* free some space"):
            desk.slots.save_journal(OTHER)

    assert desk.slots.load_journal() == JOURNAL


def test_unpacking_onto_a_full_disk_is_refused_as_such(small_disk: Path) -> None:
    desk = Desk(small_disk)
    data = noise(CHUNK) * 600
    packed = zstandard.compress(data)
    offer = offer_of(data, packed=packed)
    desk.fill(offer, packed)

    desk.slots.finish(offer)

    event = desk.next()
    assert isinstance(event, BlobRefused)
    assert event.reason is Reason.NO_SPACE
    assert list((small_disk / "partial").iterdir()) == []
    desk.slots.close()


def test_the_reserve_is_never_touched(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "data", reserve_bytes=2**60)
    data = noise(CHUNK)
    offer = offer_of(data)

    desk.fill(offer, data)

    event = desk.next()
    assert isinstance(event, TransferFailed)
    assert event.reason is Reason.NO_SPACE
    assert desk.slots.measure_space() < 0
    desk.slots.close()


def test_bytes_of_partials_count_as_room_and_files_say_what_they_take(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = desk.store(noise(CHUNK, seed=1))
    monkeypatch.setattr(desk.slots, "_free_bytes", lambda: 1_000_000)  # others use this disk
    data = noise(8 * CHUNK)
    before = desk.slots.measure_space()

    desk.fill(offer_of(data), data)

    assert before == 1_000_000
    assert desk.slots.measure_space() >= before + len(data)
    assert desk.slots.blob_sizes() == {whole: CHUNK}
    assert desk.slots.flash_bytes_written >= 9 * CHUNK


def test_an_unreadable_disk_is_an_io_error(desk: Desk) -> None:
    offer = offer_of(noise(CHUNK))

    def open_(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", open_)
        desk.slots.open_transfer(offer)
        event = desk.next()

    assert event == TransferFailed(offer.transfer, Reason.IO_ERROR, "Input/output error")


# ---- manifests and garbage


def _manifest() -> Manifest:
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    file = File(name="m.onnx", digest=DIGEST, size_bytes=1)
    variant = Variant(
        name="onnx-fp32", format="onnx", artifact=file, inputs=(tensor,), outputs=(tensor,)
    )
    return Manifest(
        model="digits", version=1, inputs=(tensor,), outputs=(tensor,), variants=(variant,)
    )


def test_manifests_are_read_from_their_slot(desk: Desk) -> None:
    digest = desk.store(encode(_manifest()))

    desk.slots.read_manifest(digest)

    assert desk.next() == ManifestRead(digest, _manifest())


def test_what_is_no_manifest_is_refused_with_a_reason(desk: Desk, tmp_path: Path) -> None:
    other = desk.store(b'{"model": 3}')
    large = desk.store(noise(200_000))
    damaged = desk.store(encode(_manifest()))
    desk.slots.blob_path(damaged).write_bytes(b"flipped")
    linked = digest_of(b"linked")
    (tmp_path / "outside").write_bytes(b"linked")
    desk.slots.blob_path(linked).symlink_to(tmp_path / "outside")

    for digest, expected in [
        (other, "Manifest: "),
        (large, "expected a manifest of at most 122880 bytes, got 200000"),
        (damaged, "on disk; deleted"),
        (linked, "cannot read: Too many levels of symbolic links"),
        (digest_of(b"none"), "cannot read: No such file"),
    ]:
        desk.slots.read_manifest(digest)
        event = desk.next()
        assert isinstance(event, ManifestRead)
        assert event.manifest is None
        assert expected in event.detail

    assert desk.slots.blobs() == {other, large}


def test_garbage_goes_and_what_is_kept_stays(desk: Desk, tmp_path: Path) -> None:
    kept, dropped = desk.store(b"kept"), desk.store(b"dropped")
    wanted, unwanted = offer_of(noise(CHUNK, 1)), offer_of(noise(CHUNK, 2))
    desk.fill(wanted, noise(CHUNK, 1))
    desk.fill(unwanted, noise(CHUNK, 2))
    keep = frozenset({kept}), frozenset({wanted.transfer})

    desk.slots.collect_garbage(*keep, frozenset())
    assert dropped in desk.slots.blobs()  # its BlobStored may not have been read yet
    desk.slots.collect_garbage(*keep, frozenset({dropped}))

    assert desk.slots.blobs() == {kept}
    left = {path.name for path in (tmp_path / "data" / "partial").iterdir()}
    assert left == {digest_hex(wanted.transfer) + suffix for suffix in (".part", ".index")}
    desk.slots.write_chunk(unwanted.transfer, 0, b"late")
    assert desk.events.empty()


def test_a_stop_does_not_wait_for_a_consumer_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slots_module, "CLOSE_S", 0.3)
    narrow: queue.Queue[Event] = queue.Queue(maxsize=1)
    slots = Slots(tmp_path / "data", 0, narrow.put)
    slots.open_transfer(offer_of(noise(CHUNK, 1)))
    slots.open_transfer(offer_of(noise(CHUNK, 2)))
    time.sleep(0.2)
    began = time.monotonic()

    slots.close()

    assert time.monotonic() - began < STUCK_S
    assert narrow.get().__class__ is TransferOpened
    Slots(tmp_path / "data", 0, narrow.put).close()


def test_a_stop_in_the_middle_of_unpacking_is_quick_and_keeps_the_transfer(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path / "data")
    data = noise(CHUNK) * 50_000
    packed = zstandard.compress(data)
    offer = offer_of(data, packed=packed)
    desk.fill(offer, packed)
    desk.slots.finish(offer)
    began = time.monotonic()

    desk.slots.close()

    assert time.monotonic() - began < STUCK_S
    assert desk.events.empty()
    again = Desk(tmp_path / "data")
    assert len(again.open(offer).present) == offer.chunks
    assert list((tmp_path / "data" / "partial").glob("*.new")) == []
    again.slots.close()


def delta_of(data: bytes) -> Offer:
    return offer_of(data).model_copy(update={"encoding": "delta", "base": DIGEST})


def test_a_stop_in_the_middle_of_decoding_leaves_no_child_and_keeps_the_transfer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "pid"
    script = f'echo $$ >{told}.new; mv {told}.new {told}; echo half >"$6"; exec sleep 60'
    monkeypatch.setattr(slots_module, "DECODE_COMMAND", ("/bin/sh", "-c", script, "decode"))
    desk = Desk(tmp_path / "data")
    offer = delta_of(noise(2 * CHUNK))
    desk.fill(offer, noise(2 * CHUNK))
    desk.slots.finish(offer)
    while not told.exists():
        time.sleep(0.01)
    began = time.monotonic()

    desk.slots.close()

    assert time.monotonic() - began < STUCK_S
    assert desk.events.empty()
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)
    again = Desk(tmp_path / "data")
    assert len(again.open(offer).present) == offer.chunks
    assert list((tmp_path / "data" / "partial").glob("*.new")) == []
    again.slots.close()


@pytest.mark.parametrize(
    ("script", "reason_and_detail"),
    [
        ("echo one >&2; echo two >&2; exit 3", (Reason.BAD_ARTIFACT, "not decoded: two")),
        ("exit 3", (Reason.BAD_ARTIFACT, "exit status 3")),
        ("sleep 60", (Reason.BAD_ARTIFACT, "not decoded within")),
        ('echo other >"$6"', (Reason.DIGEST_MISMATCH, "expected")),
        ("exit 0", (Reason.IO_ERROR, "No such file")),
    ],
    ids=["says why", "silent", "slow", "wrong", "nothing"],
)
def test_a_delta_that_does_not_become_the_file_is_refused_and_leaves_nothing(
    desk: Desk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    reason_and_detail: tuple[Reason, str],
) -> None:
    monkeypatch.setattr(slots_module, "DECODE_COMMAND", ("/bin/sh", "-c", script, "decode"))
    monkeypatch.setattr(slots_module, "DECODE_S", 0.5)
    offer = delta_of(noise(2 * CHUNK))
    desk.fill(offer, noise(2 * CHUNK))

    desk.slots.finish(offer)

    event = desk.next()
    assert isinstance(event, BlobRefused)
    assert event.reason is reason_and_detail[0]
    assert reason_and_detail[1] in event.detail
    assert list((tmp_path / "data" / "partial").iterdir()) == []
    assert desk.slots.blobs() == frozenset()
