"""A release in one file, for devices that no broker reaches.

A tar archive written in one way only: the sealed statement, then every transfer it offers, in
its order. A reader knows each header before it comes, so nothing in the archive is believed:
no name, no size, no type, no order of its own.
"""

from collections.abc import Iterator

from wire.codec import Document
from wire.ids import DeviceId, digest_hex
from wire.schema import model_validator
from wire.transfer import Offer
from wire.twin import DesiredRelease

SEAL_NAME = "seal.json"
BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
"""What follows the last member; nothing follows this."""


class BundleSeal(Document):
    """What a bundle holds, and what it entitles to. Sealed, like a Desired.

    Members are the transfers of the release's offers, each file once, in their order.
    """

    release: DesiredRelease
    """Its rollout is `local-...`, of no rollout that the controller knows."""
    device: DeviceId | None = None
    """The only device it is for; none: any device of this controller."""
    install: bool = False
    """Whether a device may take the release on the word of this bundle alone."""

    @model_validator(mode="after")
    def _whole(self) -> "BundleSeal":
        files = [offer.file for offer in self.release.offers]
        if self.release.manifest not in files:
            raise ValueError("expected the manifest among the offers, got none")
        if len(set(files)) != len(files):
            raise ValueError("expected each file once, got one twice")
        if any(offer.base is not None for offer in self.release.offers):
            raise ValueError("expected files that stand alone, got a delta")
        if not self.release.rollout.startswith("local-"):
            raise ValueError(f"expected a rollout local-..., got {self.release.rollout}")
        return self

    @property
    def files(self) -> tuple[str, ...]:
        """Digests of all files of the release, the manifest's among them."""
        return tuple(offer.file for offer in self.release.offers)

    @property
    def file_bytes(self) -> int:
        """What all files take once unpacked."""
        return sum(offer.file_bytes for offer in self.release.offers)


def member_name(offer: Offer) -> str:
    """Return the name of the member that holds a transfer: the hex digits of its digest."""
    return digest_hex(offer.transfer)


def header(name: str, size_bytes: int) -> bytes:
    """Return the one tar header that a member of this name and size has."""
    import tarfile  # by devices, only while a bundle is read

    member = tarfile.TarInfo(name)
    member.size = size_bytes
    return member.tobuf(tarfile.GNU_FORMAT, "ascii", "strict")


def padding(size_bytes: int) -> bytes:
    """Return the zeros that follow a member's bytes."""
    return bytes(-size_bytes % BLOCK_BYTES)


def bundle_bytes(seal: bytes, offers: tuple[Offer, ...]) -> int:
    """Return the length of the whole bundle."""
    sizes = (len(seal), *(offer.transfer_bytes for offer in offers))
    return sum(BLOCK_BYTES + size + len(padding(size)) for size in sizes) + len(END)


def write_bundle(seal: bytes, members: Iterator[tuple[Offer, Iterator[bytes]]]) -> Iterator[bytes]:
    """Yield a bundle piece by piece: the sealed statement, and each offer's transfer."""
    yield header(SEAL_NAME, len(seal)) + seal + padding(len(seal))
    for offer, pieces in members:
        yield header(member_name(offer), offer.transfer_bytes)
        yield from pieces
        yield padding(offer.transfer_bytes)
    yield END
