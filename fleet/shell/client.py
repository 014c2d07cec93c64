"""Talks to the controller's HTTP API, in the words of `fleet.core.views`."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from pydantic import TypeAdapter, ValidationError

from fleet.core.alert_views import (
    AcknowledgeRequest,
    AlertPolicyView,
    AlertView,
    QuarantineRequest,
    SilenceRequest,
    SilenceView,
)
from fleet.core.errors import FleetError
from fleet.core.export import Asked
from fleet.core.export_views import ExportLine
from fleet.core.report_views import ReportView
from fleet.core.sample_views import CaptureRequest, CaptureRequestView, Deleted, SampleView
from fleet.core.suppression import MIN_DEVICES
from fleet.core.views import (
    CommandView,
    DeviceView,
    ErrorView,
    EventView,
    HealthView,
    ReleaseView,
    RolloutPlanView,
    RolloutRequest,
    RolloutView,
)
from wire.codec import encode, first_error
from wire.ids import ReleaseRef
from wire.manifest import Manifest

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 60.0
_PIECE_BYTES = 256 * 1024
_RETRY = "fleet serve"

T = TypeVar("T")


class ClientError(FleetError):
    """The controller refused, or did not answer."""


class UnreachableError(ClientError):
    """The controller did not answer; it may come back."""


class ControllerClient:
    """The controller at `base_url`. Every method raises `ClientError` when it is refused."""

    def __init__(self, base_url: str) -> None:
        """Remember where the controller is; nothing is sent yet."""
        self.base_url = base_url.rstrip("/")
        try:
            # Not through the environment's proxies: the controller is on this machine.
            self._http = httpx.Client(
                base_url=self.base_url,
                timeout=httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise self._bad_url(str(error)) from error
        url = self._http.base_url
        if url.scheme not in ("http", "https") or not url.host or (url.port or 1) > 65535:
            raise self._bad_url("one of another kind")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def health(self) -> HealthView:
        """Return whether the controller works."""
        return self._get("/v1/health", HealthView)

    def has_blob(self, digest: str) -> bool:
        """Return whether the controller keeps this file."""
        return self._send("HEAD", f"/v1/blobs/{digest}", accept=(404,)).status_code == 200

    def upload(self, digest: str, path: Path, progress: Callable[[int], None]) -> None:
        """Send the file at `path`, calling `progress` with the bytes of each piece sent."""
        headers = {"content-length": str(path.stat().st_size)}
        with path.open("rb") as file:

            def pieces() -> Iterator[bytes]:
                while piece := file.read(_PIECE_BYTES):
                    yield piece
                    progress(len(piece))

            self._send("PUT", f"/v1/blobs/{digest}", content=pieces(), headers=headers)

    def add_release(self, manifest: Manifest) -> tuple[ReleaseView, bool]:
        """Keep a release; False with it when the very same was there already."""
        # The digest is that of these bytes: they are passed on as they are.
        answer = self._send(
            "POST", "/v1/releases", content=b'{"manifest":' + encode(manifest) + b"}"
        )
        return self._read(answer, ReleaseView), answer.status_code == 201

    def releases(self, model: str | None = None) -> list[ReleaseView]:
        """Return all releases (of one model), newest version first."""
        params = {} if model is None else {"model": model}
        return self._get("/v1/releases", list[ReleaseView], params=params)

    def release(self, model: str, version: int) -> ReleaseView:
        """Return one release with its manifest."""
        return self._get(f"/v1/releases/{_level(model)}/{version}", ReleaseView)

    def bundle(
        self, ref: ReleaseRef, device: str | None, install: bool
    ) -> AbstractContextManager[tuple[int, Iterator[bytes]]]:
        """Return the length of a release's bundle, and its pieces as they come."""
        params = {"install": "1"} if install else {}
        params |= {"device": device} if device is not None else {}
        path = f"/v1/releases/{_level(ref.model)}/{ref.version}/bundle"
        return self._stream(path, params)

    def next_version(self, model: str) -> int:
        """Return the version that the next release of `model` would have."""
        answer = self._get(f"/v1/models/{_level(model)}/next-version", dict[str, int])
        return answer["version"]

    def model_report(  # noqa: PLR0917 - as they are asked for
        self, model: str, version: int | None, by: str | None, since: str, until: str,
        min_devices: int = MIN_DEVICES,
    ) -> ReportView:  # fmt: skip
        """Return what is known of a release, or of all of a model, between two times."""
        asked = {"version": version, "by": by, "since": since, "until": until,
                 "min_devices": min_devices}  # fmt: skip
        params = {name: str(value) for name, value in asked.items() if value is not None}
        return self._get(f"/v1/models/{_level(model)}/report", ReportView, params=params)

    def telemetry_export(self, asked: Asked) -> Iterator[ExportLine]:
        """Yield the lines of an export as they come; all but the last is no export, and raises."""
        told = {name: str(value) for name, value in asdict(asked).items() if value is not None}
        path = f"/v1/models/{_level(told.pop('model'))}/telemetry"
        ended = False
        try:
            with self._http.stream("GET", path, params=told) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refused(answer)
                for text in answer.iter_lines():
                    line = self._read(text, ExportLine)
                    if line.refused is not None:
                        raise ClientError(line.refused.error, line.refused.next_step)
                    ended = line.end is not None
                    yield line
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if not ended:
            raise self._not_ours("an export without its end")

    def devices(self) -> list[DeviceView]:
        """Return every device ever heard of, by id."""
        return self._get("/v1/devices", list[DeviceView])

    def device(self, id: str) -> DeviceView:
        """Return one device."""
        return self._get(f"/v1/devices/{_level(id)}", DeviceView)

    def device_config(self, id: str) -> str:
        """Return the text of an `agent.toml` for this device."""
        return self._send("GET", f"/v1/devices/{_level(id)}/config").text

    def send_command(self, device: str, verb: str) -> CommandView:
        """Send a one-shot request to a device."""
        path = f"/v1/devices/{_level(device)}/commands"
        return self._read(self._send("POST", path, json={"verb": verb}), CommandView)

    def command(self, device: str, id: str) -> CommandView:
        """Return a command and its answer as far as it came."""
        return self._get(f"/v1/devices/{_level(device)}/commands/{_level(id)}", CommandView)

    def start_rollout(self, request: RolloutRequest) -> RolloutView:
        """Start to bring a release to devices."""
        answer = self._send("POST", "/v1/rollouts", json=request.model_dump(mode="json"))
        return self._read(answer, RolloutView)

    def rollouts(self) -> list[RolloutView]:
        """Return all rollouts, the newest first."""
        return self._get("/v1/rollouts", list[RolloutView])

    def rollout(self, id: str) -> RolloutView:
        """Return one rollout with its devices."""
        return self._get(f"/v1/rollouts/{_level(id)}", RolloutView)

    def pause_rollout(self, id: str, reason: str) -> RolloutView:
        """Open no wave and let no device fetch until `resume_rollout`."""
        path = f"/v1/rollouts/{_level(id)}/pause"
        return self._read(self._send("POST", path, json={"reason": reason}), RolloutView)

    def resume_rollout(self, id: str) -> RolloutView:
        """Go on with a paused rollout where it stood."""
        return self._read(self._send("POST", f"/v1/rollouts/{_level(id)}/resume"), RolloutView)

    def plan_rollout(self, request: RolloutRequest) -> RolloutPlanView:
        """Return what a rollout would be, and start nothing."""
        answer = self._send("POST", "/v1/rollouts/plan", json=request.model_dump(mode="json"))
        return self._read(answer, RolloutPlanView)

    def approve_rollout(self, id: str, reason: str) -> RolloutView:
        """Let the open wave pass although no test decided."""
        path = f"/v1/rollouts/{_level(id)}/approve"
        return self._read(self._send("POST", path, json={"reason": reason}), RolloutView)

    def abort_rollout(self, id: str, reason: str) -> RolloutView:
        """Call a rollout off and take its devices back."""
        path = f"/v1/rollouts/{_level(id)}/abort"
        return self._read(self._send("POST", path, json={"reason": reason}), RolloutView)

    def promote_rollout(self, id: str, reason: str) -> RolloutView:
        """Open all waves of a rollout at once."""
        path = f"/v1/rollouts/{_level(id)}/promote"
        return self._read(self._send("POST", path, json={"reason": reason}), RolloutView)

    def roll_back_rollout(self, id: str, reason: str) -> RolloutView:
        """Take the devices of a rollout back, even when it is over."""
        path = f"/v1/rollouts/{_level(id)}/rollback"
        return self._read(self._send("POST", path, json={"reason": reason}), RolloutView)

    def request_samples(self, wanted: CaptureRequest) -> list[CaptureRequestView]:
        """Ask devices for inputs of a model."""
        answer = self._send("POST", "/v1/samples/requests", json=wanted.model_dump(mode="json"))
        return self._read(answer, list[CaptureRequestView])

    def sample_requests(self) -> list[CaptureRequestView]:
        """Return what was asked for, the newest first."""
        return self._get("/v1/samples/requests", list[CaptureRequestView])

    def samples(self, **wanted: str | None) -> list[SampleView]:
        """Return captured inputs (of a `model`, `device`, `request`), the newest first."""
        params = {key: value for key, value in wanted.items() if value is not None}
        return self._get("/v1/samples", list[SampleView], params=params)

    def sample(self, id: str) -> SampleView:
        """Return one captured input."""
        return self._get(f"/v1/samples/{_level(id)}", SampleView)

    def sample_data(self, id: str) -> bytes:
        """Return the bytes of a captured input."""
        return self._send("GET", f"/v1/samples/{_level(id)}/data").content

    def delete_samples(self, id: str) -> Deleted:
        """Delete a captured input, or a request with all of its own."""
        return self._read(self._send("DELETE", f"/v1/samples/{_level(id)}"), Deleted)

    def alerts(self, *, resolved: bool = False) -> list[AlertView]:
        """Return alerts, those that fire first; those that are over only when `resolved`."""
        state = "all" if resolved else "active"
        return self._get("/v1/alerts", list[AlertView], params={"state": state})

    def alert(self, id: str) -> AlertView:
        """Return one alert with its actions."""
        return self._get(f"/v1/alerts/{_level(id)}", AlertView)

    def acknowledge_alert(self, id: str, by: str, note: str) -> AlertView:
        """Note that an operator cares."""
        wanted = AcknowledgeRequest(by=by, note=note).model_dump()
        return self._read(
            self._send("POST", f"/v1/alerts/{_level(id)}/ack", json=wanted), AlertView
        )

    def alert_policy(self) -> AlertPolicyView:
        """Return the rules that hold, and whom alerts are told to."""
        return self._get("/v1/alert-policy", AlertPolicyView)

    def silences(self) -> list[SilenceView]:
        """Return the silences that hold, the next to end first."""
        return self._get("/v1/silences", list[SilenceView])

    def silence(self, wanted: SilenceRequest) -> SilenceView:
        """Hear nothing of a rule or a subject for a while."""
        return self._read(self._send("POST", "/v1/silences", json=wanted.model_dump()), SilenceView)

    def unsilence(self, id: str) -> SilenceView:
        """Take a silence back."""
        return self._read(self._send("DELETE", f"/v1/silences/{_level(id)}"), SilenceView)

    def quarantine(self, ref: ReleaseRef, reason: str) -> ReleaseView:
        """Let no new rollout bring a release."""
        path = f"/v1/releases/{_level(ref.model)}/{ref.version}/quarantine"
        wanted = QuarantineRequest(reason=reason).model_dump()
        return self._read(self._send("POST", path, json=wanted), ReleaseView)

    def end_quarantine(self, ref: ReleaseRef) -> ReleaseView:
        """Take a release out of quarantine."""
        path = f"/v1/releases/{_level(ref.model)}/{ref.version}/quarantine"
        return self._read(self._send("DELETE", path), ReleaseView)

    def events(
        self, limit: int, kind: str = "", about: str = "", since: float = 0.0, after: int = 0
    ) -> list[EventView]:
        """Return what happened lately, the newest first; those `after` an id the oldest first."""
        asked = {"limit": limit, "kind": kind, "about": about, "since": since, "after": after}
        params = {name: str(value) for name, value in asked.items() if value}
        return self._get("/v1/events", list[EventView], params=params)

    def _get(self, path: str, kind: type[T], params: dict[str, str] | None = None) -> T:
        return self._read(self._send("GET", path, params=params), kind)

    def _read(self, answer: httpx.Response | str, kind: type[T]) -> T:
        text = answer if isinstance(answer, str) else answer.content
        try:
            return TypeAdapter(kind).validate_json(text)
        except ValidationError as error:
            raise self._not_ours(first_error(error)) from None

    def _send(
        self, method: str, path: str, *, accept: tuple[int, ...] = (), **content: Any
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **content)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_success or answer.status_code in accept:
            return answer
        raise self._refused(answer)

    @contextmanager
    def _stream(self, path: str, params: dict[str, str]) -> Iterator[tuple[int, Iterator[bytes]]]:
        try:
            with self._http.stream("GET", path, params=params) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refused(answer)
                yield int(answer.headers["content-length"]), answer.iter_bytes(_PIECE_BYTES)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _refused(self, answer: httpx.Response) -> ClientError:
        request = answer.request
        try:
            view = ErrorView.model_validate_json(answer.content)
        except ValidationError:
            return self._not_ours(
                f"status {answer.status_code} to {request.method} {request.url.path}"
            )
        return ClientError(view.error, view.next_step)

    def _unreachable(self, error: httpx.TransportError) -> ClientError:
        if isinstance(error, httpx.ConnectError):
            got = "connection refused" if "refused" in str(error) else str(error)
        elif isinstance(error, httpx.TimeoutException):
            got = f"none in {ANSWER_TIMEOUT_S:.0f} s"
        else:
            got = f"a broken connection ({str(error) or type(error).__name__})"
        return UnreachableError(
            f"controller: expected an answer at {self.base_url}, got {got}", _RETRY
        )

    def _not_ours(self, got: str) -> ClientError:
        return ClientError(
            f"controller: expected a farflung controller at {self.base_url}, got {got}",
            "check --controller and FARFLUNG_CONTROLLER",
        )

    def _bad_url(self, got: str) -> ClientError:
        return ClientError(
            f"controller: expected a URL such as http://127.0.0.1:8700, got"
            f" {self.base_url!r}, {got}",
            "check --controller and FARFLUNG_CONTROLLER",
            exit_code=2,
        )


def _level(text: str) -> str:
    """Return `text` as one level of a path, whatever is in it."""
    return quote(text, safe="") or "-"
