"""HTTP/1.1 on listening sockets that are handed to us, and can be left without losing a request.

Every limit ends in an answer that says so: slow senders, long heads, large bodies, too many
connections. One request of a connection is worked on at a time; pipelined ones wait in order.
"""

import asyncio
import enum
import functools
import json
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from agent.engine.incoming import MAX_BODY_BYTES, Hall, Incoming, Request

__all__ = ["MAX_BODY_BYTES", "Connection", "HttpServer", "Request", "Response", "refusal"]

MAX_CONNECTIONS = 256
MAX_PIPELINED = 16
REQUEST_S = 30.0
"""From the first byte of a request to its last."""

IDLE_S = 300.0
READ_ANSWER_S = 30.0
LINGER_S = 2.0
"""How long a refused sender may go on before the connection is cut."""

SWEEP_S = 1.0
IDLE_WHEN_DRAINING_S = 0.5
"""How long a drained server waits for the next request of an idle connection."""

DRAIN_STEP_S = 0.02
ACCEPT_AGAIN_S = 1.0

_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    410: "Gone",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}


class Openable(Protocol):
    """Something that a client may come back for."""

    @property
    def open(self) -> bool:
        """Whether it may still."""
        ...


@dataclass(slots=True)
class Response:
    """An answer; `headers` are whole lines, each with its line end."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: bytes = b""
    stream: Openable | None = None
    """What its client goes on with: the connection is kept for that where it can be."""
    after: Callable[[], None] | None = None
    """What is left to do once the answer is on its way; nobody has to wait for it."""


Handler = Callable[[Request], Response | Awaitable[Response]]


def refusal(status: int, error: str) -> Response:
    """Return an error as every client of ours gets it."""
    # Whatever there is no room or no time for is over soon.
    headers = b"Retry-After: 1\r\n" if status == 503 else b""
    return Response(status, json.dumps({"error": error}).encode(), headers=headers)


@functools.cache
def _head(status: int, content_type: bytes, keep_alive: bool) -> bytes:
    """Return what begins every answer of a kind."""
    return b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\nConnection: %s\r\n" % (
        status,
        _REASONS[status].encode(),
        content_type,
        b"keep-alive" if keep_alive else b"close",
    )


class HttpServer:
    """Serves `handler` on listening sockets, until `drain`."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.draining = False
        self.holding = True
        """Whether a drain still waits for streams."""
        self.connections: set[Connection] = set()
        self.hall = Hall()
        self._listeners: list[socket.socket] = []
        self._arriving: set[asyncio.Task[object]] = set()
        """Accepted clients on their way into `connections`."""
        self._sweeper: asyncio.TimerHandle | None = None

    def listen(self, listeners: list[socket.socket]) -> None:
        """Accept on sockets that listen already, perhaps together with another process."""
        for listener in listeners:
            listener.setblocking(False)
            self._listeners.append(listener)
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        # Not asyncio.Server: once closed, it drops clients that it accepted a moment before.
        loop = asyncio.get_running_loop()
        try:
            client, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return  # another process was quicker, or the client is gone
        except OSError:
            # Out of descriptors: trying again at once would only spin.
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_AGAIN_S, self._accept_again, listener)
            return
        client.setblocking(False)
        coming = loop.create_task(loop.connect_accepted_socket(lambda: Connection(self), client))
        self._arriving.add(coming)
        coming.add_done_callback(self._arriving.discard)

    def _accept_again(self, listener: socket.socket) -> None:
        if not self.draining:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    async def drain(self, deadline_s: float, streams_s: float = 0.0) -> None:
        """Stop accepting, answer what came, close what is idle; cut the rest at the deadline.

        Connections with open streams may go on for `streams_s` more.

        Our descriptors of the sockets are closed; who else listens on them is not disturbed.
        """
        began = time.monotonic()
        self.draining = True
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        idle_until = min(IDLE_WHEN_DRAINING_S, deadline_s / 2)
        while (waited := time.monotonic() - began) < deadline_s:
            if not self.connections and not self._arriving:
                return
            self.holding = waited < min(streams_s, deadline_s - 2 * idle_until)
            if waited >= idle_until:
                for connection in list(self.connections):
                    connection.close_if_idle()
            await asyncio.sleep(DRAIN_STEP_S)
        for connection in list(self.connections):
            connection.abort()

    def add(self, connection: "Connection") -> bool:
        """Take up a connection; False when there are too many."""
        if len(self.connections) >= MAX_CONNECTIONS:
            return False
        self.connections.add(connection)
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)
        return True

    def _sweep(self) -> None:
        now = time.monotonic()
        for connection in list(self.connections):
            connection.check_time(now)
        self._sweeper = None
        if self.connections:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)


class _State(enum.Enum):
    IDLE = enum.auto()
    READING = enum.auto()
    """A request has begun to come and nothing is owed meanwhile."""
    BUSY = enum.auto()
    """An answer is owed."""
    ENDING = enum.auto()
    """The last answer is written; what still comes is thrown away."""


_IDLE, _READING, _BUSY, _ENDING = _State


class Connection(asyncio.BufferedProtocol):
    """One client."""

    _transport: asyncio.Transport

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._queue: deque[Request | Response] = deque()
        """Requests to handle and, last, a refusal of what could not be read."""
        self._incoming = Incoming(server.hall, self._queue.append, self._refuse, self._invite)
        self._state = _IDLE
        self._since = time.monotonic()
        self._deaf = False
        """Nothing more is read from this client."""
        self._blocked = False
        self._paused = False
        self._half_closed = False
        self._streams: list[Openable] = []
        self._answer: asyncio.Future[Response]

    # -- the transport's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._server.add(self):
            self._deaf = True
            error = f"{MAX_CONNECTIONS} connections are open already; close some"
            self._write(refusal(503, error), keep_alive=False)
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the client; an answer under way is thrown away when it is there."""
        self._server.connections.discard(self)
        self._deaf = True
        self._incoming.stop()
        for item in self._queue:
            if isinstance(item, Request):
                self._server.hall.held_bytes -= len(item.body)
        self._queue.clear()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read to."""
        return self._incoming.room()

    def buffer_updated(self, nbytes: int) -> None:
        """Take up what was read and handle what is whole."""
        if self._deaf:
            return
        self._incoming.came(nbytes)
        if len(self._queue) > MAX_PIPELINED and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._advance()

    def eof_received(self) -> bool:
        """Keep a half-closed connection open while an answer is owed."""
        self._half_closed = True
        return self._state is _BUSY or bool(self._queue)

    def pause_writing(self) -> None:
        """The client does not read its answers: handle none of its requests meanwhile."""
        self._blocked = True
        self._since = time.monotonic()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._blocked = False
        self._advance()

    # -- the server's calls

    def close_if_idle(self) -> None:
        """Close unless a request is coming or an answer is owed."""
        if self._state is _IDLE and not self._holds():
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection."""
        self._transport.abort()

    def check_time(self, now: float) -> None:
        """Cut or refuse a client that takes too long."""
        waited = now - self._since
        if self._blocked and waited > READ_ANSWER_S:
            self._transport.abort()
        elif self._state is _READING and waited > REQUEST_S:
            self._refuse(408, f"expected a whole request within {REQUEST_S:g} s, got a part")
            self._advance()
        elif self._state is _IDLE and waited > IDLE_S:
            self._transport.close()
        elif self._state is _ENDING and waited > LINGER_S:
            self._transport.abort()

    # -- ours

    def _refuse(self, status: int, error: str) -> None:
        """Make this the last answer, after those that are owed."""
        if not self._deaf:
            self._deaf = True
            self._incoming.stop()
            self._queue.append(refusal(status, error))

    def _invite(self) -> None:
        if not self._queue and self._state is not _BUSY:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _advance(self) -> None:
        """Handle queued requests until one takes time; a long queue lets others in between."""
        for _ in range(MAX_PIPELINED):
            state = self._state
            if not self._queue or state is _BUSY or state is _ENDING or self._blocked:
                break
            item = self._queue.popleft()
            if isinstance(item, Response):
                self._write(item, keep_alive=False)
                self._linger()
                return
            self._state = _BUSY
            result = self._server.handler(item)
            if isinstance(result, Response):
                self._respond(item, result)
            else:
                self._wait_for(item, result)
        else:
            asyncio.get_running_loop().call_soon(self._advance)
            return
        if self._paused and not self._queue:
            self._paused = False
            self._transport.resume_reading()
        if self._state is not _BUSY:
            self._rest()

    def _rest(self) -> None:
        """Note what we wait for."""
        if self._state is _ENDING:
            return
        if self._half_closed and not self._queue:
            self._transport.close()
            return
        state = _READING if self._incoming.reading else _IDLE
        if state is not self._state or state is _IDLE:
            self._state = state
            self._since = time.monotonic()

    def _wait_for(self, request: Request, answer: Awaitable[Response]) -> None:
        self._answer = asyncio.ensure_future(answer)
        self._answer.add_done_callback(lambda done: self._finish(request, done))

    def _finish(self, request: Request, done: "asyncio.Future[Response]") -> None:
        if not self._transport.is_closing():
            self._respond(request, done.result())
            self._advance()
            return
        self._server.hall.held_bytes -= len(request.body)
        if not done.cancelled() and (after := done.result().after) is not None:
            after()

    def _respond(self, request: Request, response: Response) -> None:
        self._server.hall.held_bytes -= len(request.body)
        self._state = _IDLE
        if response.stream is not None:
            self._streams = [
                one for one in self._streams if one.open and one is not response.stream
            ]
            if response.stream.open:
                self._streams.append(response.stream)
        leaving = self._server.draining and not self._queue and not self._holds()
        self._write(response, keep_alive=request.keep_alive and not leaving)
        if response.after is not None:
            response.after()
        if not request.keep_alive:
            self._deaf = True
            self._transport.close()
        elif leaving:
            self._linger()

    def _holds(self) -> bool:
        """Whether the client has open streams, and these are waited for."""
        return self._server.holding and any(stream.open for stream in self._streams)

    def _write(self, response: Response, *, keep_alive: bool) -> None:
        body = response.body
        self._transport.write(
            b"%sContent-Length: %d\r\n%s\r\n%s"
            % (
                _head(response.status, response.content_type, keep_alive),
                len(body),
                response.headers,
                body,
            )
        )

    def _linger(self) -> None:
        """End our side and let the client end its own.

        Closing while it still sends would reset the connection, and could cost it the answer.
        """
        self._deaf = True
        self._queue.clear()
        self._state = _ENDING
        self._since = time.monotonic()
        if self._half_closed:
            self._transport.close()
        else:
            self._transport.write_eof()
