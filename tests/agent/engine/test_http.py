import asyncio
import contextlib
import json
import random
import socket
from collections.abc import AsyncIterator

import pytest

from agent.engine import http, incoming
from tests.agent.engine.harness import Client, Listeners, infer_body, one_hot

INFER = "/v2/models/digits/infer"


def raw(listeners: Listeners, data: bytes) -> bytes:
    """Send bytes as they are and end; return all that comes until the server ends too."""
    with socket.create_connection(("127.0.0.1", listeners.port), 10) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        got = b""
        while part := sock.recv(65536):
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

    got = raw(shared, requests)

    assert got.count(b"HTTP/1.1 200 OK") == 40
    places = [got.index(b'"id":"p%d"' % number) for number in range(40)]
    assert places == sorted(places)


def test_an_offer_to_upgrade_is_declined_by_answering(shared: Listeners) -> None:
    offer = b"GET /v2/health/live HTTP/1.1\r\nConnection: Upgrade, HTTP2-Settings\r\n"
    offer += b"Upgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n"

    got = raw(shared, offer * 2)

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


def test_mutilated_requests_are_never_the_engines_fault(shared: Listeners, asker: Client) -> None:
    chance = random.Random(11)
    texts = [json.dumps(infer_body(one_hot(1), id="m")), '{"instances": [[1, 2, 3, 4]]}']
    statuses: set[int] = set()

    for _ in range(1500):
        body = bytearray(chance.choice(texts).encode())
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(len(body))
            body[place : place + chance.randrange(3)] = chance.choice(
                [b"", b"[", b"}", b"-1", b"1e999", b'"', b"null", b"\xff", b"9" * 30, b"\0"]
            )
        headers = {}
        if chance.random() < 0.3:
            headers["Inference-Header-Content-Length"] = str(chance.randrange(len(body) + 9))
        path = chance.choice([INFER, "/v1/models/digits:predict", "/v2/feedback"])
        answer = asker.ask("POST", path, bytes(body), headers)
        assert isinstance(answer.json.get("error", ""), str)
        statuses.add(answer.status)

    whole = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}" % INFER.encode()
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 5)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        got = raw(shared, bytes(data))
        statuses.add(int(got[9:12]) if got else 400)

    assert statuses <= {200, 400, 404, 405, 413}
    assert asker.infer(one_hot(1)).status == 200


@contextlib.asynccontextmanager
async def echo() -> AsyncIterator[tuple[http.HttpServer, int]]:
    """A server in this process that answers every request with its path."""
    server = http.HttpServer(lambda request: http.Response(200, request.target.encode()))
    listener = socket.create_server(("127.0.0.1", 0))
    server.listen([listener])
    yield server, listener.getsockname()[1]
    await server.drain(0.2)


def test_a_client_that_never_finishes_its_request_is_told_and_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http, "REQUEST_S", 0.2)
    monkeypatch.setattr(http, "LINGER_S", 0.2)
    monkeypatch.setattr(http, "SWEEP_S", 0.05)

    async def run() -> bytes:
        async with echo() as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /slow HTTP/1.1\r\nHost")
            got = await asyncio.wait_for(reader.read(), 5)
            while server.connections:
                await asyncio.sleep(0.01)
            writer.close()
            return got

    got = asyncio.run(asyncio.wait_for(run(), 10))

    assert got.startswith(b"HTTP/1.1 408 ")
    assert b"expected a whole request within 0.2 s" in got


def test_an_idle_client_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "IDLE_S", 0.2)
    monkeypatch.setattr(http, "SWEEP_S", 0.05)

    async def run() -> tuple[bytes, bytes]:
        async with echo() as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /once HTTP/1.1\r\n\r\n")
            answer = await reader.readuntil(b"/once")
            rest = await asyncio.wait_for(reader.read(), 5)
            writer.close()
            return answer, rest

    answer, rest = asyncio.run(asyncio.wait_for(run(), 10))

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert rest == b""


def test_connections_and_bodies_are_limited_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 2)
    monkeypatch.setattr(incoming, "MAX_HELD_BYTES", 1000)

    async def run() -> list[bytes]:
        async with echo() as (server, port):
            first = await asyncio.open_connection("127.0.0.1", port)
            second = await asyncio.open_connection("127.0.0.1", port)
            while len(server.connections) < 2:
                await asyncio.sleep(0.01)
            third = await asyncio.open_connection("127.0.0.1", port)
            too_many = await third[0].read()
            for _, writer in (first, second):
                writer.write(b"POST /a HTTP/1.1\r\nContent-Length: 700\r\n\r\n" + b"x" * 600)
            done, _ = await asyncio.wait(
                [asyncio.create_task(one[0].read(100)) for one in (first, second)],
                return_when=asyncio.FIRST_COMPLETED,
            )
            for _, writer in (first, second, third):
                writer.close()
            while server.connections:
                await asyncio.sleep(0.01)
            assert server.hall.held_bytes == 0
            return [too_many, *(task.result() for task in done)]

    too_many, too_much = asyncio.run(asyncio.wait_for(run(), 10))

    assert too_many.startswith(b"HTTP/1.1 503 ") and b"2 connections are open" in too_many
    assert too_much.startswith(b"HTTP/1.1 503 ")
