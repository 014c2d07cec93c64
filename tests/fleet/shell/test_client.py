"""The client before good, strange and broken servers, all on real sockets."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet.shell.api import RunningApi, build_app, serve
from fleet.shell.client import ClientError, ControllerClient, UnreachableError
from tests.fleet.memory import MemoryController
from tests.fleet.samples import ARTIFACT, sample_device, sample_manifest
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
def client(api: RunningApi) -> Iterator[ControllerClient]:
    with ControllerClient(api.url) as client:
        yield client


def answering(reply: bytes) -> str:
    """Return the URL of a server that answers its first request with `reply` and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        with listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(reply)

    threading.Thread(target=answer, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_views_come_back_as_the_controller_gave_them(
    client: ControllerClient, controller: MemoryController
) -> None:
    assert client.health() == controller.health()
    assert client.devices() == controller.devices()
    assert client.device("cam-1") == controller.device("cam-1")
    assert client.next_version("digits") == 1


def test_an_upload_tells_of_every_piece(
    client: ControllerClient, controller: MemoryController, tmp_path: Path
) -> None:
    data = bytes(range(256)) * 4096
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    pieces: list[int] = []

    client.upload(digest_of(data), path, pieces.append)

    assert controller.blobs[digest_of(data)] == data
    assert (sum(pieces), len(pieces)) == (len(data), 4)
    assert client.has_blob(digest_of(data))


def test_a_manifest_keeps_its_digest_on_the_way(
    client: ControllerClient, controller: MemoryController
) -> None:
    controller.blobs[digest_of(ARTIFACT)] = ARTIFACT

    first, second = client.add_release(sample_manifest()), client.add_release(sample_manifest())

    assert first[0].digest == sample_manifest().digest
    assert (first[1], second[1]) == (True, False)
    shown = client.release("digits", 1).manifest
    assert shown is not None and shown.digest == sample_manifest().digest


def test_a_refusal_carries_the_next_step(client: ControllerClient) -> None:
    with pytest.raises(ClientError) as caught:
        client.device("cam-9")

    assert (caught.value.error, caught.value.next_step, caught.value.exit_code) == (
        "cam-9: no such device",
        "fleet device show cam-1",
        1,
    )


@pytest.mark.parametrize("id", ["../health", "a/b", "", "?x=1", "#", "é"])
def test_an_id_never_becomes_another_address(client: ControllerClient, id: str) -> None:
    with pytest.raises(ClientError):
        client.device(id)


@pytest.mark.parametrize(
    ("reply", "got"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n<ht>", "got document: Invalid JSON"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", "got version: Field required"),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "got status 503 to GET /v1/health"),
    ],
)
def test_another_program_on_the_port_is_recognised(reply: bytes, got: str) -> None:
    url = answering(reply)

    with ControllerClient(url) as client, pytest.raises(ClientError) as caught:
        client.health()

    assert caught.value.error.startswith(
        f"controller: expected a farflung controller at {url}, {got}"
    )
    assert caught.value.next_step == "check --controller and FARFLUNG_CONTROLLER"


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0-OpenSSH\r\n"])
def test_a_broken_connection_may_be_tried_again(reply: bytes) -> None:
    with ControllerClient(answering(reply)) as client, pytest.raises(UnreachableError) as caught:
        client.health()

    assert "got a broken connection (" in caught.value.error


def test_a_silent_controller_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fleet.shell.client.ANSWER_TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"

        with ControllerClient(url) as client, pytest.raises(UnreachableError, match="got none in"):
            client.health()


def test_a_file_that_changes_under_way_is_not_kept(
    client: ControllerClient, controller: MemoryController, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"later bytes")

    with pytest.raises(ClientError, match="nothing kept"):
        client.upload(digest_of(b"earlier bytes"), path, lambda _: None)

    assert controller.blobs == {}
