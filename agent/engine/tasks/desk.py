"""Where apps are served in their own terms: items in, answers out."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from agent.engine.errors import BusyError
from agent.engine.runtimes import Array
from agent.engine.tasks import Frame, Item, Read, Reader, Teller

MAX_WAITING = 32


class Desk:
    """One model's reader and teller, and a thread for what takes time to read."""

    def __init__(self, reader: Reader, teller: Teller) -> None:
        self.reader = reader
        self.teller = teller
        self._waiting = 0
        self._thread: ThreadPoolExecutor | None = None

    def takes(self, content_type: bytes) -> bool:
        """Whether a body of this type is one item."""
        media = content_type.decode("latin-1").lower()
        return media.startswith(self.reader.media) if self.reader.media else False

    def rehearse(self, outputs: list[Array]) -> None:
        """Tell of outputs that nobody waits for: what cannot be told shall be found at the trial.

        Raises:
            AnswerError: the outputs are not what the task expects.
        """
        batch = outputs[0].shape[0] if outputs[0].ndim else 1
        self.teller.tell(outputs, [Frame(1, 1)] * batch)

    async def queue(self, items: Sequence[Item]) -> Read:
        """Read in the thread, after what was queued before.

        Raises:
            BusyError: too much was.
            TensorError: an item is not what the task takes.
        """
        if self._waiting >= MAX_WAITING:
            raise BusyError(f"{self._waiting} requests wait to be read; send it again later")
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "read")
        self._waiting += 1
        reading = asyncio.wrap_future(self._thread.submit(self.reader.read, items))
        reading.add_done_callback(self._leave)
        # Whoever gives up waiting does not end the reading, and must not be counted out early.
        return await asyncio.shield(reading)

    def _leave(self, done: "asyncio.Future[Read]") -> None:
        self._waiting -= 1
        if not done.cancelled():
            done.exception()  # seen, should nobody wait for it any more
