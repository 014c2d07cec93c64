"""Captured inputs as the HTTP API tells of them: what was asked for, and what came."""

from typing import Annotated

from pydantic import Field

from fleet.core.views import View
from wire.command import LONGEST_CAPTURE_S, MAX_SAMPLES, CaptureKind
from wire.ids import ModelName, Version

MAX_ASKED = 200
"""Devices of one request."""


class CaptureRequest(View):
    """What `POST /v1/samples/requests` takes."""

    model: ModelName
    version: Version | None = None
    """None: of whichever serves."""
    to: str = "all"
    """As in RolloutRequest, at most 200 devices."""
    kind: CaptureKind
    count: Annotated[int, Field(ge=1, le=MAX_SAMPLES)] = 10
    """Of each device."""
    for_s: Annotated[int, Field(ge=1, le=LONGEST_CAPTURE_S)] = 7200
    below_percent: Annotated[int, Field(ge=1, le=100)] = 60
    """uncertain: inputs of which a top score is less than this."""
    one_in: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    """Of all inputs that would do, each is taken with this chance."""


class CaptureRequestView(View):
    """One request to one device, and what became of it."""

    id: str
    """Also the command's; empty where none was sent."""
    device: str
    model: str
    version: int | None = None
    kind: str
    count: int
    asked_at: float
    until: float
    outcome: str
    """waiting, done (it captures), refused, failed, expired or offline: the device's answer."""
    detail: str = ""
    """Why, in the device's words."""
    state: str = ""
    """What the device reported last: capturing, over or withdrawn."""
    captured: int = 0
    deleted: int = 0
    """On the device, and never sent."""
    left_out: dict[str, int] = {}  # noqa: RUF012 - pydantic copies defaults
    """Inputs that would have done, by reason."""
    received: int = 0
    """Samples that are here, or were."""


class SamplePartView(View):
    """A stretch of a sample's bytes."""

    name: str = ""
    media: str
    size_bytes: int
    datatype: str = ""
    shape: tuple[int, ...] = ()


class SampleView(View):
    """A captured input, without its bytes."""

    id: str
    request: str
    device: str
    model: str
    version: int
    manifest: str
    variant: str
    kind: str
    at: float
    received_at: float
    size_bytes: int
    have_bytes: int
    """Less than `size_bytes` while it is on its way."""
    digest: str
    parts: tuple[SamplePartView, ...]
    predicted: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    label: tuple[int, ...] | None = None

    @property
    def whole(self) -> bool:
        """Whether all of its bytes are here."""
        return self.have_bytes == self.size_bytes


class Deleted(View):
    """What `DELETE` of samples answers."""

    samples: int
    requests: int
