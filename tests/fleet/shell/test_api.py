"""The HTTP API over a real socket, before a controller that lives in memory."""

import json
import logging
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from fleet.core.errors import FleetError
from fleet.core.views import HealthView
from fleet.shell.api import MAX_BODY_BYTES, ApiError, RunningApi, build_app, serve
from tests.fleet.memory import MemoryController
from tests.fleet.samples import ARTIFACT, sample_device, sample_manifest
from wire.codec import encode
from wire.ids import digest_of


@pytest.fixture
def controller() -> MemoryController:
    return MemoryController(known_devices={"cam-1": sample_device()})


@pytest.fixture
def api(controller: MemoryController) -> Iterator[RunningApi]:
    running = serve(build_app(controller), "127.0.0.1", 0)
    yield running
    running.stop()


@pytest.fixture
def http(api: RunningApi) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=api.url, trust_env=False) as client:
        yield client


def push(http: httpx.Client, version: int = 1) -> httpx.Response:
    http.put(f"/v1/blobs/{digest_of(ARTIFACT)}", content=ARTIFACT)
    body = b'{"manifest":' + encode(sample_manifest(version)) + b"}"
    return http.post("/v1/releases", content=body)


def refusal(answer: httpx.Response) -> tuple[int, str, str]:
    body = answer.json()
    assert set(body) == {"error", "next_step"}
    assert "\n" not in body["error"]
    return answer.status_code, body["error"], body["next_step"]


def test_a_file_is_kept_once_its_digest_is_right(
    http: httpx.Client, controller: MemoryController
) -> None:
    data = os.urandom(3_000_000)
    address = f"/v1/blobs/{digest_of(data)}"

    before = http.head(address).status_code
    answer = http.put(address, content=data)

    assert before == 404
    assert (answer.status_code, answer.json()["size_bytes"]) == (201, 3_000_000)
    assert http.head(address).status_code == 200
    assert controller.blobs[digest_of(data)] == data


def test_a_file_with_another_digest_is_refused_and_thrown_away(
    http: httpx.Client, controller: MemoryController
) -> None:
    answer = http.put(f"/v1/blobs/{digest_of(b'promised')}", content=b"sent")

    status, error, _ = refusal(answer)
    assert status == 400
    assert digest_of(b"promised") in error and digest_of(b"sent") in error
    assert (controller.blobs, controller.aborted) == ({}, 1)


def test_a_full_disk_is_told_to_a_client_that_still_sends(
    http: httpx.Client, controller: MemoryController
) -> None:
    controller.disk_full = True
    data = os.urandom(20_000_000)

    answer = http.put(f"/v1/blobs/{digest_of(data)}", content=data)

    status, error, next_step = refusal(answer)
    assert status == 507
    assert "disk is full" in error and "free some space" in next_step
    assert controller.aborted == 1


def test_a_client_that_leaves_midway_leaves_nothing(
    api: RunningApi, http: httpx.Client, controller: MemoryController
) -> None:
    host, _, port = api.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(
            f"PUT /v1/blobs/{digest_of(b'x')} HTTP/1.1\r\nHost: {host}\r\n"
            "Content-Length: 1000\r\n\r\nsome of it".encode()
        )

    for _ in range(500):
        if controller.aborted or not http.get("/v1/health").is_success:
            break
    assert controller.aborted == 1
    assert controller.blobs == {}


def test_a_release_is_created_once_and_then_there(http: httpx.Client) -> None:
    first, second = push(http), push(http)

    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json()["digest"] == sample_manifest().digest
    assert http.get("/v1/releases").json()[0]["model"] == "digits"
    assert http.get("/v1/releases?model=other").json() == []
    assert http.get("/v1/releases/digits/1").json()["manifest"]["version"] == 1
    assert http.get("/v1/models/digits/next-version").json() == {"version": 2}


def test_a_refusal_keeps_its_status_and_its_next_step(http: httpx.Client) -> None:
    answer = http.get("/v1/releases/digits/9")

    assert refusal(answer) == (404, "digits@9: no such release", "fleet model list")


@pytest.mark.parametrize(
    ("address", "body", "expected"),
    [
        ("/v1/releases", b"{", "expected JSON, got b'{'"),
        ("/v1/releases", b"[]", "expected a JSON object, got '[]'"),
        ("/v1/releases", b"{}", "POST /v1/releases: manifest: Field required, got '{}'"),
        (
            "/v1/rollouts",
            b'{"release": "digits@1", "waves": "all"}',
            "POST /v1/rollouts: waves: Input should be a valid tuple, got 'all'",
        ),
        ("/v1/devices/cam-1/commands", b"", "verb: Field required"),
        ("/v1/releases", b"[" * 100_000, "expected JSON, got"),
    ],
)
def test_a_wrong_body_is_refused_in_one_line(
    http: httpx.Client, address: str, body: bytes, expected: str
) -> None:
    status, error, _ = refusal(http.post(address, content=body))

    assert status == 422
    assert expected in error


def test_a_body_without_end_is_cut_off(http: httpx.Client) -> None:
    answer = http.post("/v1/rollouts", content=b'"' + b"x" * MAX_BODY_BYTES)

    assert refusal(answer)[0] == 413


@pytest.mark.parametrize("limit", ["0", "1001", "-1", "many", "٣", "9" * 400])
def test_a_wrong_limit_is_refused(http: httpx.Client, limit: str) -> None:
    status, error, _ = refusal(http.get("/v1/events", params={"limit": limit}))

    assert status == 422
    assert error.startswith("limit: expected 1 to 1000, got ")


@pytest.mark.parametrize(
    ("method", "address", "status"),
    [("GET", "/", 404), ("GET", "/v1/nothing", 404), ("DELETE", "/v1/devices", 405)],
)
def test_unknown_addresses_are_answered_in_json(
    http: httpx.Client, method: str, address: str, status: int
) -> None:
    answer = http.request(method, address)

    assert refusal(answer)[0] == status


def test_a_fault_of_ours_is_one_line_and_the_log_has_the_rest(
    http: httpx.Client, controller: MemoryController, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> HealthView:
        raise KeyError("who")

    controller.health = broken  # type: ignore[method-assign]
    with caplog.at_level(logging.ERROR):
        answer = http.get("/v1/health")

    assert refusal(answer)[:2] == (500, "GET /v1/health: the controller failed with KeyError")
    assert "KeyError: 'who'" in caplog.text
    assert http.get("/v1/devices").status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 421),
        ({"host": "127.0.0.1.evil.example:8700"}, 421),
        ({"host": "[nonsense"}, 421),
        ({"host": ""}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "localhost:8700"}, 200),
        ({"host": "[::1]:8700"}, 200),
        ({"host": "127.0.0.1:8700", "origin": "http://127.0.0.1:8700"}, 200),
    ],
)
def test_web_pages_of_other_origins_are_turned_away(
    http: httpx.Client, headers: dict[str, str], status: int
) -> None:
    answer = http.get("/v1/health", headers=headers)

    assert answer.status_code == status


def test_commands_and_rollouts_pass_through(http: httpx.Client) -> None:
    push(http)

    command = http.post("/v1/devices/cam-1/commands", json={"verb": "ping"}).json()
    answer = http.get(f"/v1/devices/cam-1/commands/{command['id']}").json()
    rollout = http.post("/v1/rollouts", json={"release": "digits@1"}).json()
    paused = http.post(f"/v1/rollouts/{rollout['id']}/pause", json={"reason": "tea"}).json()
    resumed = http.post(f"/v1/rollouts/{rollout['id']}/resume").json()
    again = http.post(f"/v1/rollouts/{rollout['id']}/resume")
    aborted = http.post(f"/v1/rollouts/{rollout['id']}/abort", json={"reason": "lunch"}).json()

    assert (answer["outcome"], answer["detail"]) == ("done", "pong")
    assert http.get("/v1/rollouts").json()[0]["id"] == rollout["id"]
    assert (paused["status"], paused["because"]) == ("paused", "tea")
    assert (resumed["status"], again.status_code) == ("running", 409)
    assert (aborted["status"], aborted["because"]) == ("aborted", "lunch")
    assert http.get("/v1/devices/cam-1/config").text.startswith('device = "cam-1"')


def test_the_device_view_is_the_documented_one(
    http: httpx.Client, controller: MemoryController
) -> None:
    answer: Any = http.get("/v1/devices/cam-1").json()

    assert answer == json.loads(controller.device("cam-1").model_dump_json())


def test_a_taken_port_is_named_with_a_way_out(api: RunningApi) -> None:
    port = int(api.url.rpartition(":")[2])

    with pytest.raises(ApiError, match=f"cannot listen on 127.0.0.1:{port}: ") as caught:
        serve(build_app(MemoryController()), "127.0.0.1", port)

    assert caught.value.next_step.endswith(f"--listen 127.0.0.1:{port + 1}")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com"])
def test_nothing_beyond_loopback_is_listened_on(host: str) -> None:
    with pytest.raises(FleetError, match="expected a loopback address to listen on until"):
        serve(build_app(MemoryController()), host, 0)


def test_a_stopped_api_is_gone(controller: MemoryController) -> None:
    running = serve(build_app(controller), "127.0.0.1", 0)

    running.stop()

    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{running.url}/v1/health", trust_env=False)


def test_the_documentation_lists_every_address_and_no_other() -> None:
    page = Path(__file__).parents[3] / "docs" / "http.md"
    rows = re.findall(r"^\| (DELETE|GET|HEAD|PUT|POST) \| `([^`]+)` \|", page.read_text(), re.M)

    routes = [route for route in build_app(MemoryController()).routes if isinstance(route, Route)]

    served = [
        # Starlette answers HEAD wherever it answers GET.
        (method, route.path.replace(":int", ""))
        for route in routes
        for method in (route.methods or set())
        if not (method == "HEAD" and "GET" in (route.methods or set()))
    ]
    assert sorted(rows) == sorted(served)


def test_a_bundle_is_streamed_with_its_length_and_name(
    http: httpx.Client, controller: MemoryController
) -> None:
    push(http)

    answer = http.get("/v1/releases/digits/1/bundle", params={"device": "cam-1", "install": "1"})

    assert answer.status_code == 200
    assert len(answer.content) == int(answer.headers["content-length"])
    assert answer.headers["content-disposition"] == 'attachment; filename="digits-1.ffb"'
    assert controller.bundles == [("cam-1", True)]


@pytest.mark.parametrize(
    ("address", "status"),
    [
        ("/v1/releases/digits/9/bundle", 404),
        ("/v1/releases/digits/1/bundle?install=yes", 422),
        ("/v1/releases/digits/1/bundle?device=Cam%207", 422),
    ],
)
def test_a_bundle_that_makes_no_sense_is_refused(
    http: httpx.Client, address: str, status: int
) -> None:
    push(http)

    assert refusal(http.get(address))[0] == status


def test_a_report_is_json_and_a_picture(http: httpx.Client) -> None:
    push(http)

    report = http.get("/v1/models/digits/report", params={"version": 1, "since": "7d"})
    picture = http.get("/v1/models/digits/report.svg")

    assert [each["version"] for each in report.json()["releases"]] == [1]
    assert picture.headers["content-type"] == "image/svg+xml"
    assert picture.text.startswith("<svg ")


@pytest.mark.parametrize(
    ("query", "status"),
    [("version=x", 422), ("version=9", 404), ("since=soon", 422), ("by=sit", 422)],
)
def test_a_report_that_makes_no_sense_is_refused(
    http: httpx.Client, query: str, status: int
) -> None:
    push(http)

    assert refusal(http.get(f"/v1/models/digits/report?{query}"))[0] == status
