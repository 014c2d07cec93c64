import json
import socket

import pytest

from tests.agent.engine.harness import Client, Listeners, infer_body, one_hot

INFER = "/v2/models/digits/infer"


def raw(listeners: Listeners, data: bytes, answers: int = 1) -> bytes:
    """Send bytes as they are; return all that comes until the server ends or has answered."""
    with socket.create_connection(("127.0.0.1", listeners.port), 10) as sock:
        sock.sendall(data)
        got = b""
        while got.count(b"HTTP/1.1 ") < answers or not got.endswith(b"}"):
            part = sock.recv(65536)
            if not part:
                break
            got += part
        return got


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_not_http_gets_a_400_and_the_end(shared: Listeners, data: bytes) -> None:
    answer = raw(shared, data)

    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert b"Connection: close" in answer
    assert b'{"error": "expected an HTTP/1.1 request' in answer


def test_large_bodies_and_long_heads_are_refused_before_they_are_read(
    shared: Listeners, asker: Client
) -> None:
    announced = raw(shared, b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 999)
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    chunked = raw(shared, b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 17)
    head = raw(shared, b"GET /v2 HTTP/1.1\r\n" + b"X: y\r\n" * 200_000)

    assert announced.startswith(b"HTTP/1.1 413 ") and b"got 99999999" in announced
    assert chunked.startswith(b"HTTP/1.1 413 ")
    assert head.startswith(b"HTTP/1.1 431 ")
    assert asker.ask("GET", "/v2/health/ready").status == 200


def test_pipelined_requests_are_answered_in_order(shared: Listeners) -> None:
    requests = b""
    for number in range(40):
        body = json.dumps(infer_body(one_hot(number % 3), id=f"p{number}")).encode()
        requests += b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body))
        requests += body

    got = raw(shared, requests, answers=40)

    assert got.count(b"HTTP/1.1 200 OK") == 40
    places = [got.index(b'"id":"p%d"' % number) for number in range(40)]
    assert places == sorted(places)


def test_an_offer_to_upgrade_is_declined_by_answering(shared: Listeners) -> None:
    offer = b"GET /v2/health/live HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    offer += b"Upgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n"

    got = raw(shared, offer * 2, answers=2)

    assert got.count(b"HTTP/1.1 200 OK") == 2


def test_a_client_that_asks_before_sending_is_told_to_go_on(shared: Listeners) -> None:
    body = json.dumps(infer_body(one_hot(1))).encode()
    head = b"POST %s HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % (
        INFER.encode(),
        len(body),
    )

    with socket.create_connection(("127.0.0.1", shared.port), 10) as sock:
        sock.sendall(head)
        first = sock.recv(1000)
        sock.sendall(body)
        second = sock.recv(1000)

    assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert second.startswith(b"HTTP/1.1 200 OK")


def test_the_unix_socket_speaks_the_same(shared: Listeners) -> None:
    body = json.dumps(infer_body(one_hot(2))).encode()

    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        sock.connect(shared.path)
        sock.sendall(
            b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (INFER.encode(), len(body)) + body
        )
        answer = sock.recv(4000)

    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"[0.0,0.0,8.0]" in answer
