"""Bytes of a connection on their way to becoming requests.

Bytes are read where they stay: heads into one buffer that all connections share, since nothing of
it is needed once it was parsed, and the rest of a long body into the body itself. An app that
sends the same head again and again has it parsed once.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import httptools

MAX_HEAD_BYTES = 32 * 1024
MAX_BODY_BYTES = 16 * 1024 * 1024
MAX_HELD_BYTES = 64 * 1024 * 1024
"""Bodies of all connections together."""

READ_BYTES = 64 * 1024
FIRST_BODY_BYTES = 1024 * 1024
"""A body that is announced to be longer gets its room as it comes."""

BODY_ALIGNMENT = 16
_HEAD_END = b"\r\n\r\n"


@dataclass(slots=True)
class Request:
    """A whole request."""

    method: str
    target: str
    """As it was sent: path and query."""
    headers: dict[bytes, bytes]
    """Names in lower case; not to be changed."""
    body: bytes | memoryview
    """In a long one the tensors behind `Inference-Header-Content-Length` bytes are aligned, so
    that nobody has to copy them."""
    keep_alive: bool
    came_at: float
    """`time.perf_counter` when its last byte was read."""


class Hall:
    """What the connections of a server share."""

    def __init__(self) -> None:
        self.buffer = bytearray(READ_BYTES)
        """What one connection has just read, and takes up before another one reads."""
        self.view = memoryview(self.buffer)
        self.held_bytes = 0
        """Of bodies, until they are answered."""


@dataclass(frozen=True, slots=True)
class _Head:
    """A parsed head with a body of known length behind it."""

    data: bytes
    method: str
    target: str
    headers: dict[bytes, bytes]
    keep_alive: bool
    body_bytes: int

    def request(self, body: bytes | memoryview) -> Request:
        return Request(
            self.method, self.target, self.headers, body, self.keep_alive, time.perf_counter()
        )


class _Body:
    """A body that did not come at once, in room that grows."""

    def __init__(self, head: _Head) -> None:
        self.head = head
        json_bytes = head.headers.get(b"inference-header-content-length", b"")
        self._skip = -int(json_bytes) % BODY_ALIGNMENT if json_bytes.isdigit() else 0
        self._data = bytearray(self._skip + min(head.body_bytes, FIRST_BODY_BYTES))
        self._filled = self._skip

    @property
    def room_bytes(self) -> int:
        """What it may hold by now."""
        return len(self._data) - self._skip

    @property
    def whole(self) -> bool:
        """Whether all of it is there."""
        return self._filled == self._skip + self.head.body_bytes

    def room(self) -> memoryview:
        """Return where the next bytes belong."""
        return memoryview(self._data)[self._filled :]

    def fill(self, count: int) -> None:
        """Take up bytes that are in the room, and see that there is room for more."""
        self._filled += count
        if self._filled == len(self._data) and not self.whole:
            # Not in place: who has just read still holds a view.
            grown = bytearray(self._skip + self.head.body_bytes)
            grown[: self._filled] = self._data
            self._data = grown

    def bytes(self) -> memoryview:
        """Return it."""
        return memoryview(self._data)[self._skip :]


class Incoming:
    """The requests of one connection in the making.

    `take` gets each when it is whole; `refuse` the status and the error where there will be none,
    and calls `stop`; `invite` is told of a client that waits to be asked for its body.
    """

    _target: bytes
    _headers: dict[bytes, bytes]
    _parts: list[bytes]

    def __init__(
        self,
        hall: Hall,
        take: Callable[[Request], None],
        refuse: Callable[[int, str], None],
        invite: Callable[[], None],
    ) -> None:
        self.reading = False
        """Whether a request has begun to come."""
        self._hall = hall
        self._take = take
        self._refuse = refuse
        self._invite = invite
        self._stopped = False
        self._last_head: _Head | None = None
        self._body: _Body | None = None
        """Read past the parser."""
        self._held_bytes = 0
        self._parser = httptools.HttpRequestParser(self)
        self.on_message_begin()
        self.reading = False

    def room(self) -> memoryview:
        """Return where the next bytes are to be read to."""
        return self._hall.view if self._body is None else self._body.room()

    def came(self, count: int) -> None:
        """Take up bytes that were read into `room()`."""
        if self._body is not None:
            self._fill(self._body, count)
            return
        at = 0
        try:
            while at < count and not self._stopped:
                at = self._next(at, count)
        except httptools.HttpParserError as error:
            self._refuse(400, f"expected an HTTP/1.1 request, got what is none: {error}")

    def stop(self) -> None:
        """Forget what has come in part; nothing more is taken up."""
        self._stopped = True
        self.reading = False
        self._hall.held_bytes -= self._held_bytes
        self._held_bytes = 0
        self._body, self._parts = None, []

    # -- past the parser: heads that come whole, and bodies of known length

    def _next(self, at: int, end: int) -> int:
        """Take up something of the buffer; return up to where."""
        if not self.reading:
            head: _Head | None = self._last_head
            if head is not None and self._hall.buffer.startswith(head.data, at, end):
                return self._begin_body(head, at + len(head.data), end)
            found = self._hall.buffer.find(_HEAD_END, at, end)
            if found >= 0:
                head_end = found + len(_HEAD_END)
                head = self._head(bytes(self._hall.view[at:head_end]))
                return head_end if head is None else self._begin_body(head, head_end, end)
        self._feed(bytes(self._hall.view[at:end]))
        return end

    def _head(self, data: bytes) -> _Head | None:
        """Return a head with a body to come; None where the parser saw to it or goes on with it."""
        if len(data) > MAX_HEAD_BYTES:
            self._refuse(431, f"head: expected at most {MAX_HEAD_BYTES} bytes, got {len(data)}")
            return None
        self._feed(data)
        if not self.reading or b"content-length" not in self._headers:
            return None
        head = _Head(
            data,
            self._parser.get_method().decode("latin-1"),
            self._target.decode("latin-1"),
            self._headers,
            self._parser.should_keep_alive(),
            int(self._headers[b"content-length"]),
        )
        # The old one would wait for a body that goes another way.
        self._parser = httptools.HttpRequestParser(self)
        if b"expect" not in head.headers:
            self._last_head = head
        return head

    def _begin_body(self, head: _Head, at: int, end: int) -> int:
        body_end = at + head.body_bytes
        if body_end <= end and self._hall.held_bytes + head.body_bytes <= MAX_HELD_BYTES:
            self._hall.held_bytes += head.body_bytes
            body = bytes(self._hall.view[at:body_end])
            self._take(
                Request(
                    head.method,
                    head.target,
                    head.headers,
                    body,
                    head.keep_alive,
                    time.perf_counter(),
                )
            )
            return body_end
        end = min(end, body_end)
        self.reading = True
        self._body = begun = _Body(head)
        begun.room()[: end - at] = self._hall.view[at:end]
        self._hold(begun.room_bytes)
        self._fill(begun, end - at)
        return end

    def _fill(self, body: _Body, count: int) -> None:
        body.fill(count)
        if self._stopped:
            return
        if body.whole:
            self._body = None
            self._pass(body.head.request(body.bytes()))
        else:
            self._hold(body.room_bytes - self._held_bytes)

    def _hold(self, more_bytes: int) -> None:
        self._held_bytes += more_bytes
        self._hall.held_bytes += more_bytes
        if self._hall.held_bytes > MAX_HELD_BYTES:
            self._refuse(503, f"{MAX_HELD_BYTES} bytes of requests wait; send it again later")

    def _pass(self, request: Request) -> None:
        """Hand over a request, and with it what is held of its body."""
        self.reading = False
        if not self._stopped:
            self._held_bytes = 0
            self._take(request)

    # -- the parser: everything else, such as heads in parts and chunked bodies

    def _feed(self, data: bytes) -> None:
        size = len(data)
        self._began = False
        self._parse(data)
        # What began in the middle of `data` is counted from the next bytes on.
        if self.reading and not self._head_done and not self._began:
            self._head_bytes += size
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"head: expected at most {MAX_HEAD_BYTES} bytes, got more")

    def _parse(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as offer:
                # We decline by answering in HTTP/1.1: what follows is the next request.
                data = data[offer.args[0] :]
                self._parser = httptools.HttpRequestParser(self)

    def on_message_begin(self) -> None:
        """Start a new request."""
        self.reading = True
        self._began = True
        self._target = b""
        self._headers = {}
        self._head_bytes = 0
        self._head_done = False
        self._parts = []

    def on_url(self, url: bytes) -> None:
        """Take (a part of) the target."""
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Refuse what is announced as too large; tell who asks first to go on."""
        self._head_done = True
        length = self._headers.get(b"content-length", b"0")
        if len(length) > 18 or int(length) > MAX_BODY_BYTES:
            self._refuse_body(length.decode())
        elif self._headers.get(b"expect", b"").lower() == b"100-continue" and not self._stopped:
            self._invite()

    def on_body(self, data: bytes) -> None:
        """Take a part of the body."""
        if not self._stopped:
            self._parts.append(data)
            self._hold(len(data))
            if self._held_bytes > MAX_BODY_BYTES:
                self._refuse_body("more")

    def on_message_complete(self) -> None:
        """Hand over the request."""
        request = Request(
            self._parser.get_method().decode("latin-1"),
            self._target.decode("latin-1"),
            self._headers,
            b"".join(self._parts),
            self._parser.should_keep_alive(),
            time.perf_counter(),
        )
        self._parts = []
        self._pass(request)

    def _refuse_body(self, got: str) -> None:
        self._refuse(413, f"body: expected at most {MAX_BODY_BYTES} bytes, got {got}")
