"""Inputs that a device is asked for, and gives only where its own configuration allows it."""

import base64
from typing import Annotated, Literal

from wire.codec import DecodeError, Document, Part
from wire.command import CaptureKind
from wire.ids import CommandId, Count, DeviceId, Digest, ModelName, UnixTime, Version
from wire.schema import Field

MAX_SAMPLE_BYTES = 4 * 1024 * 1024
MAX_SAMPLE_PARTS = 64
MAX_SAMPLE_ROWS = 1024
PIECE_BYTES = 48 * 1024
"""In base64, and with the head, well under the limit of a document."""

CaptureState = Literal["capturing", "over", "withdrawn"]


class SamplePart(Part):
    """A stretch of a sample's bytes: one item as an app sent it, or one tensor."""

    name: Annotated[str, Field(max_length=120)] = ""
    """The tensor's; empty for an item."""
    media: Annotated[str, Field(max_length=60)]
    """Such as image/jpeg; `tensor` for one, row-major and little-endian."""
    size_bytes: Annotated[int, Field(ge=0, le=MAX_SAMPLE_BYTES)]
    datatype: Annotated[str, Field(max_length=10)] = ""
    shape: Annotated[tuple[Count, ...], Field(max_length=16)] = ()


class SampleHead(Part):
    """What is known of one captured input beside its bytes. No id of the app's own is in it."""

    sample: CommandId
    request: CommandId
    """Of the command that asked for it."""
    model: ModelName
    version: Version
    manifest: Digest
    variant: Annotated[str, Field(max_length=60)]
    kind: CaptureKind
    at: UnixTime
    digest: Digest
    size_bytes: Annotated[int, Field(ge=1, le=MAX_SAMPLE_BYTES)]
    parts: Annotated[tuple[SamplePart, ...], Field(max_length=MAX_SAMPLE_PARTS)]
    predicted: Annotated[tuple[Count, ...], Field(max_length=MAX_SAMPLE_ROWS)] = ()
    """Class of every row; none where the model has no classes."""
    scores: Annotated[tuple[Count, ...], Field(max_length=MAX_SAMPLE_ROWS)] = ()
    """The top score of every row, in millionths."""
    label: Annotated[tuple[Count, ...], Field(max_length=MAX_SAMPLE_ROWS)] | None = None
    """True class of every row, once an app told it."""


class Sample(Document):
    """A piece of a captured input. Without data: the label that came since."""

    device: DeviceId
    head: SampleHead
    offset: Annotated[int, Field(ge=0, le=MAX_SAMPLE_BYTES)]
    data: Annotated[str, Field(max_length=4 * (PIECE_BYTES // 3 + 1))]
    """Base64."""

    def piece(self) -> bytes:
        """Return the bytes of this piece.

        Raises:
            DecodeError: not base64, or more than the sample has.
        """
        try:
            piece = base64.b64decode(self.data, validate=True)
        except ValueError as error:
            raise DecodeError(f"data: expected base64, got {self.data[:40]!r}") from error
        if self.offset + len(piece) > self.head.size_bytes:
            raise DecodeError(
                f"data: expected to end by {self.head.size_bytes}, got {len(piece)} bytes at "
                f"{self.offset}"
            )
        return piece


class CaptureReport(Document):
    """How one order fares on one device."""

    device: DeviceId
    request: CommandId
    model: ModelName
    state: CaptureState
    """over: nothing more is captured. withdrawn: the device's consent; what it had is deleted."""
    captured: Count = 0
    deleted: Count = 0
    """Captured and never sent: too old, no room, or the consent was withdrawn."""
    left_out: Annotated[dict[str, Count], Field(max_length=16)] = {}
    """Inputs that would have done, by reason: `too large`, `no room`..."""


class SampleAck(Document):
    """What the controller has of a sample, or of a report."""

    device: DeviceId
    request: CommandId
    wanted: bool = True
    """False: nobody waits for this order any more, and all of it is to be deleted."""
    sample: CommandId | None = None
    """None: the report came."""
    have: Count = 0
    """Bytes of the sample that are kept, from its beginning."""
    labelled: bool = False
    """Its label is kept."""
