"""A steady stream of requests over kept connections, in a process of its own.

`python -m scripts.benches._stream HOST PORT REQUEST OUT RATE` sends the bytes in the file REQUEST
`RATE` times a second, whether answers come or not, until its standard input closes; RATE 0 sends
the next one as soon as an answer is there. OUT gets three doubles a request: when it was due and
when it was answered, on the monotonic clock, and the HTTP status, 0 for a broken one.

As every HTTP client does, it sends a request once more when a kept connection turns out closed.
"""

import array
import asyncio
import contextlib
import os
import sys
from collections import deque
from pathlib import Path

CONNECTIONS = 16


class Stream:
    """The requests that are due, and those who carry them."""

    def __init__(self, address: tuple[str, int], request: bytes, rate: float) -> None:
        self.address = address
        self.request = request
        self.done = array.array("d")
        self.over = False
        self._rate = rate
        self._waiting: deque[float] = deque()
        self._idle: list[Carrier] = []

    async def run(self, until: asyncio.Event) -> None:
        """Send until told to stop, then wait for what is under way."""
        loop = asyncio.get_running_loop()
        carriers = [Carrier(self) for _ in range(CONNECTIONS if self._rate else 2)]
        if self._rate:
            self._idle = carriers
            self._tick(loop.time(), loop)
        else:
            for carrier in carriers:
                carrier.carry(loop.time())
        await until.wait()
        self.over = True
        for _ in range(1000):
            if not self._waiting and not any(carrier.busy for carrier in carriers):
                return
            await asyncio.sleep(0.02)

    def free(self, carrier: "Carrier", now: float) -> None:
        """Give a carrier its next request."""
        if self._waiting:
            carrier.carry(self._waiting.popleft())
        elif self._rate or self.over:
            self._idle.append(carrier)
        else:
            carrier.carry(now)

    def _tick(self, due: float, loop: asyncio.AbstractEventLoop) -> None:
        if self.over:
            return
        now = loop.time()
        # A timer of ours that comes late is no fault of the server: what counts begins now.
        while due <= now:
            if self._idle:
                self._idle.pop().carry(now)
            else:
                self._waiting.append(now)
            due += 1 / self._rate
        loop.call_at(due, self._tick, due, loop)


class Carrier(asyncio.Protocol):
    """One connection at a time, and at most one request on it."""

    def __init__(self, stream: Stream) -> None:
        self.busy = False
        self._stream = stream
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._due = 0.0
        self._fresh = True
        self._got = b""

    def carry(self, due: float) -> None:
        """Send a request that was due then."""
        self.busy = True
        self._due = due
        self._got = b""
        if self._transport is None:
            self._connect()
        else:
            self._fresh = False
            self._transport.write(self._stream.request)

    def _connect(self) -> None:
        self._fresh = True
        host, port = self._stream.address
        making = self._loop.create_task(self._loop.create_connection(lambda: self, host, port))
        making.add_done_callback(self._connected)

    def _connected(self, making: "asyncio.Task[object]") -> None:
        if making.exception() is not None:
            self._end(0)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send what waits."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._stream.request)

    def data_received(self, data: bytes) -> None:
        """Take the answer."""
        self._got += data
        head, found, body = self._got.partition(b"\r\n\r\n")
        if not found:
            return
        head = head.lower()
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        if b"connection: close" in head:
            self._let_go()
        self._end(int(head[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Send once more if that was a kept connection, as HTTP clients do."""
        if self._transport is None:
            return
        self._transport = None
        if not self.busy:
            return
        if self._fresh or self._got:
            self._end(0)
        else:
            self._connect()

    def _let_go(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()

    def _end(self, status: int) -> None:
        now = self._loop.time()
        self._stream.done.extend((self._due, now, float(status)))
        self.busy = False
        # Not at once: a refused connection would otherwise be tried again for ever in one turn.
        self._loop.call_soon(self._stream.free, self, now)


async def main() -> None:
    """Stream until standard input closes."""
    host, port, request, out, rate = sys.argv[1:]
    stream = Stream((host, int(port)), Path(request).read_bytes(), float(rate))
    until = asyncio.Event()
    loop = asyncio.get_running_loop()

    def look() -> None:
        with contextlib.suppress(OSError):
            if not os.read(0, 1):
                loop.remove_reader(0)
                until.set()

    loop.add_reader(0, look)
    await stream.run(until)
    with Path(out).open("wb") as file:
        stream.done.tofile(file)


if __name__ == "__main__":
    asyncio.run(main())
