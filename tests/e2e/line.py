"""A line between devices and their broker that can be made to fail: a TCP proxy with faults.

    with Line(broker.port) as line, Storm(line, seed=1):
        fleet.agent("cam-1", broker={"url": line.url})

It runs in a thread of its own, on 127.0.0.1. The kernels of test machines lack netem.
"""

import asyncio
import contextlib
import random
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

PIECE = 16 * 1024
HELD_S = 0.02


class Line:
    """Carries bytes both ways, as it is told to; faults may be set from any thread."""

    def __init__(self, port: int) -> None:
        self.latency_s = 0.0
        """Added to every piece of up to PIECE bytes."""
        self.bytes_per_s = 0
        """Of each connection in each direction; 0: unlimited."""
        self.black_hole = False
        """Nothing passes, and nobody is told; what was under way arrives when it ends."""
        self.refusing = False
        """New connections are closed at once."""
        self.faults = 0
        """Connections that were cut or left half open."""
        self._target = port
        self._ends: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        """Of each connection the device's side -> the broker's."""
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="line", daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._loop.close()

    def cut(self, choose: Callable[[], bool] = lambda: True) -> None:
        """Reset connections on both sides."""
        self._call(self._fail(choose, half=False))

    def leave_half_open(self, choose: Callable[[], bool] = lambda: True) -> None:
        """Let the broker see connections end while the devices are told nothing."""
        self._call(self._fail(choose, half=True))

    async def _fail(self, choose: Callable[[], bool], *, half: bool) -> None:
        for device, broker in list(self._ends.items()):
            if choose():
                self.faults += 1
                broker.transport.abort()
                if not half:
                    device.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _accept(self, reader: asyncio.StreamReader, device: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):  # the latter: it ends
                await self._join(reader, device)
        finally:
            device.transport.abort()
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, device: asyncio.StreamWriter) -> None:
        await self._passable()
        if self.refusing:
            return
        from_broker, broker = await asyncio.open_connection("127.0.0.1", self._target)
        self._ends[device] = broker
        try:
            up = asyncio.ensure_future(self._carry(reader, broker))
            down = asyncio.ensure_future(self._carry(from_broker, device))
            try:
                # A device that is not told goes on to talk, and what it says is lost.
                await up
            finally:
                down.cancel()
                await asyncio.gather(down, return_exceptions=True)
        finally:
            del self._ends[device]
            broker.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(PIECE):
                pace_s = len(data) / self.bytes_per_s if self.bytes_per_s else 0.0
                await asyncio.sleep(self.latency_s + pace_s)
                await self._passable()
                if not writer.transport.is_closing():
                    writer.write(data)
                    await writer.drain()

    async def _passable(self) -> None:
        while self.black_hole:
            await asyncio.sleep(HELD_S)


class Storm(threading.Thread):
    """One fault after the other, as the seed has it, until the `with` block is left."""

    def __init__(self, line: Line, seed: int, pause_s: float = 1.0) -> None:
        super().__init__(name="storm", daemon=True)
        self.seen: list[str] = []
        self._line = line
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self.join(30)
        assert not self.is_alive()

    def run(self) -> None:
        kinds: list[str] = []
        try:
            while not self._over.wait(self._random.uniform(0.5, 1.5) * self._pause_s):
                if not kinds:
                    kinds = ["cut", "half", "hole", "slow", "late", "refuse"]
                    self._random.shuffle(kinds)
                self._strike(kinds.pop())
        finally:
            self._calm()

    def _strike(self, kind: str) -> None:
        line, chance = self._line, self._random
        self.seen.append(kind)
        match kind:
            case "cut":
                line.cut(lambda: chance.random() < 0.5)
            case "half":
                line.leave_half_open(lambda: chance.random() < 0.2)
            case "hole":
                line.black_hole = True
            case "slow":
                line.bytes_per_s = 32 * 1024
            case "late":
                line.latency_s = 0.3
            case "refuse":
                line.refusing = True
                line.cut(lambda: chance.random() < 0.3)
        self._over.wait(chance.uniform(1.0, 2.0))
        self._calm()

    def _calm(self) -> None:
        self._line.black_hole = self._line.refusing = False
        self._line.bytes_per_s = 0
        self._line.latency_s = 0.0
