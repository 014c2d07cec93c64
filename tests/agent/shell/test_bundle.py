"""Bundles as they come from a stick: right, cut, damaged, and made by somebody with other plans."""

import io
import os
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from agent.errors import DeviceError
from agent.shell.bundle import BundleError, read_seal, unpack
from wire.bundle import BLOCK_BYTES, END, BundleSeal, header, member_name, padding, write_bundle
from wire.ids import digest_hex, digest_of
from wire.seal import Sealer, Verifier
from wire.transfer import Offer
from wire.twin import DesiredRelease

SEALER = Sealer(bytes(range(32)))
VERIFIER = Verifier((SEALER.public,))
GOLDEN = Path(__file__).parents[2] / "wire/golden/v1"

MANIFEST = b'{"a manifest": "of a few bytes"}' * 20
WEIGHTS = os.urandom(300_000)
LABELS = b"zero\none\n" * 2000


def offer(file: bytes, transfer: bytes, **claims: int) -> Offer:
    return Offer(
        file=digest_of(file),
        file_bytes=claims.get("file_bytes", len(file)),
        encoding="identity" if file == transfer else "zstd",
        transfer=digest_of(transfer),
        transfer_bytes=claims.get("transfer_bytes", len(transfer)),
        index=digest_of(b"nobody asks for it here"),
    )


def packed(file: bytes) -> bytes:
    return zstandard.compress(file)


CONTENT = [(MANIFEST, packed(MANIFEST)), (WEIGHTS, WEIGHTS), (LABELS, packed(LABELS))]


def sealed(*offers: Offer, sealer: Sealer = SEALER, device: str | None = None) -> bytes:
    release = DesiredRelease(
        model="digits", version=2, rollout="local-1", manifest=offers[0].file, offers=offers
    )
    return sealer.seal(BundleSeal(release=release, device=device))


def bundle(content: list[tuple[bytes, bytes]] = CONTENT, **how: object) -> bytes:
    offers = [offer(file, transfer) for file, transfer in content]
    statement = sealed(*offers, **how)  # type: ignore[arg-type]
    members = zip(offers, (iter([transfer]) for _, transfer in content), strict=True)
    return b"".join(write_bundle(statement, members))


def take(data: bytes, into: Path, device: str = "cam-1") -> BundleSeal:
    file = io.BytesIO(data)
    seal, _ = read_seal(file, VERIFIER, device)
    unpack(file, seal, into)
    return seal


def test_every_file_comes_out_under_its_digest(tmp_path: Path) -> None:
    seal = take(bundle(), tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        digest_hex(digest_of(file)): file for file, _ in CONTENT
    }
    assert seal.file_bytes == sum(len(file) for file, _ in CONTENT)


def test_any_tar_program_lists_a_bundle() -> None:
    with tarfile.open(fileobj=io.BytesIO(bundle())) as archive:
        names = archive.getnames()

    offers = [offer(file, transfer) for file, transfer in CONTENT]
    assert names == ["seal.json", *(member_name(each) for each in offers)]


def test_a_bundle_of_version_1_is_taken(tmp_path: Path) -> None:
    seal = take((GOLDEN / "bundle.ffb").read_bytes(), tmp_path)

    assert (tmp_path / digest_hex(seal.release.manifest)).read_bytes() == (
        GOLDEN / "Manifest.json"
    ).read_bytes()


def test_a_bundle_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = bundle()

    for place, length in enumerate([*range(0, len(data), 4999), len(data) - 512, len(data) - 1]):
        into = tmp_path / str(place)
        into.mkdir()
        with pytest.raises(BundleError):
            take(data[:length], into)


def test_a_flipped_bit_anywhere_is_refused(tmp_path: Path) -> None:
    data = bundle()

    for number, place in enumerate(
        [*range(0, len(data), 3989), *range(len(data) - 1100, len(data), 97)]
    ):
        damaged = bytearray(data)
        damaged[place] ^= 1 << number % 8
        into = tmp_path / str(number)
        into.mkdir()
        with pytest.raises(BundleError):
            take(bytes(damaged), into)


@pytest.mark.parametrize("extra", [b"\0", b"x" * 700, bytes(10_240), bundle()])
def test_anything_behind_the_end_is_refused(tmp_path: Path, extra: bytes) -> None:
    with pytest.raises(BundleError, match="expected its end"):
        take(bundle() + extra, tmp_path)


def test_a_strangers_seal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="expected a signature by"):
        take(bundle(sealer=Sealer(bytes(32))), tmp_path)


def test_a_bundle_for_another_device_is_refused(tmp_path: Path) -> None:
    data = bundle(device="cam-2")

    with pytest.raises(BundleError, match="expected one for cam-1, got one for cam-2"):
        take(data, tmp_path)
    assert take(data, tmp_path, "cam-2").device == "cam-2"


def test_another_kind_of_sealed_document_is_no_seal_of_a_bundle(tmp_path: Path) -> None:
    desired = (GOLDEN / "Desired.sealed.json").read_bytes()
    data = header("seal.json", len(desired)) + desired + padding(len(desired))

    with pytest.raises(BundleError, match="got a Desired"):
        take(data, tmp_path)


def member(name: str = "x", kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def with_member(info: tarfile.TarInfo, body: bytes) -> bytes:
    """Return a bundle whose first file's header says something else."""
    data = bundle()
    info.size = len(body)
    place = data.rindex(RIGHT_NAME.encode())
    end = place + BLOCK_BYTES + len(CONTENT[0][1]) + len(padding(len(CONTENT[0][1])))
    head = info.tobuf(tarfile.PAX_FORMAT)
    return data[:place] + head + body + padding(len(body)) + data[end:]


RIGHT_NAME = member_name(offer(*CONTENT[0]))


@pytest.mark.parametrize(
    "info",
    [
        member("../../etc/passwd"),
        member(f"../{RIGHT_NAME}"),
        member(f"/{RIGHT_NAME}"),
        member(f"sub/{RIGHT_NAME}"),
        member(RIGHT_NAME, tarfile.SYMTYPE, "/etc/passwd"),
        member(RIGHT_NAME, tarfile.LNKTYPE, "seal.json"),
        member(RIGHT_NAME, tarfile.DIRTYPE),
        member(RIGHT_NAME, tarfile.CHRTYPE),
        member(RIGHT_NAME, tarfile.FIFOTYPE),
        member("n" * 300),
        member("näme"),
    ],
    ids=lambda info: f"{info.name[:8]} {info.type.decode()}",
)
def test_no_header_but_the_one_that_must_be_there_is_followed(
    tmp_path: Path, info: tarfile.TarInfo
) -> None:
    into = tmp_path / "deep" / "er"
    into.mkdir(parents=True)

    with pytest.raises(BundleError, match="got another"):
        take(with_member(info, CONTENT[0][1]), into)

    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


def test_files_in_another_order_are_refused(tmp_path: Path) -> None:
    offers = [offer(file, transfer) for file, transfer in CONTENT]
    members = [
        (each, iter([transfer])) for each, (_, transfer) in zip(offers, CONTENT, strict=True)
    ]
    data = b"".join(write_bundle(sealed(*offers), iter(members[::-1])))

    with pytest.raises(BundleError, match="got another"):
        take(data, tmp_path)


def bomb(size: int) -> bytes:
    compressor = zstandard.ZstdCompressor(level=19).compressobj()
    pieces = [compressor.compress(bytes(1 << 20)) for _ in range(size >> 20)]
    return b"".join((*pieces, compressor.flush()))


@pytest.mark.parametrize("claim", [1000, 1 << 30], ids=["small-claim", "other-digest"])
def test_a_bomb_ends_at_the_sealed_size_and_takes_little_memory(tmp_path: Path, claim: int) -> None:
    # Its makers would need the controller's key; still no size that it was not sealed with counts.
    transfer = bomb(64 << 20)
    manifest = offer(MANIFEST, packed(MANIFEST))
    trap = offer(b"something else", transfer, file_bytes=claim)
    members = [(manifest, iter([packed(MANIFEST)])), (trap, iter([transfer]))]
    data = b"".join(write_bundle(sealed(manifest, trap), iter(members)))
    tracemalloc.start()

    with pytest.raises(BundleError):
        take(data, tmp_path)

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= min(claim, 64 << 20)


def test_a_frame_that_wants_a_window_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, compression_level=3)
    data = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    transfer = data.compress(os.urandom(9 << 20)) + data.flush()
    manifest = offer(MANIFEST, packed(MANIFEST))
    hungry = offer(b"whatever", transfer)
    members = [(manifest, iter([packed(MANIFEST)])), (hungry, iter([transfer]))]

    with pytest.raises(BundleError, match="expected zstd"):
        take(b"".join(write_bundle(sealed(manifest, hungry), iter(members))), tmp_path)


def broken(change: Callable[[bytes], bytes]) -> bytes:
    statement = sealed(*(offer(file, transfer) for file, transfer in CONTENT))
    changed = change(statement)
    return header("seal.json", len(changed)) + changed + padding(len(changed)) + END


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04" + bytes(600),
        bytes(10_240),
        header("seal.json", 200_000) + bytes(200_704),
        header("seal.json", 2**40),
        header("other.json", 100) + bytes(512),
        broken(lambda text: text.replace(b'"version":2', b'"version":3')),
        broken(lambda text: text.replace(b"local-1", b"r-00001")),
        broken(lambda text: text[:-9]),
        broken(lambda text: b"[" * 5000),
    ],
    ids=["empty", "zip", "zeros", "long", "huge", "name", "version", "rollout", "torn", "nested"],
)
def test_what_does_not_begin_with_a_right_seal_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DeviceError, match="nothing was imported"):
        take(data, tmp_path)

    assert not list(tmp_path.iterdir())


def test_files_that_do_not_stand_alone_are_not_sealed() -> None:
    delta = offer(WEIGHTS, WEIGHTS).model_copy(
        update={"encoding": "delta", "base": digest_of(b"base"), "transfer": digest_of(b"delta")}
    )

    with pytest.raises(ValueError, match="stand alone"):
        sealed(offer(MANIFEST, MANIFEST), delta)
