"""One-shot requests to one device. State never travels this way."""

from typing import Annotated, Literal

from wire.codec import Document
from wire.ids import CommandId, DeviceId, UnixTime
from wire.sample import CaptureOrder
from wire.schema import Field

VERBS = ("ping", "restart-engine")
"""What people send by name."""
CAPTURE = "capture"
"""Carries an order of its own."""


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
