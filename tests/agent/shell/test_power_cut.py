"""The real code over a recording of its disk, cut at every operation, losing what was not synced.

After every such cut it is asked what a restarted agent makes of what is left.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import zstandard

from agent.core.events import BlobStored
from agent.core.state import Journal
from agent.shell.bundle import unpack
from agent.shell.imports import Imports, hand_over
from agent.shell.slots import slots
from tests.agent.shell.desk import CHUNK, Desk, index_of, noise, offer_of
from tests.operations import DiskTap, Sync, SyncNames
from tests.power_cut import LOSSES, Contents, Recording, read_contents, write_contents
from wire.bundle import END, BundleSeal, header, member_name, padding
from wire.ids import digest_of
from wire.seal import Sealer, Verifier
from wire.transfer import Offer
from wire.twin import DesiredRelease

PLAIN = noise(5 * CHUNK + 100)
TEXT = b"".join(b"%d of many lines\n" % n for n in range(4000))
PACKED = zstandard.compress(TEXT)
OFFERS = {
    offer.transfer: (offer, travels, file)
    for offer, travels, file in (
        (offer_of(PLAIN), PLAIN, PLAIN),
        (offer_of(TEXT, packed=PACKED), PACKED, TEXT),
    )
}
REVISED = noise(3 * CHUNK + 5, 1)
DELTA = offer_of(REVISED).model_copy(update={"encoding": "delta", "base": digest_of(PLAIN)})
COPYING = ("/bin/sh", "-c", 'cp "$4" "$6"', "decode")
"""In place of the decoder, which is slow to start: here the delta is the file."""


@dataclass(frozen=True)
class Promise:
    """What the agent may rely on, given how far it had come."""

    journals: tuple[Journal, ...]
    """Any of them may be found."""
    stored: frozenset[str]
    """Blobs that must be there."""
    indexed: frozenset[str]
    """Transfers whose index must be there."""


def promised(recording: Recording, at: int) -> Promise:
    journals: tuple[Journal, ...] = (Journal(),)
    stored: set[str] = set()
    indexed: set[str] = set()
    for note in recording.notes(at):
        match note.what:
            case "saving":
                journals = (*journals, note.about)
            case "saved":
                journals = (note.about,)
            case "indexed":
                indexed.add(note.about)
            case "finishing":
                indexed.discard(note.about)
            case "stored":
                stored.add(note.about)
            case "dropping":
                stored.discard(note.about)
    return Promise(journals, frozenset(stored), frozenset(indexed))


def record_life(root: Path) -> Recording:
    """Let an agent take a plain and a packed file side by side, then a delta, and drop one."""
    recording = Recording()
    root.mkdir()
    with DiskTap(root, recording):
        desk = Desk(root)
        save(desk, recording, crashes=1)
        for offer, travels, _ in OFFERS.values():
            desk.open(offer)
            desk.slots.write_index(offer.transfer, index_of(travels))
            recording.note("indexed", offer.transfer)
        for number in range(max(offer.chunks for offer, _, _ in OFFERS.values())):
            for offer, travels, _ in OFFERS.values():
                chunk = travels[number * CHUNK : (number + 1) * CHUNK]
                if chunk:
                    desk.slots.write_chunk(offer.transfer, number * CHUNK, chunk)
        save(desk, recording, crashes=2)
        for offer, _, _ in OFFERS.values():
            recording.note("finishing", offer.transfer)
            desk.slots.finish(offer)
            assert desk.next() == BlobStored(offer.file)
            recording.note("stored", offer.file)
        save(desk, recording, crashes=3)
        desk.fill(DELTA, REVISED)
        desk.slots.finish(DELTA)
        assert desk.next() == BlobStored(DELTA.file)
        recording.note("stored", DELTA.file)
        recording.note("dropping", digest_of(PLAIN))
        desk.slots.collect_garbage(
            frozenset({digest_of(TEXT), DELTA.file}), frozenset(), desk.slots.blobs()
        )
        save(desk, recording, crashes=4)
        desk.slots.close()
    return recording


def save(desk: Desk, recording: Recording, crashes: int) -> None:
    journal = Journal(crashes={"digits": crashes}, commands=("x" * 40,) * crashes)
    recording.note("saving", journal)
    desk.slots.save_journal(journal)
    recording.note("saved", journal)


def cuts(recording: Recording) -> Iterator[tuple[str, Contents, int]]:
    """Yield a name for each different disk that a cut may leave, the disk, and where it was cut."""
    seen: set[Any] = set()
    for at in range(len(recording.log) + 1):
        for loss in LOSSES:
            contents = recording.contents(at, loss)
            key = (contents, tuple((n.what, str(n.about)) for n in recording.notes(at)))
            if key not in seen:
                seen.add(key)
                doing = recording.log[at] if at < len(recording.log) else "the end"
                yield f"cut {at}, before {str(doing)[:60]}, {loss}", contents, at


def complaints(recording: Recording, home: Path) -> Iterator[str]:
    """Yield what a restarted agent finds wrong after each cut; nothing is as it should be."""
    for count, (name, contents, at) in enumerate(cuts(recording)):
        root = home / str(count)
        write_contents(contents, root)
        try:
            with DiskTap(root, Recording()):  # nothing is cut here: no need to sync
                check_life_goes_on(root, promised(recording, at))
        except AssertionError as error:
            yield f"{name}: {str(error).splitlines()[0]}"


def check_life_goes_on(root: Path, promise: Promise) -> None:
    desk = Desk(root)
    try:
        assert desk.slots.load_journal() in promise.journals, "neither the old nor the new journal"
        blobs = desk.slots.blobs()
        for digest in blobs:
            content = desk.slots.blob_path(digest).read_bytes()
            assert digest_of(content) == digest, "a blob with wrong bytes under its name"
        assert promise.stored <= blobs, "a stored blob is gone"
        for offer, travels, file in OFFERS.values():
            go_on(desk, offer, travels, indexed=offer.transfer in promise.indexed)
            assert desk.slots.blob_path(offer.file).read_bytes() == file
        after = Journal(crashes={"digits": 99})
        desk.slots.save_journal(after)
        assert desk.slots.load_journal() == after
        desk.slots.collect_garbage(frozenset(), frozenset(), desk.slots.blobs())
        left = {path.name for path in root.rglob("*") if not path.is_dir()}
        assert left <= {"lock", "journal.json", "journal.prev.json"}, f"garbage: {left}"
    finally:
        desk.slots.close()


def go_on(desk: Desk, offer: Offer, travels: bytes, *, indexed: bool) -> None:
    """Bring a transfer to its end, sending only what the agent says it misses."""
    opened = desk.open(offer)
    assert opened.index or not indexed, "an index that was kept is gone"
    if not opened.index:
        assert not opened.present
        desk.slots.write_index(offer.transfer, index_of(travels))
    for number in range(offer.chunks):
        if number not in opened.present:
            chunk = travels[number * CHUNK : (number + 1) * CHUNK]
            desk.slots.write_chunk(offer.transfer, number * CHUNK, chunk)
    desk.slots.finish(offer)
    event = desk.next()
    assert event == BlobStored(offer.file), f"{event}"


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    root = tmp_path_factory.mktemp("life") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slots, "DECODE_COMMAND", COPYING)
        recording = record_life(root)

    # Otherwise the code does something to the disk that nobody cuts.
    assert recording.contents(len(recording.log)) == read_contents(root)
    return recording


def test_after_a_power_cut_at_any_point_the_agent_goes_on(life: Recording, tmp_path: Path) -> None:
    wrong = list(complaints(life, tmp_path))

    assert wrong == []


@pytest.mark.parametrize(
    ("forgotten", "consequence"),
    [(Sync, "wrong bytes under its name"), (SyncNames, "a stored blob is gone")],
    ids=["files", "directories"],
)
def test_code_that_forgets_to_sync_would_be_found_out(
    life: Recording, tmp_path: Path, forgotten: type, consequence: str
) -> None:
    wrong = list(complaints(life.without(forgotten), tmp_path))

    assert any("neither the old nor the new journal" in text for text in wrong)
    assert any(consequence in text for text in wrong)


# ---- a release that came in a bundle

SEALER = Sealer(bytes(range(32)))
MANIFEST = noise(700, 2)


def bundle_of() -> tuple[BundleSeal, bytes]:
    """Return the seal of a bundle of a plain and a packed file, and what follows it there."""
    offers = (offer_of(MANIFEST), offer_of(TEXT, packed=PACKED))
    release = DesiredRelease(
        model="digits", version=2, rollout="local-1", manifest=offers[0].file, offers=offers
    )
    members = b"".join(
        header(member_name(offer), len(travels)) + travels + padding(len(travels))
        for offer, travels in zip(offers, (MANIFEST, PACKED), strict=True)
    )
    return BundleSeal(release=release, install=True), members + END


def record_import(root: Path) -> Recording:
    """Let the command hand a release over, an agent take it up, and its order be journalled."""
    recording = Recording()
    seal, members = bundle_of()
    root.mkdir()
    with DiskTap(root, recording):
        hand_over(
            root,
            seal,
            SEALER.seal(seal),
            install=True,
            reserve_bytes=0,
            unpack=lambda into: unpack(BytesIO(members), seal, into),
        )
        recording.note("handed over")
        desk = Desk(root)
        importer(root).take_up(desk.slots.adopt)
        recording.note("ordering")
        importer(root).journalled("digits")
        desk.slots.close()
    return recording


def importer(root: Path) -> Imports:
    return Imports(root, Verifier((SEALER.public,)), "cam-1")


def import_complaints(recording: Recording, home: Path) -> Iterator[str]:
    for count, (name, contents, at) in enumerate(cuts(recording)):
        root = home / str(count)
        write_contents(contents, root)
        notes = {note.what for note in recording.notes(at)}
        try:
            with DiskTap(root, Recording()):
                check_import_goes_on(root, notes)
        except AssertionError as error:
            yield f"{name}: {str(error).splitlines()[0]}"


def check_import_goes_on(root: Path, notes: set[str]) -> None:
    seal, _ = bundle_of()
    desk = Desk(root)
    try:
        found = importer(root).take_up(desk.slots.adopt)
        assert found or "handed over" not in notes, "what was handed over is gone"
        blobs = desk.slots.blobs()
        for digest in blobs:
            content = desk.slots.blob_path(digest).read_bytes()
            assert digest_of(content) == digest, "a blob with wrong bytes under its name"
        for each in found:
            assert set(each.files) <= blobs, "a file of a release is gone"
            assert each.order == seal.release or "ordering" in notes, "its order is gone"
    finally:
        desk.slots.close()


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    root = tmp_path_factory.mktemp("brought") / "data"
    recording = record_import(root)

    assert recording.contents(len(recording.log)) == read_contents(root)
    return recording


def test_an_import_is_taken_up_whole_or_not_at_all(brought: Recording, tmp_path: Path) -> None:
    assert list(import_complaints(brought, tmp_path)) == []


@pytest.mark.parametrize(
    ("forgotten", "consequence"),
    [(Sync, "wrong bytes under its name"), (SyncNames, "is gone")],
    ids=["files", "directories"],
)
def test_an_import_that_forgets_to_sync_would_be_found_out(
    brought: Recording, tmp_path: Path, forgotten: type, consequence: str
) -> None:
    wrong = list(import_complaints(brought.without(forgotten), tmp_path))

    assert any(consequence in text for text in wrong)
