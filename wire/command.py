"""One-shot requests to one device. State never travels this way."""

from typing import Annotated, Literal

from wire.codec import Document, Part
from wire.ids import CommandId, DeviceId, ModelName, UnixTime, Version
from wire.schema import Field

VERBS = ("ping", "restart-engine")
"""What people send by name."""
CAPTURE = "capture"
"""Carries an order of its own."""
MAX_SAMPLES = 1000
"""Of one order."""
LONGEST_CAPTURE_S = 7 * 86_400

CaptureKind = Literal["uncertain", "misclassified", "random"]


class CaptureOrder(Part):
    """Which inputs of a model a device is asked to keep and to send."""

    model: ModelName
    version: Version | None = None
    """None: of whichever serves."""
    kind: CaptureKind
    count: Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
    until: UnixTime
    """On the device's clock; at most a week away."""
    below_percent: Annotated[int, Field(ge=1, le=100)] = 60
    """uncertain: an input of which a top score is less than this."""
    one_in: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Of all inputs that would do, each is taken with this chance."""


class Command(Document):
    """Sealed for one device, not retained, expiring, obeyed at most once."""

    device: DeviceId
    id: CommandId
    verb: Annotated[str, Field(pattern=r"^[a-z][a-z-]{0,39}$")]
    expires_at: UnixTime
    """Unix seconds; later ones are refused."""
    capture: CaptureOrder | None = None
    """With `capture`: what is asked for."""


class CommandResult(Document):
    """The answer on the command's own result topic."""

    device: DeviceId
    id: CommandId
    outcome: Literal["done", "refused", "failed"]
    detail: str = ""
