"""As much of MQTT 3.1.1 as a lean device speaks: packets to bytes and back, without sockets."""

from collections.abc import Iterator
from typing import NamedTuple

CONNACK, PUBLISH, PUBACK, SUBACK = 2, 3, 4, 9
_MORE = 0x80
_RETAIN = 0x01


class Packet(NamedTuple):
    """What the broker sent; topic and body are of a PUBLISH."""

    kind: int
    topic: str = ""
    body: bytes = b""


def connect(
    client: str, will: tuple[str, bytes], login: tuple[str, str], keepalive_s: int
) -> bytes:
    """Return a CONNECT with a clean session, and a retained last will at QoS 1."""
    user, password = login
    flags = 0x02 | 0x04 | 0x08 | 0x20 | (0xC0 if user else 0)
    rest = [_text(b"MQTT"), bytes((4, flags)), keepalive_s.to_bytes(2, "big")]
    rest += [_text(client.encode()), _text(will[0].encode()), _text(will[1])]
    rest += [_text(user.encode()), _text(password.encode())] if user else []
    return _packet(0x10, b"".join(rest))


def subscribe(filters: list[str], id: int) -> bytes:
    """Return a SUBSCRIBE at QoS 0."""
    asked = b"".join(_text(each.encode()) + b"\0" for each in filters)
    return _packet(0x82, id.to_bytes(2, "big") + asked)


def unsubscribe(filters: list[str], id: int) -> bytes:
    """Return an UNSUBSCRIBE."""
    return _packet(0xA2, id.to_bytes(2, "big") + b"".join(_text(f.encode()) for f in filters))


def publish(topic: str, body: bytes, qos: int, retain: bool, id: int) -> bytes:
    """Return a PUBLISH; at QoS 0 the id is left out."""
    number = id.to_bytes(2, "big") if qos else b""
    return _packet(0x30 | qos << 1 | retain, _text(topic.encode()) + number + body)


def packets(buffer: bytearray) -> Iterator[Packet]:
    """Yield what is whole in the buffer, and leave the rest there."""
    at = 0
    while (bounds := _bounds(buffer, at)) is not None:
        start, end = bounds
        kind = buffer[at] >> 4
        if kind == PUBLISH:
            length = int.from_bytes(buffer[start : start + 2], "big")
            name_end = start + 2 + length
            body = name_end + (2 if buffer[at] & 0x06 else 0)
            yield Packet(kind, buffer[start + 2 : name_end].decode(), bytes(buffer[body:end]))
        elif kind == CONNACK and buffer[start + 1]:
            raise ConnectionError(f"the broker refused a device: code {buffer[start + 1]}")
        else:
            yield Packet(kind)
        at = end
    del buffer[:at]


def _bounds(buffer: bytearray, at: int) -> tuple[int, int] | None:
    """Return where the rest of the packet at `at` begins and ends, if all of it is there."""
    length = shift = 0
    for place in range(at + 1, min(at + 5, len(buffer))):
        length |= (buffer[place] & 0x7F) << shift
        shift += 7
        if not buffer[place] & _MORE:
            end = place + 1 + length
            return (place + 1, end) if end <= len(buffer) else None
    return None


def _packet(first: int, rest: bytes) -> bytes:
    length, written = len(rest), bytearray([first])
    while True:
        length, low = divmod(length, 128)
        written.append(low | (_MORE if length else 0))
        if not length:
            return bytes(written) + rest


def _text(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value
