"""Frames on their way from a source to the model: bounded in number and in bytes."""

import itertools
import secrets
import threading
import time
from collections import OrderedDict, deque
from dataclasses import dataclass

from agent.pipelines.counts import Counts
from agent.pipelines.frames import MAX_FRAME_BYTES
from agent.pipelines.plan import WhenFull

MAX_QUEUED_BYTES = 32 * 1024 * 1024
LOOK_S = 0.5
"""How often a thread that waits looks whether it is to stop."""

MAX_STREAMS = 256
QUEUE_FULL = "queue full"


class Stopping(Exception):  # noqa: N818 - nobody's fault
    """This process is to end."""


@dataclass(frozen=True, slots=True)
class Frame:
    """Bytes for the model, and where they came from."""

    payload: bytes
    source: str
    """File name, topic, or program."""
    id: str
    """The request's, by which an app may send a label later."""
    at: float
    """Unix seconds when it came."""
    stream: str
    """What it is a part of: to a model that listens, frames of one stream are one sound."""
    number: int
    """Its place in the stream, from 1; a gap is a frame that was dropped."""
    last: bool = False
    """Whether the stream ends with it."""


class Buffer:
    """From one thread to another. A single frame always fits."""

    def __init__(
        self, room: int, when_full: WhenFull, counts: Counts, stop: threading.Event
    ) -> None:
        self._room = room
        self._when_full = when_full
        self._counts = counts
        self._stop = stop
        self._run = secrets.token_hex(4)
        self._count = itertools.count(1)
        self._numbers: OrderedDict[str, int] = OrderedDict()
        """Stream -> number of its latest frame; the stalest stream is forgotten."""
        self._frames: deque[Frame] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, payload: bytes, source: str, stream: str) -> None:
        """Add a frame of a stream: wait for room, or let the oldest or this one go.

        Raises:
            Stopping: there will be no room any more.
        """
        self._counts.took()
        number = self._number(stream)
        if len(payload) > MAX_FRAME_BYTES:
            self._counts.failed("too large")
            return
        frame = Frame(
            payload,
            source,
            f"{self._run}-{next(self._count)}",
            time.time(),
            f"{self._run}-{stream}",
            number,
        )
        with self._changed:
            while self._full(frame):
                if self._when_full == "wait":
                    self._wait()
                    continue
                self._counts.dropped(QUEUE_FULL)
                if self._when_full == "drop-newest":
                    return
                self._bytes -= len(self._frames.popleft().payload)
            self._frames.append(frame)
            self._bytes += len(frame.payload)
            self._changed.notify_all()

    def get(self) -> Frame:
        """Take the oldest, when there is one.

        Raises:
            Stopping: there will be none any more.
        """
        with self._changed:
            while not self._frames or self._stop.is_set():
                self._wait()
            frame = self._frames.popleft()
            self._bytes -= len(frame.payload)
            self._changed.notify_all()
            return frame

    def _number(self, stream: str) -> int:
        number = self._numbers.pop(stream, 0) + 1
        self._numbers[stream] = number
        if len(self._numbers) > MAX_STREAMS:
            self._numbers.popitem(last=False)
        return number

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _full(self, frame: Frame) -> bool:
        return bool(self._frames) and (
            len(self._frames) >= self._room or self._bytes + len(frame.payload) > MAX_QUEUED_BYTES
        )

    def _wait(self) -> None:
        if self._closed or self._stop.is_set():
            raise Stopping
        self._changed.wait(LOOK_S)


class Backoff:
    """Waits that double, and begin anew after something lived for a while."""

    def __init__(self, first_s: float, last_s: float) -> None:
        self._first_s = first_s
        self._last_s = last_s
        self._next_s = first_s

    def next(self) -> float:
        """Return how long to wait now, in seconds."""
        now_s = self._next_s
        self._next_s = min(self._last_s, 2 * now_s)
        return now_s

    def reset(self) -> None:
        """Begin anew."""
        self._next_s = self._first_s
