"""The app on a device, before an API that keeps what it is told."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from fleet.demo.app import Api, NotServedError, picture_number, question, request_id, show
from fleet.demo.digits import Stream, read_digits
from fleet.demo.world import find_samples

STREAM = Stream(read_digits(find_samples() / "heldout.csv.gz"), 1, "cam-1")


class Engine(ThreadingHTTPServer):
    """A local API that answers everything and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status = 200
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.clients: set[tuple[str, int]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Engine

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, body))
        self.server.clients.add(self.client_address)
        answer = b"{}"
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        thread = threading.Thread(target=engine.serve_forever, daemon=True)
        thread.start()
        yield engine
        engine.shutdown()


def test_a_picture_is_asked_about_and_labelled_under_one_id_over_one_connection(
    engine: Engine,
) -> None:
    api = Api(engine.url)

    for number in range(3):
        show(api, STREAM, "cam-1", number)

    assert [path for path, _ in engine.requests] == [
        "/v2/models/digits/infer",
        "/v2/feedback",
    ] * 3
    for number in range(3):
        asked, told = (body for _, body in engine.requests[2 * number : 2 * number + 2])
        digit = STREAM.at(number)
        assert asked == {
            "id": f"cam-1.{number}",
            "inputs": [
                {
                    "name": "image",
                    "datatype": "FP32",
                    "shape": [1, 8, 8, 1],
                    "data": list(digit.pixels),
                }
            ],
        }
        assert told == {"model": "digits", "request_id": f"cam-1.{number}", "label": digit.label}
    assert len(engine.clients) == 1


def test_a_refusal_is_no_answer_and_gets_no_label(engine: Engine) -> None:
    engine.status = 404

    with pytest.raises(NotServedError, match="404"):
        show(Api(engine.url), STREAM, "cam-1", 0)

    assert [path for path, _ in engine.requests] == ["/v2/models/digits/infer"]


def test_a_connection_that_broke_is_made_again(engine: Engine) -> None:
    api = Api(engine.url)
    show(api, STREAM, "cam-1", 0)
    api._http.sock.close()

    with pytest.raises(NotServedError):
        show(api, STREAM, "cam-1", 1)
    show(api, STREAM, "cam-1", 2)

    assert len(engine.clients) == 2


def test_nobody_there_is_no_answer() -> None:
    with pytest.raises(NotServedError, match="refused"):
        Api("http://127.0.0.1:9").post("/v2/feedback", {})


def test_an_id_says_which_picture_it_was() -> None:
    assert picture_number(request_id("cam-1-3fa2", 1143)) == 1143
    assert "id" not in question(STREAM.at(0))
