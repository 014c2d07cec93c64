import hashlib
import random

import numpy as np
import pytest

from agent.engine import incoming
from agent.engine.incoming import Hall, Incoming, Request


class Receiver:
    """A connection that gets bytes in the pieces it is given them."""

    def __init__(self) -> None:
        self.hall = Hall()
        self.requests: list[Request] = []
        self.refused: list[int] = []
        self.invited = 0
        self.incoming = Incoming(self.hall, self.requests.append, self._refuse, self._invite)

    def receive(self, data: bytes) -> None:
        while data:
            room = self.incoming.room()
            count = min(len(room), len(data))
            room[:count] = data[:count]
            self.incoming.came(count)
            data = data[count:]

    def _refuse(self, status: int, error: str) -> None:
        self.refused.append(status)
        self.incoming.stop()

    def _invite(self) -> None:
        self.invited += 1


def post(body: bytes, *headers: str) -> bytes:
    lines = ["POST /infer HTTP/1.1", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.mark.parametrize("seed", range(8))
def test_requests_arrive_whole_in_whatever_pieces(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [0, 1, 300, 70_000, incoming.FIRST_BODY_BYTES + 5, 3 * incoming.FIRST_BODY_BYTES]
    bodies = [chance.randbytes(chance.choice(sizes)) for _ in range(12)]
    stream = b"".join(map(post, bodies))
    receiver = Receiver()

    at = 0
    while at < len(stream):
        piece = chance.choice([1, 7, 100, 5000, 100_000, 2_000_000])
        receiver.receive(stream[at : at + piece])
        at += piece

    got = [hashlib.sha256(request.body).digest() for request in receiver.requests]
    assert got == [hashlib.sha256(body).digest() for body in bodies]
    assert receiver.hall.held_bytes == sum(map(len, bodies))
    assert not receiver.refused and not receiver.incoming.reading


def test_the_same_head_again_brings_another_body() -> None:
    receiver = Receiver()

    receiver.receive(post(b"one") + post(b"two"))
    receiver.receive(post(b"six", "X-Other: head"))
    receiver.receive(post(b"ten"))

    assert [bytes(request.body) for request in receiver.requests] == [
        b"one",
        b"two",
        b"six",
        b"ten",
    ]
    assert [b"x-other" in request.headers for request in receiver.requests] == [False] * 2 + [
        True,
        False,
    ]


def test_who_asks_before_sending_is_invited_every_time() -> None:
    receiver = Receiver()
    request = post(b"body", "Expect: 100-continue")

    receiver.receive(request * 3)

    assert receiver.invited == 3
    assert len(receiver.requests) == 3


@pytest.mark.parametrize("json_bytes", range(120, 137))
def test_the_tensors_of_a_long_body_are_aligned(json_bytes: int) -> None:
    receiver = Receiver()
    tensor = np.arange(50_000, dtype=np.float64)
    body = b" " * json_bytes + tensor.tobytes()

    receiver.receive(post(body, f"Inference-Header-Content-Length: {json_bytes}"))

    [request] = receiver.requests
    array = np.frombuffer(memoryview(request.body)[json_bytes:], np.float64)
    assert array.flags.aligned
    assert (array == tensor).all()


@pytest.mark.parametrize("announced", [b"-1", b"99999999999999999999", b"1e3"])
def test_nonsense_in_the_header_length_only_costs_the_alignment(announced: bytes) -> None:
    receiver = Receiver()

    receiver.receive(post(bytes(100_000), f"Inference-Header-Content-Length: {announced.decode()}"))

    assert len(receiver.requests[0].body) == 100_000


def test_a_body_that_is_only_announced_takes_little_room() -> None:
    receiver = Receiver()

    receiver.receive(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % incoming.MAX_BODY_BYTES)

    assert receiver.hall.held_bytes == incoming.FIRST_BODY_BYTES
    receiver.incoming.stop()
    assert receiver.hall.held_bytes == 0
