"""Slots at work, with the events that came of it."""

import hashlib
import queue
from pathlib import Path

from agent.core.events import BlobStored, Event, TransferOpened
from agent.shell.slots import Slots
from wire.ids import digest_of
from wire.transfer import Offer, chunk_hash

CHUNK = 4096


class Desk:
    """Slots with the events that came of them."""

    def __init__(self, root: Path, reserve_bytes: int = 0) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.slots = Slots(root, reserve_bytes, self.events.put)

    def next(self) -> Event:
        return self.events.get(timeout=10)

    def open(self, offer: Offer) -> TransferOpened:
        self.slots.open_transfer(offer)
        event = self.next()
        assert isinstance(event, TransferOpened), event
        return event

    def fill(self, offer: Offer, data: bytes) -> None:
        self.open(offer)
        self.slots.write_index(offer.transfer, index_of(data))
        for offset in range(0, len(data), CHUNK):
            self.slots.write_chunk(offer.transfer, offset, data[offset : offset + CHUNK])

    def store(self, data: bytes) -> str:
        offer = offer_of(data)
        self.fill(offer, data)
        self.slots.finish(offer)
        assert self.next() == BlobStored(offer.file)
        return offer.file


def index_of(data: bytes) -> bytes:
    return b"".join(chunk_hash(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK))


def offer_of(data: bytes, *, packed: bytes | None = None, size: int | None = None) -> Offer:
    """Offer `data` as it is, or as `packed`; `size` is what the offer claims it unpacks to."""
    travels = data if packed is None else packed
    return Offer(
        file=digest_of(data),
        file_bytes=len(data) if size is None else size,
        encoding="identity" if packed is None else "zstd",
        transfer=digest_of(travels),
        transfer_bytes=len(travels),
        index=digest_of(index_of(travels)),
        chunk_bytes=CHUNK,
    )


def noise(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(size)
