"""What the HTTP API may ask of the controller. Every method may be called from any thread."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from fleet.core.alert_port import AlertsPort
from fleet.core.export import Asked
from fleet.core.export_views import ExportLine
from fleet.core.report_views import ReportView
from fleet.core.sample_views import CaptureRequest, CaptureRequestView, Deleted, SampleView
from fleet.core.suppression import MIN_DEVICES
from fleet.core.views import (
    CommandView,
    DeviceView,
    EventView,
    HealthView,
    ReleaseView,
    RolloutPlanView,
    RolloutRequest,
    RolloutView,
)
from wire.manifest import Manifest


@dataclass(frozen=True, slots=True)
class Bundle:
    """A release in one file, made while it is read."""

    size_bytes: int
    pieces: Iterator[bytes]


class BlobWriter(Protocol):
    """Takes the bytes of one file whose digest was promised."""

    def write(self, data: bytes) -> None:
        """Append bytes."""

    def finish(self) -> int:
        """Keep the file and return its size in bytes.

        Raises:
            Refusal: 400, the bytes have another digest; nothing is kept.
        """

    def abort(self) -> None:
        """Throw the bytes away. Harmless after `finish`."""


class ControllerPort(Protocol):
    """The controller, as its API sees it."""

    @property
    def upkeep(self) -> AlertsPort:
        """Alerts and quarantine."""

    def health(self) -> HealthView:
        """Return whether the controller works."""

    def has_blob(self, digest: str) -> bool:
        """Return whether a file with this digest is kept."""

    def open_blob(self, digest: str) -> BlobWriter:
        """Start to take in a file.

        Raises:
            Refusal: 400, not a digest.
        """

    def add_release(self, manifest: Manifest) -> tuple[ReleaseView, bool]:
        """Keep a release; False with the same release when it was there already.

        Raises:
            Refusal: 409, the name and version exist with other bytes; 422, files are missing.
        """

    def releases(self, model: str | None) -> list[ReleaseView]:
        """Return all releases (of one model), newest version first."""

    def release(self, model: str, version: int) -> ReleaseView:
        """Return one release with its manifest.

        Raises:
            Refusal: 404.
        """

    def bundle(self, model: str, version: int, device: str | None, install: bool) -> Bundle:
        """Return a release as a file for devices (one `device`) that fetch nothing.

        `install`: they may take it on the word of that file.

        Raises:
            Refusal: 404; 422, not a device id.
        """

    def next_version(self, model: str) -> int:
        """Return the version after the highest one of `model`; 1 when it is new."""

    def model_report(  # noqa: PLR0917 - as they are asked for
        self, model: str, version: int | None, by: str | None, since: str, until: str,
        min_devices: int = MIN_DEVICES,
    ) -> ReportView:  # fmt: skip
        """Return what is known of a release, or of all of a model, between two times.

        Raises:
            Refusal: 404, no such model or release; 422, a time or label that makes no sense.
        """

    def telemetry_export(self, asked: Asked) -> Iterator[ExportLine]:
        """Return telemetry as rows, made while they are read.

        Raises:
            Refusal: 404, no such model or release; 422, something that makes no sense.
        """

    def metrics(self, accept: str, device: str | None) -> tuple[bytes, str]:
        """Return metrics for a Prometheus, of the fleet or of one device: text, content type.

        Raises:
            Refusal: 404, no such device.
        """

    def devices(self) -> list[DeviceView]:
        """Return every device ever heard of, by id."""

    def device(self, id: str) -> DeviceView:
        """Return one device.

        Raises:
            Refusal: 404, with the nearest id that exists.
        """

    def start_rollout(self, request: RolloutRequest) -> RolloutView:
        """Start to bring a release to devices.

        Raises:
            Refusal: 404, no such release or device; 422, a target or waves that make no sense.
        """

    def plan_rollout(self, request: RolloutRequest) -> RolloutPlanView:
        """Return what a rollout would be, and start nothing.

        Raises:
            Refusal: 404, no such release or device; 422, a target or waves that make no sense.
        """

    def rollouts(self) -> list[RolloutView]:
        """Return all rollouts, the newest first."""

    def rollout(self, id: str) -> RolloutView:
        """Return one rollout with its devices.

        Raises:
            Refusal: 404.
        """

    def pause_rollout(self, id: str, reason: str) -> RolloutView:
        """Open no wave and let no device fetch until it is resumed.

        Raises:
            Refusal: 404, no such rollout; 409, it is not running.
        """

    def resume_rollout(self, id: str) -> RolloutView:
        """Go on with a paused rollout where it stood.

        Raises:
            Refusal: 404, no such rollout; 409, it is not paused.
        """

    def approve_rollout(self, id: str, reason: str) -> RolloutView:
        """Let the open wave pass once it is settled, although no test decided.

        Raises:
            Refusal: 404, no such rollout; 409, it is over, or the wave is approved already.
        """

    def abort_rollout(self, id: str, reason: str) -> RolloutView:
        """Call a rollout off and take its devices back.

        Raises:
            Refusal: 404; 409, it is over already.
        """

    def promote_rollout(self, id: str, reason: str) -> RolloutView:
        """Open all waves of a rollout at once; what calls it off still may.

        Raises:
            Refusal: 404; 409, it is paused or over, or all its waves are open already.
        """

    def roll_back_rollout(self, id: str, reason: str) -> RolloutView:
        """Take the devices of a rollout back, even when it is completed or superseded.

        Raises:
            Refusal: 404; 409, it is rolled back already, nothing of it is left to take back, or
                another rollout of the model is under way.
        """

    def send_command(self, device: str, verb: str) -> CommandView:
        """Send a one-shot request to a device.

        Raises:
            Refusal: 404, no such device; 409, it is offline; 422, no such verb.
        """

    def command(self, device: str, id: str) -> CommandView:
        """Return a command and its answer as far as it came.

        Raises:
            Refusal: 404.
        """

    def request_samples(self, wanted: CaptureRequest) -> list[CaptureRequestView]:
        """Ask devices for inputs of a model; each answers for itself.

        Raises:
            Refusal: 404, no such model; 422, a target that makes no sense, or too many devices.
        """

    def sample_requests(self) -> list[CaptureRequestView]:
        """Return what was asked for, the newest first."""

    def samples(
        self, model: str | None, device: str | None, request: str | None
    ) -> list[SampleView]:
        """Return captured inputs (of a model, a device, a request), the newest first."""

    def sample(self, id: str) -> SampleView:
        """Return one captured input.

        Raises:
            Refusal: 404.
        """

    def sample_data(self, id: str) -> bytes:
        """Return the bytes of a captured input.

        Raises:
            Refusal: 404; 409, it is still on its way.
        """

    def delete_samples(self, id: str) -> Deleted:
        """Delete a captured input, or a request with all of its own.

        Raises:
            Refusal: 404.
        """

    def device_config(self, id: str) -> str:
        """Return the text of an `agent.toml` with which a device joins this fleet.

        Raises:
            Refusal: 422, not a device id.
        """

    def events(
        self, limit: int, kind: str = "", about: str = "", since: float = 0.0, after: int = 0
    ) -> list[EventView]:
        """Return what happened lately, the newest first; those `after` an id the oldest first."""
