"""Batches of telemetry as they travel: compact JSON, deflated."""

from wire.codec import decode, encode
from wire.telemetry import Batch


def pack(batch: Batch) -> bytes:
    """Return a batch as it travels."""
    return encode(batch, deflate=True)


def unpack(data: bytes) -> Batch:
    """Read a batch.

    Raises:
        DecodeError: it is none, or too long.
    """
    return decode(Batch, data)
