"""What fires now, for whoever listens on the broker: state, like everything that is retained."""

from typing import Annotated, Literal

from wire.codec import Document, Part
from wire.ids import Count, DeviceId, ModelName, UnixTime, Version
from wire.schema import Field

MAX_FIRING = 100


class FiringAlert(Part):
    """One alert that fires."""

    id: Annotated[str, Field(max_length=40)]
    rule: Annotated[str, Field(max_length=40)]
    severity: Literal["info", "warning", "critical"]
    subject: Annotated[str, Field(max_length=200)]
    """As people read it: `cam-1`, `digits@2`, `digits@2 on cam-1`."""
    reason: Annotated[str, Field(max_length=600)]
    since: UnixTime
    model: ModelName | None = None
    version: Version | None = None
    device: DeviceId | None = None


class Alerts(Document):
    """All alerts that fire and are not silenced; each document takes the last one's place."""

    at: UnixTime
    """When it was written."""
    firing: Annotated[tuple[FiringAlert, ...], Field(max_length=MAX_FIRING)] = ()
    """The most severe first."""
    more: Count = 0
    """How many fire beside these."""
