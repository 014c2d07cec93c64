"""Messages as version 1 wrote them. The files stay as they are: a new version adds its own."""

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from wire.alert import Alerts
from wire.bundle import BundleSeal, bundle_bytes, write_bundle
from wire.codec import Document, decode, encode
from wire.command import Command, CommandResult
from wire.ids import digest_of
from wire.manifest import Manifest
from wire.packing import pack, unpack
from wire.sample import CaptureReport, Sample, SampleAck
from wire.seal import Envelope, Verifier, canonical
from wire.telemetry import Ack, Batch, DeviceEvent, Health, ScoreWindow
from wire.transfer import ChunkFrame, FetchRequest, chunk_hash
from wire.twin import Desired, Phase, Reason, Reported, Status

V1 = Path(__file__).parent / "golden/v1"
PLAIN = [
    Ack, Alerts, CaptureReport, CommandResult, DeviceEvent, FetchRequest, Manifest, Reported,
    Sample, SampleAck, Status,
]  # fmt: skip
DEFLATED = [Health, ScoreWindow]
SEALED = [BundleSeal, Command, Desired]


def kept(before: Any, after: Any) -> bool:
    """Whether all that `before` says is said by `after`, which may say more."""
    if isinstance(before, dict):
        return all(key in after and kept(value, after[key]) for key, value in before.items())
    if isinstance(before, list):
        pairs = zip(before, after, strict=True)
        return all(kept(old, new) for old, new in pairs)
    return bool(before == after)


def verifier() -> Verifier:
    return Verifier(tuple((V1 / name).read_bytes() for name in ("public.key", "bundle.key")))


def test_every_document_has_a_golden_message():
    assert set(Document.__subclasses__()) == {*PLAIN, *DEFLATED, *SEALED, Batch, Envelope}


@pytest.mark.parametrize("kind", PLAIN)
def test_a_plain_document_of_version_1_is_read_and_written_whole(kind):
    golden = (V1 / f"{kind.__name__}.json").read_bytes()

    again = encode(decode(kind, golden))

    assert kept(json.loads(golden), json.loads(again))
    assert decode(kind, again) == decode(kind, golden)


@pytest.mark.parametrize("kind", DEFLATED)
def test_a_deflated_document_of_version_1_is_read_and_written_whole(kind):
    golden = (V1 / f"{kind.__name__}.zlib").read_bytes()

    again = encode(decode(kind, golden), deflate=True)

    assert kept(json.loads(zlib.decompress(golden)), json.loads(zlib.decompress(again)))


@pytest.mark.parametrize("kind", SEALED)
def test_a_document_sealed_by_version_1_is_opened(kind):
    golden = (V1 / f"{kind.__name__}.sealed.json").read_bytes()

    opened = verifier().open(kind, golden)

    assert kept(json.loads(golden)["signed"], json.loads(encode(opened)))


@pytest.mark.parametrize("kind", SEALED)
def test_the_canonical_bytes_of_version_1_are_ours(kind):
    signed = json.loads((V1 / f"{kind.__name__}.sealed.json").read_bytes())["signed"]

    assert canonical(signed) == (V1 / f"{kind.__name__}.canonical.json").read_bytes()


def test_the_frames_of_version_1_fit_its_offer_and_its_transfer():
    transfer = (V1 / "transfer.bin").read_bytes()
    release = verifier().open(Desired, (V1 / "Desired.sealed.json").read_bytes()).releases[0]
    offer = next(offer for offer in release.offers if offer.transfer == digest_of(transfer))

    index = ChunkFrame.decode((V1 / "index.frame").read_bytes())
    data = ChunkFrame.decode((V1 / "data.frame").read_bytes())

    assert (index.part, index.number, digest_of(index.payload)) == ("index", 0, offer.index)
    assert (data.part, data.number) == ("data", offer.chunks - 1)
    assert data.payload == transfer[data.number * offer.chunk_bytes :]
    assert index.payload.endswith(chunk_hash(data.payload))
    assert index.encode() == (V1 / "index.frame").read_bytes()
    assert data.encode() == (V1 / "data.frame").read_bytes()


def test_a_bundle_of_version_1_is_written_byte_for_byte():
    golden = (V1 / "bundle.ffb").read_bytes()
    statement = (V1 / "BundleSeal.sealed.json").read_bytes()
    offers = verifier().open(BundleSeal, statement).release.offers
    places = [golden.rindex(offer.transfer[7:].encode()) + 512 for offer in offers]
    bodies = [golden[at : at + o.transfer_bytes] for at, o in zip(places, offers, strict=True)]

    again = b"".join(
        write_bundle(statement, ((o, iter([b])) for o, b in zip(offers, bodies, strict=True)))
    )

    assert again == golden
    assert bundle_bytes(statement, offers) == len(golden)
    assert [digest_of(body) for body in bodies] == [offer.transfer for offer in offers]


def test_the_release_digest_of_version_1_is_that_of_its_very_bytes():
    release = verifier().open(Desired, (V1 / "Desired.sealed.json").read_bytes()).releases[0]

    assert digest_of((V1 / "Manifest.json").read_bytes()) == release.manifest


def test_no_phase_or_reason_of_version_1_was_renamed():
    assert {
        "queued", "preflight", "fetching", "verified", "trial", "probation", "committed",
        "rejected", "failed", "timed_out", "rolled_back", "superseded",
    } <= set(Phase)  # fmt: skip
    assert {
        "no_space", "io_error", "wrong_arch", "no_runtime", "opset_too_new",
        "unsupported_operator", "bad_manifest", "bad_artifact", "digest_mismatch",
        "out_of_memory", "load_failed", "golden_mismatch", "too_slow", "crashed", "hung",
        "worse_than_champion", "no_evidence", "no_progress", "withdrawn", "bad_signature",
        "stale",
    } <= set(Reason)  # fmt: skip


def test_a_batch_of_version_1_is_read_and_written_whole():
    batch = unpack((V1 / "Batch.packed").read_bytes())

    assert [item.seq for item in batch.items()] == [5, 6, 7]
    assert unpack(pack(batch)) == batch
