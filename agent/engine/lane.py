"""The way to a model: one run at a time, few waiting, the event loop never held up."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

from agent.engine.model import Model
from agent.engine.runtimes import Array

INLINE_MS = 2.0
"""Runs expected to be shorter happen on the event loop: a thread would cost more than it saves."""

MAX_WAITING = 64


class LaneFullError(Exception):
    """Too many requests wait for this model already."""


class Lane:
    """Runs one model, on the event loop when that is quick, else in a thread of its own."""

    def __init__(self, model: Model, invoke_ms: float, warm_bytes: int) -> None:
        self.model = model
        self._ms_per_byte = invoke_ms / max(1, warm_bytes)
        self._waiting = 0
        self._worker: ThreadPoolExecutor | None = None

    def is_quick(self, inputs: list[Array]) -> bool:
        """Whether `inputs` may be run on the event loop now."""
        size = sum(array.nbytes for array in inputs)
        return self._waiting == 0 and size * self._ms_per_byte < INLINE_MS

    def queue(self, inputs: list[Array]) -> asyncio.Future[list[Array]]:
        """Run in the thread, after those that were queued before.

        Raises:
            LaneFullError: too many were.
        """
        if self._waiting >= MAX_WAITING:
            raise LaneFullError(
                f"model {self.model.spec.model}: {MAX_WAITING} requests wait already; "
                "send it again later"
            )
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, f"run-{self.model.spec.model}")
        self._waiting += 1
        loop = asyncio.get_running_loop()
        answer = loop.run_in_executor(self._worker, self.model.run, inputs)
        answer.add_done_callback(self._leave)
        return answer

    def _leave(self, _: object) -> None:
        self._waiting -= 1
