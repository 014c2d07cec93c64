"""Files by digest, and the chunks in which they travel."""

import random
from pathlib import Path

import pytest
import zstandard

from delta.decode import decode
from fleet.core.views import Refusal
from fleet.shell.blobs import CHUNK_BYTES, OPEN_FILES, Blobs
from wire.ids import digest_of
from wire.transfer import Offer, chunk_hash

NOISE = random.Random(1).randbytes(3 * CHUNK_BYTES + 17)
TEXT = b"edge " * 60_000


def keep(blobs: Blobs, data: bytes) -> str:
    digest = digest_of(data)
    writer = blobs.open(digest)
    for at in range(0, len(data), 50_000):
        writer.write(data[at : at + 50_000])
    assert writer.finish() == len(data)
    return digest


def travelled(blobs: Blobs, offer: Offer) -> bytes:
    """Take the transfer apart and together again, as a device would."""
    index = b"".join(blobs.read_chunk(offer, "index", n) for n in range(offer.part_chunks("index")))
    assert (len(index), digest_of(index)) == (offer.index_bytes, offer.index)
    chunks = [blobs.read_chunk(offer, "data", n) for n in range(offer.chunks)]
    for number, chunk in enumerate(chunks):
        assert chunk_hash(chunk) == index[32 * number : 32 * number + 32]
    data = b"".join(chunks)
    assert (len(data), digest_of(data)) == (offer.transfer_bytes, offer.transfer)
    if offer.encoding == "zstd":
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=offer.file_bytes)
    return data


@pytest.mark.parametrize(
    ("data", "encoding"),
    [(NOISE, "identity"), (TEXT, "zstd"), (b"", "identity"), (b"x", "identity")],
)
def test_a_file_travels_in_whatever_form_is_smaller(
    tmp_path: Path, data: bytes, encoding: str
) -> None:
    blobs = Blobs(tmp_path)

    offer = blobs.offers(keep(blobs, data))[0]

    assert offer.encoding == encoding
    assert (offer.file, offer.file_bytes) == (digest_of(data), len(data))
    assert travelled(blobs, offer) == data


def test_files_travel_in_chunks_of_the_size_asked_for_and_earlier_offers_stand(
    tmp_path: Path,
) -> None:
    early = Blobs(tmp_path).offers(keep(Blobs(tmp_path), NOISE))[0]

    blobs = Blobs(tmp_path, chunk_bytes=2048)
    late = blobs.offers(keep(blobs, TEXT))[0]

    assert (late.chunk_bytes, late.chunks) == (2048, -(-late.transfer_bytes // 2048))
    assert travelled(blobs, late) == TEXT
    assert blobs.offers(early.file)[0] == early
    assert travelled(blobs, early) == NOISE


def test_bytes_with_another_digest_are_not_kept(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    writer = blobs.open(digest_of(TEXT))
    writer.write(TEXT[:-1])

    with pytest.raises(Refusal, match=r"expected sha256:.*, got sha256:.* \(299999 bytes\)"):
        writer.finish()

    assert not blobs.has(digest_of(TEXT))
    assert list((tmp_path / "blobs").iterdir()) == []


def test_an_aborted_file_leaves_nothing_and_abort_after_finish_is_harmless(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    writer = blobs.open(digest_of(NOISE))
    writer.write(NOISE)
    writer.abort()
    kept = blobs.open(digest_of(TEXT))
    kept.write(TEXT)
    kept.finish()
    kept.abort()

    assert not blobs.has(digest_of(NOISE))
    assert blobs.has(digest_of(TEXT))
    assert len(list((tmp_path / "blobs").iterdir())) == 1


def test_what_a_crash_left_half_written_is_removed_at_the_next_start(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest = keep(blobs, TEXT)
    blobs.open(digest_of(NOISE)).write(NOISE)

    blobs = Blobs(tmp_path)

    assert [path.name for path in (tmp_path / "blobs").iterdir()] == [digest[7:]]


def test_the_compressed_form_is_built_once(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest = keep(blobs, TEXT)
    offer = blobs.offers(digest)[0]
    packed = tmp_path / "transfers" / f"{digest[7:]}.zst"
    before = packed.stat().st_ino

    again = Blobs(tmp_path).offers(digest)[0]

    assert again == offer
    assert packed.stat().st_ino == before


def test_few_files_are_open_at_once(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    files = [random.Random(n).randbytes(2000) for n in range(2 * OPEN_FILES)]
    offers = [blobs.offers(keep(blobs, data))[0] for data in files]

    for offer, data in zip(offers, files, strict=True):
        assert blobs.read_chunk(offer, "data", 0) == data

    assert len(blobs._open) == OPEN_FILES
    blobs.close()


def test_what_is_no_digest_is_refused(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)

    assert not blobs.has("../../etc/passwd")
    with pytest.raises(Refusal, match="expected sha256: and 64 hex digits"):
        blobs.open("../../etc/passwd")


def test_a_file_also_travels_in_smaller_chunks_for_those_who_need_them(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    digest = keep(blobs, NOISE)

    ways = blobs.offers(digest)

    assert [offer.chunk_bytes for offer in ways] == [CHUNK_BYTES, 65536, 16384, 4096]
    assert len({offer.index for offer in ways}) == len(ways)
    assert len({offer.transfer for offer in ways}) == 1
    assert all(travelled(blobs, offer) == NOISE for offer in ways)


@pytest.mark.parametrize("file", ["digits-int8.onnx", "digits-int8.tflite"])
def test_an_update_travels_as_what_changed(tmp_path: Path, file: str) -> None:
    samples = Path(__file__).parents[3] / "samples"
    before, after = ((samples / f"digits-{n}" / file).read_bytes() for n in (1, 2))
    blobs = Blobs(tmp_path)
    base, new = keep(blobs, before), keep(blobs, after)
    plain = blobs.offers(new)[0]

    ways = blobs.delta(base, new)

    assert {(offer.encoding, offer.base, offer.file) for offer in ways} == {("delta", base, new)}
    assert ways[0].transfer_bytes < plain.transfer_bytes
    chunks = [blobs.read_chunk(ways[0], "data", n) for n in range(ways[0].chunks)]
    assert decode(before, b"".join(chunks), len(after)) == after
    assert Blobs(tmp_path).deltas() == {(base, new): ways}


def test_a_delta_that_does_not_pay_is_not_offered(tmp_path: Path) -> None:
    blobs = Blobs(tmp_path)
    base, new = keep(blobs, NOISE), keep(blobs, random.Random(2).randbytes(len(NOISE)))
    blobs.offers(new)

    assert blobs.delta(base, new) == ()
    assert Blobs(tmp_path).delta(base, new) == ()


def test_a_large_file_travels_whole_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleet.shell.blobs.MAX_DELTA_BYTES", len(NOISE) - 1)
    blobs = Blobs(tmp_path)
    base, new = keep(blobs, NOISE), keep(blobs, NOISE[:-1] + b"!")

    assert blobs.delta(base, new) == ()
