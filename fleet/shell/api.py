"""The controller's HTTP API: routes to the port's methods and views to JSON, nothing else.

Every refusal is an `ErrorView`. Only loopback names are answered and no page of another origin,
since a browser on this machine can be led here by any web site.
"""

import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

import uvicorn
from pydantic import Field, ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from fleet.core.alert_views import AcknowledgeRequest, QuarantineRequest, SilenceRequest
from fleet.core.errors import FleetError
from fleet.core.export import Asked
from fleet.core.port import ControllerPort
from fleet.core.report_asked import SINCE
from fleet.core.report_views import ReportView
from fleet.core.sample_views import CaptureRequest
from fleet.core.suppression import MIN_DEVICES
from fleet.core.views import ErrorView, Refusal, RolloutRequest, View
from wire.codec import first_error
from wire.manifest import Manifest

MAX_BODY_BYTES = 4 * 1024 * 1024
"""Of a JSON request; files are streamed and have no such limit."""
MAX_EVENTS = 1000
LOOPBACK = ("127.0.0.1", "localhost", "::1")

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_TOGETHER = 50
_QUARANTINE = "/v1/releases/{model}/{version:int}/quarantine"
_log = logging.getLogger(__name__)

N = TypeVar("N", int, None)


class ReleaseRequest(View):
    """What `POST /v1/releases` takes."""

    manifest: Manifest


class AbortRequest(View):
    """What `POST /v1/rollouts/{id}/abort` takes."""

    reason: str = Field(default="called off by an operator", max_length=500)


class EventQuery(View):
    """What `GET /v1/events` takes beside `limit`."""

    kind: str = ""
    about: str = ""
    since: float = Field(default=0.0, ge=0)
    after: int = Field(default=0, ge=0)


class PromoteRequest(View):
    """What `POST /v1/rollouts/{id}/promote` takes."""

    reason: str = Field(default="promoted by an operator", max_length=500)


class RollbackRequest(View):
    """What `POST /v1/rollouts/{id}/rollback` takes."""

    reason: str = Field(default="taken back by an operator", max_length=500)


class PauseRequest(View):
    """What `POST /v1/rollouts/{id}/pause` takes."""

    reason: str = Field(default="paused by an operator", max_length=500)


class ApproveRequest(View):
    """What `POST /v1/rollouts/{id}/approve` takes."""

    reason: str = Field(default="approved by an operator", max_length=500)


class CommandRequest(View):
    """What `POST /v1/devices/{id}/commands` takes."""

    verb: str


class NextVersionView(View):
    """The version that the next release of a model would have."""

    version: int


class BlobView(View):
    """A file that is kept."""

    digest: str
    size_bytes: int


def build_app(port: ControllerPort) -> Starlette:
    """Return the API of the controller behind `port`."""
    return Starlette(
        routes=_Handlers(port).routes(),
        middleware=[Middleware(_Guard)],
        exception_handlers={
            Refusal: _refused,
            HTTPException: _no_such_address,
            ValidationError: _invalid,
        },
    )


class _Handlers:
    """One method a route. Plain ones run in a thread each, since the port may wait for a disk."""

    def __init__(self, port: ControllerPort) -> None:
        self._port = port

    def routes(self) -> list[Route]:
        device, rollout = "/v1/devices/{id}", "/v1/rollouts/{id}"
        return [
            Route("/metrics", self.metrics),
            Route("/metrics/device/{id}", self.metrics),
            Route("/v1/health", self.health),
            Route("/v1/blobs/{digest}", self.has_blob, methods=["HEAD"]),
            Route("/v1/blobs/{digest}", self.put_blob, methods=["PUT"]),
            Route("/v1/releases", self.releases),
            Route("/v1/releases", self.add_release, methods=["POST"]),
            Route("/v1/releases/{model}/{version:int}", self.release),
            Route("/v1/releases/{model}/{version:int}/bundle", self.bundle),
            Route("/v1/models/{model}/next-version", self.next_version),
            Route("/v1/models/{model}/report", self.report),
            Route("/v1/models/{model}/report.svg", self.report_picture),
            Route("/v1/models/{model}/telemetry", self.telemetry_export),
            Route("/v1/devices", self.devices),
            Route(device, self.device),
            Route(f"{device}/config", self.device_config),
            Route(f"{device}/commands", self.send_command, methods=["POST"]),
            Route(f"{device}/commands/{{command}}", self.command),
            Route("/v1/rollouts", self.rollouts),
            Route("/v1/rollouts", self.start_rollout, methods=["POST"]),
            Route("/v1/rollouts/plan", self.plan_rollout, methods=["POST"]),
            Route(rollout, self.rollout),
            Route(f"{rollout}/pause", self.pause_rollout, methods=["POST"]),
            Route(f"{rollout}/resume", self.resume_rollout, methods=["POST"]),
            Route(f"{rollout}/approve", self.approve_rollout, methods=["POST"]),
            Route(f"{rollout}/abort", self.abort_rollout, methods=["POST"]),
            Route(f"{rollout}/promote", self.promote_rollout, methods=["POST"]),
            Route(f"{rollout}/rollback", self.roll_back_rollout, methods=["POST"]),
            Route("/v1/events", self.events),
            Route("/v1/samples", self.samples),
            Route("/v1/samples/requests", self.sample_requests),
            Route("/v1/samples/requests", self.request_samples, methods=["POST"]),
            Route("/v1/samples/{id}", self.sample),
            Route("/v1/samples/{id}", self.delete_samples, methods=["DELETE"]),
            Route("/v1/samples/{id}/data", self.sample_data),
            Route("/v1/alerts", self.alerts),
            Route("/v1/alerts/{id}", self.alert),
            Route("/v1/alerts/{id}/ack", self.acknowledge_alert, methods=["POST"]),
            Route("/v1/alert-policy", self.alert_policy),
            Route("/v1/silences", self.silences),
            Route("/v1/silences", self.silence, methods=["POST"]),
            Route("/v1/silences/{id}", self.unsilence, methods=["DELETE"]),
            Route(_QUARANTINE, self.quarantine, methods=["POST"]),
            Route(_QUARANTINE, self.end_quarantine, methods=["DELETE"]),
        ]

    def metrics(self, request: Request) -> Response:
        accept, device = request.headers.get("accept", ""), request.path_params.get("id")
        body, content_type = self._port.metrics(accept, device)
        return Response(body, headers={"content-type": content_type})

    def health(self, request: Request) -> Response:
        return _json(self._port.health())

    def has_blob(self, request: Request) -> Response:
        kept = self._port.has_blob(request.path_params["digest"])
        return Response(status_code=200 if kept else 404)

    async def put_blob(self, request: Request) -> Response:
        digest = request.path_params["digest"]
        writer = await run_in_threadpool(self._port.open_blob, digest)
        try:
            async for data in request.stream():
                await run_in_threadpool(writer.write, data)
            size_bytes = await run_in_threadpool(writer.finish)
        finally:
            await run_in_threadpool(writer.abort)
        return _json(BlobView(digest=digest, size_bytes=size_bytes), 201)

    def releases(self, request: Request) -> Response:
        return _json_list(self._port.releases(request.query_params.get("model")))

    async def add_release(self, request: Request) -> Response:
        wanted = ReleaseRequest.model_validate(await _body(request))
        view, new = await run_in_threadpool(self._port.add_release, wanted.manifest)
        return _json(view, 201 if new else 200)

    def release(self, request: Request) -> Response:
        params = request.path_params
        return _json(self._port.release(params["model"], params["version"]))

    def bundle(self, request: Request) -> Response:
        params, query = request.path_params, request.query_params
        install = query.get("install", "0")
        if install not in ("0", "1"):
            raise Refusal(422, f"install: expected 0 or 1, got {install[:40]!r}")
        model, version = params["model"], params["version"]
        bundle = self._port.bundle(model, version, query.get("device"), install == "1")
        return StreamingResponse(
            bundle.pieces,
            media_type="application/x-tar",
            headers={
                "content-length": str(bundle.size_bytes),
                "content-disposition": f'attachment; filename="{model}-{version}.ffb"',
            },
        )

    def next_version(self, request: Request) -> Response:
        version = self._port.next_version(request.path_params["model"])
        return _json(NextVersionView(version=version))

    def report(self, request: Request) -> Response:
        return _json(self._report(request))

    def report_picture(self, request: Request) -> Response:
        from fleet.core.report_page import svg

        return Response(svg(self._report(request)), media_type="image/svg+xml")

    def _report(self, request: Request) -> ReportView:
        query, model = request.query_params, request.path_params["model"]
        version = _number(query, "version", None)
        since, until = query.get("since", SINCE), query.get("until", "now")
        least = _number(query, "min_devices", MIN_DEVICES)
        return self._port.model_report(model, version, query.get("by"), since, until, least)

    def telemetry_export(self, request: Request) -> Response:
        query = request.query_params
        told = {name: query[name] for name in ("by", "since", "until", "step") if name in query}
        lines = self._port.telemetry_export(
            Asked(
                request.path_params["model"],
                _number(query, "version", None),
                min_devices=_number(query, "min_devices", MIN_DEVICES),
                **told,
            )
        )
        return StreamingResponse(_joined(lines), media_type="application/x-ndjson")

    def devices(self, request: Request) -> Response:
        return _json_list(self._port.devices())

    def device(self, request: Request) -> Response:
        return _json(self._port.device(request.path_params["id"]))

    def device_config(self, request: Request) -> Response:
        return PlainTextResponse(self._port.device_config(request.path_params["id"]))

    async def send_command(self, request: Request) -> Response:
        wanted = CommandRequest.model_validate(await _body(request))
        device = request.path_params["id"]
        return _json(await run_in_threadpool(self._port.send_command, device, wanted.verb), 201)

    def command(self, request: Request) -> Response:
        params = request.path_params
        return _json(self._port.command(params["id"], params["command"]))

    def rollouts(self, request: Request) -> Response:
        return _json_list(self._port.rollouts())

    async def start_rollout(self, request: Request) -> Response:
        wanted = RolloutRequest.model_validate(await _body(request))
        return _json(await run_in_threadpool(self._port.start_rollout, wanted), 201)

    def rollout(self, request: Request) -> Response:
        return _json(self._port.rollout(request.path_params["id"]))

    async def pause_rollout(self, request: Request) -> Response:
        wanted = PauseRequest.model_validate(await _body(request))
        id = request.path_params["id"]
        return _json(await run_in_threadpool(self._port.pause_rollout, id, wanted.reason))

    def resume_rollout(self, request: Request) -> Response:
        return _json(self._port.resume_rollout(request.path_params["id"]))

    async def plan_rollout(self, request: Request) -> Response:
        wanted = RolloutRequest.model_validate(await _body(request))
        return _json(await run_in_threadpool(self._port.plan_rollout, wanted))

    async def approve_rollout(self, request: Request) -> Response:
        wanted = ApproveRequest.model_validate(await _body(request))
        id = request.path_params["id"]
        return _json(await run_in_threadpool(self._port.approve_rollout, id, wanted.reason))

    async def abort_rollout(self, request: Request) -> Response:
        wanted = AbortRequest.model_validate(await _body(request))
        id = request.path_params["id"]
        return _json(await run_in_threadpool(self._port.abort_rollout, id, wanted.reason))

    async def promote_rollout(self, request: Request) -> Response:
        wanted = PromoteRequest.model_validate(await _body(request))
        id = request.path_params["id"]
        return _json(await run_in_threadpool(self._port.promote_rollout, id, wanted.reason))

    async def roll_back_rollout(self, request: Request) -> Response:
        wanted = RollbackRequest.model_validate(await _body(request))
        id = request.path_params["id"]
        return _json(await run_in_threadpool(self._port.roll_back_rollout, id, wanted.reason))

    def samples(self, request: Request) -> Response:
        query = request.query_params
        found = self._port.samples(query.get("model"), query.get("device"), query.get("request"))
        return _json_list(found)

    def sample_requests(self, request: Request) -> Response:
        return _json_list(self._port.sample_requests())

    async def request_samples(self, request: Request) -> Response:
        wanted = CaptureRequest.model_validate(await _body(request))
        return _json_list(await run_in_threadpool(self._port.request_samples, wanted))

    def sample(self, request: Request) -> Response:
        return _json(self._port.sample(request.path_params["id"]))

    def sample_data(self, request: Request) -> Response:
        data = self._port.sample_data(request.path_params["id"])
        return Response(data, media_type="application/octet-stream")

    def delete_samples(self, request: Request) -> Response:
        return _json(self._port.delete_samples(request.path_params["id"]))

    def alerts(self, request: Request) -> Response:
        state = request.query_params.get("state", "active")
        if state not in ("active", "all"):
            raise Refusal(422, f"state: expected active or all, got {state[:40]!r}")
        return _json_list(self._port.upkeep.alerts(resolved=state == "all"))

    def alert(self, request: Request) -> Response:
        return _json(self._port.upkeep.alert(request.path_params["id"]))

    async def acknowledge_alert(self, request: Request) -> Response:
        wanted = AcknowledgeRequest.model_validate(await _body(request))
        id, turn = request.path_params["id"], self._port.upkeep.acknowledge
        return _json(await run_in_threadpool(turn, id, wanted.by, wanted.note))

    def alert_policy(self, request: Request) -> Response:
        return _json(self._port.upkeep.policy())

    def silences(self, request: Request) -> Response:
        return _json_list(self._port.upkeep.silences())

    async def silence(self, request: Request) -> Response:
        wanted = SilenceRequest.model_validate(await _body(request))
        return _json(await run_in_threadpool(self._port.upkeep.silence, wanted), 201)

    def unsilence(self, request: Request) -> Response:
        return _json(self._port.upkeep.unsilence(request.path_params["id"]))

    async def quarantine(self, request: Request) -> Response:
        wanted = QuarantineRequest.model_validate(await _body(request))
        model, version = request.path_params["model"], request.path_params["version"]
        turn = self._port.upkeep.quarantine
        return _json(await run_in_threadpool(turn, model, version, wanted.reason))

    def end_quarantine(self, request: Request) -> Response:
        params = request.path_params
        return _json(self._port.upkeep.release(params["model"], params["version"]))

    def events(self, request: Request) -> Response:
        text = request.query_params.get("limit", "50")
        if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX_EVENTS:
            raise Refusal(422, f"limit: expected 1 to {MAX_EVENTS}, got {text[:40]!r}")
        query = EventQuery.model_validate(
            {name: value for name, value in request.query_params.items() if name != "limit"}
        )
        return _json_list(
            self._port.events(int(text), query.kind, query.about, query.since, query.after)
        )


class _Guard:
    """The gate: turns strangers away, and turns what nobody caught into one line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        stranger = _stranger(request)
        if stranger is not None:
            await stranger(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        except ClientDisconnect:
            _log.info("api: %s %s: the client left midway", request.method, request.url.path)
        except OSError as error:
            await _cannot_keep(request, error)(scope, receive, send)
        except Exception as error:
            _log.exception("api: %s %s failed", request.method, request.url.path)
            answer = _error(
                500,
                f"{request.method} {request.url.path}: the controller failed with"
                f" {type(error).__name__}",
                "look into the log of the controller (fleet serve)",
            )
            await answer(scope, receive, send)


def _stranger(request: Request) -> Response | None:
    """Return the refusal of a request that some web page may have sent, or None."""
    host = request.headers.get("host", "")
    if _host_name(host) not in LOOPBACK:
        return _error(
            421,
            f"expected a request for 127.0.0.1 or localhost, got one for {host[:80]!r}",
            "fleet --controller http://127.0.0.1:PORT",
        )
    origin = request.headers.get("origin")
    if origin is not None and origin != f"http://{host}":
        return _error(403, f"expected no request from a web page, got one of {origin[:80]!r}")
    return None


def _host_name(host: str) -> str | None:
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _cannot_keep(request: Request, error: OSError) -> Response:
    where = f"{request.method} {request.url.path}"
    _log.error("api: %s: %s", where, error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _error(
            507,
            f"{where}: the controller's disk is full; nothing was kept",
            "free some space in its data directory, then push again",
        )
    return _error(500, f"{where}: {error.strerror or error}", "look into the controller's log")


def _joined(lines: Iterator[View]) -> Iterator[str]:
    """Yield lines of JSON, many at a time."""
    while some := [line.model_dump_json(exclude_none=True) for line in islice(lines, _TOGETHER)]:
        yield "\n".join(some) + "\n"


def _number(query: QueryParams, name: str, default: N) -> int | N:
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise Refusal(422, f"{name}: expected a number such as 7, got {text[:40]!r}")
    return int(text)


async def _body(request: Request) -> Any:
    """Return the JSON object in the body of `request`.

    Raises:
        Refusal: 413, too long; 422, not a JSON object.
    """
    data = bytearray()
    async for part in request.stream():
        data += part
        if len(data) > MAX_BODY_BYTES:
            raise Refusal(413, f"expected at most {MAX_BODY_BYTES} bytes of JSON, got more")
    try:
        value = json.loads(data) if data else {}
    except (ValueError, RecursionError):
        raise Refusal(422, f"expected JSON, got {bytes(data[:40])!r}") from None
    if not isinstance(value, dict):
        raise Refusal(422, f"expected a JSON object, got {str(value)[:40]!r}")
    return value


def _json(view: View, status: int = 200) -> Response:
    return Response(view.model_dump_json(), status, media_type="application/json")


def _json_list(views: Sequence[View]) -> Response:
    text = ",".join(view.model_dump_json() for view in views)
    return Response(f"[{text}]", media_type="application/json")


def _error(status: int, error: str, next_step: str = "") -> Response:
    return _json(ErrorView(error=error, next_step=next_step), status)


def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return _error(refusal.status, refusal.error, refusal.next_step)


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, ValidationError)
    return _error(422, f"{request.method} {request.url.path}: {first_error(error)}")


def _no_such_address(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = "no such address" if error.status_code == 404 else error.detail
    return _error(
        error.status_code,
        f"{what}: {request.method} {request.url.path[:200]}",
        "docs/http.md lists the addresses",
    )


class ApiError(FleetError):
    """The API does not start; says why, and what to do."""


class RunningApi:
    """An API that answers, in a thread of its own."""

    def __init__(self, server: uvicorn.Server, listener: socket.socket) -> None:
        """Run `server` on `listener` until `stop`."""
        address = listener.getsockname()
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        self.url = f"http://{host}:{address[1]}"
        self._server = server
        self._thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="api", daemon=True
        )
        self._thread.start()

    def wait_until_it_answers(self) -> None:
        """Return once requests are taken.

        Raises:
            ApiError: the server did not start.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise ApiError(f"api: expected answers on {self.url}, got none", "fleet serve")
            time.sleep(0.01)

    def stop(self) -> None:
        """Answer what is under way, take nothing new, and return when that is done."""
        self._server.should_exit = True
        self._thread.join(_STOP_TIMEOUT_S)


def check_loopback(host: str) -> None:
    """Let pass the addresses that only this machine reaches.

    Raises:
        ApiError: `host` is another.
    """
    if host not in LOOPBACK:
        raise ApiError(
            f"api: expected a loopback address to listen on until access tokens exist, got {host}",
            "fleet serve --listen 127.0.0.1:8700, and reach it through ssh -L",
        )


def serve(app: ASGIApp, host: str, port: int) -> RunningApi:
    """Serve `app` on `host`, a loopback address, and `port` (0: any free one).

    Raises:
        ApiError: the port is taken, or the address is not one of this machine's loopback.
    """
    check_loopback(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise ApiError(
            f"api: cannot listen on {host}:{port}: {error.strerror or error}",
            f"stop what listens there, or fleet serve --listen 127.0.0.1:{port + 1}",
        ) from error
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=256,
        # Longer than a person ponders between two commands of one client.
        timeout_keep_alive=60,
        timeout_graceful_shutdown=3,
    )
    running = RunningApi(uvicorn.Server(config), listener)
    running.wait_until_it_answers()
    return running
