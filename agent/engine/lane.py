"""The way to a model: one run at a time, few waiting, the event loop never held up."""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from agent.engine.model import Model
from agent.engine.runtimes import Array

INLINE_MS = 2.0
"""Runs expected to be shorter happen on the event loop: a thread would cost more than it saves."""

MAX_WAITING = 64
MAX_WAITING_BYTES = 128 * 1024 * 1024
"""Of inputs together; one request may wait whatever its size."""

Runner = Callable[[list[Array]], list[Array]]


class LaneFullError(Exception):
    """Too many requests wait for this model already."""


class DeadlineError(Exception):
    """The answer is not there within the time that the app gave it."""


@dataclass(slots=True)
class Turn:
    """What a run came to, and when it began and ended by `time.perf_counter`."""

    outputs: list[Array]
    began_at: float
    ended_at: float


class Lane:
    """Runs one model, on the event loop when that is quick, else in a thread of its own."""

    def __init__(self, model: Model, invoke_ms: float, warm_bytes: int) -> None:
        self.model = model
        self.invoke_ms = invoke_ms
        self._ms_per_byte = invoke_ms / max(1, warm_bytes)
        self._waiting = 0
        self._waiting_bytes = 0
        self._worker: ThreadPoolExecutor | None = None

    @property
    def idle(self) -> bool:
        """Whether no request is run or waits for that."""
        return self._waiting == 0

    def is_quick(self, inputs: list[Array], expected_ms: float | None = None) -> bool:
        """Whether `inputs` may be run on the event loop now."""
        if self._waiting:
            return False
        if expected_ms is None:
            expected_ms = _size(inputs) * self._ms_per_byte
        return expected_ms < INLINE_MS

    def run(self, inputs: list[Array], runner: Runner | None = None) -> Turn:
        """Run here and now, the model itself or what a stream does with it.

        Raises:
            Exception: whatever the runtime raises.
        """
        began_at = time.perf_counter()
        outputs = (runner or self.model.run)(inputs)
        return Turn(outputs, began_at, time.perf_counter())

    async def queue(
        self,
        inputs: list[Array],
        within_s: float | None = None,
        runner: Runner | None = None,
    ) -> Turn:
        """Run in the thread, after those that were queued before.

        Whose time is up before its run begins is left out. A run that has begun cannot be
        ended: the lane stays taken, and the answer is thrown away.

        Raises:
            LaneFullError: too many were.
            DeadlineError: the time is up.
            Exception: whatever the runtime raises.
        """
        size = _size(inputs)
        self._enter(size)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, f"run-{self.model.spec.model}")
        run = self._worker.submit(self.run, inputs, runner)
        answer = asyncio.wrap_future(run)
        answer.add_done_callback(lambda done: self._leave(done, size))
        # Cancelling `answer` would let the next run begin on the event loop beside this one.
        await asyncio.wait({answer}, timeout=within_s)
        if answer.done():
            return answer.result()
        run.cancel()
        raise DeadlineError

    def _enter(self, size_bytes: int) -> None:
        full = self._waiting >= MAX_WAITING
        if full or (self._waiting and self._waiting_bytes + size_bytes > MAX_WAITING_BYTES):
            raise LaneFullError(
                f"model {self.model.spec.model}: {self._waiting} requests with "
                f"{self._waiting_bytes} bytes wait already; send it again later"
            )
        self._waiting += 1
        self._waiting_bytes += size_bytes

    def _leave(self, done: asyncio.Future[Turn], size_bytes: int) -> None:
        self._waiting -= 1
        self._waiting_bytes -= size_bytes
        if not done.cancelled():
            done.exception()  # seen, should nobody wait for it any more


def _size(inputs: list[Array]) -> int:
    size = 0
    for array in inputs:
        size += array.nbytes
    return size
